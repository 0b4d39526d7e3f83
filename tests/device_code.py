"""Device code that tests put in, to see by its result what happened."""

from __future__ import annotations

from stn_triton.kernels.language import constexpr, jit, tl


@jit
def last_program(out):
    """A kernel whose result is which program ran last."""
    tl.store(out, tl.program_id(0).to(tl.float32))


@jit
def astray(t, n, inverse_span, ALIGN_CORNERS: constexpr):
    """A padding rule that sends every point to the same place, without a slope."""
    return tl.zeros(t.shape, t.dtype) + 0.5, tl.zeros(t.shape, t.dtype), t == t


@jit
def quadratic(k, x, y):
    """1, x, y, x^2, x y, y^2."""
    linear = tl.where(k == 0, 1.0, tl.where(k == 1, x, y))
    return tl.where(k < 3, linear, tl.where(k == 3, x * x, tl.where(k == 4, x * y, y * y)))


@jit
def bumps(k, x, y):
    """exp(-2 r^2) about points 0.33 (k mod 7, k div 7) - 1."""
    p_x, p_y = (k % 7).to(x.dtype), (k // 7).to(x.dtype)
    to_x, to_y = x - (p_x * 0.33 - 1), y - (p_y * 0.33 - 1)
    return tl.exp(-2 * (to_x * to_x + to_y * to_y))


@jit
def one(k, x, y):
    """The constant."""
    return 1.0


@jit
def holes(k, x, y):
    """1, the root of x, y or infinity: neither finite on the left nor at the bottom."""
    return tl.where(k == 0, 1.0, tl.where(k == 1, tl.sqrt(x), tl.where(y > 0.7, float("inf"), y)))


@jit
def two_arguments(x, y):
    """No basis."""
    return x
