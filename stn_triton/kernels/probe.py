"""The smallest kernel: whether Triton can compile and launch anything here."""

from __future__ import annotations

from .language import jit, tl


@jit
def probe(out):
    """out[0] = 1. Launch grid: (1,)."""
    tl.store(out, 1)
