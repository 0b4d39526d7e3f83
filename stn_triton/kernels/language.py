"""Triton's language as device code here imports it, or a stand-in where triton cannot be imported.

With the stand-in, device code still imports, so that a transform is one file, but nothing can be launched.
`from __future__ import annotations` and the bare name ``constexpr`` keep annotations unevaluated.
"""

from __future__ import annotations

try:
    import triton.language as tl
    from triton import jit
    from triton.language import constexpr, float64, int64

    TRITON_MISSING = ""
except ImportError as error:
    TRITON_MISSING = str(error)
    tl = constexpr = float64 = int64 = None

    def jit(function=None, **options):
        """Leaves the function as it is."""
        return (lambda decorated: decorated) if function is None else function


__all__ = ["TRITON_MISSING", "constexpr", "float64", "int64", "jit", "tl"]
