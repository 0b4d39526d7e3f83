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
    tl = float64 = int64 = None

    def constexpr(value):
        """The value."""
        return value

    def jit(function=None, **options):
        """Leaves the function as it is."""
        return (lambda decorated: decorated) if function is None else function


def closure(function):
    """`jit` for a function within another, of calls alone, that closes over a device function it was given.

    Triton's interpreter rewrites assignments and forgets what is closed over: there the function stays as it is.
    """
    compiled = jit(function)
    return function if interprets(compiled) else compiled


def interprets(function):
    """Whether a jit function is the interpreter's: TRITON_INTERPRET=1 was set where it was decorated."""
    return type(function).__name__ == "InterpretedFunction"


__all__ = ["TRITON_MISSING", "closure", "constexpr", "float64", "int64", "interprets", "jit", "tl"]
