"""A minimal kernel that shows whether Triton can compile and launch here."""

from __future__ import annotations

from .language import jit, tl


@jit
def probe(out):
    """Stores 1 in out[0]. Launch grid: (1,)."""
    tl.store(out, 1)
