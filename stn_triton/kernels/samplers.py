"""Sampling kernels k(.) of the paper as taps: which pixels a coordinate reads, and with what weight.

A sampler maps a coordinate tile to a tuple of taps ``(offset, weight, weight_dx, weight_dy, inside)``:
element offset inside a channel plane, product weight of both axes, its derivatives, and the bounds mask.
Taps are computed once per pixel; `read`, `slope` and `scatter` then visit them for every channel.
"""

from __future__ import annotations

from .coordinates import floor, round_half_even
from .language import constexpr, jit, tl


@jit
def inside_axis(index, n):
    """0 <= index < n."""
    return (index >= 0) & (index < n)


@jit
def nearest(x, y, H, W, stride_h, stride_w, live, INDEX: constexpr):
    """Eq. 4 of the paper, ties to even; no derivative in the coordinate."""
    x, j = round_half_even(x)
    y, i = round_half_even(y)
    offset = i.to(INDEX) * stride_h + j.to(INDEX) * stride_w
    one, zero = tl.full(x.shape, 1.0, x.dtype), tl.zeros(x.shape, x.dtype)
    return ((offset, one, zero, zero, live & inside_axis(i, H) & inside_axis(j, W)),)


@jit
def bilinear(x, y, H, W, stride_h, stride_w, live, INDEX: constexpr):
    """Eq. 5 of the paper. At an integer coordinate the derivative is U[j+1] - U[j], as in PyTorch."""
    x0, j = floor(x)
    y0, i = floor(y)
    right, low = x - x0, y - y0
    left, high = 1 - right, 1 - low
    offset = i.to(INDEX) * stride_h + j.to(INDEX) * stride_w
    in_left, in_right = inside_axis(j, W), inside_axis(j + 1, W)
    in_high, in_low = live & inside_axis(i, H), live & inside_axis(i + 1, H)
    return (
        (offset, high * left, -high, -left, in_high & in_left),
        (offset + stride_w, high * right, high, -right, in_high & in_right),
        (offset + stride_h, low * left, -low, left, in_low & in_left),
        (offset + stride_h + stride_w, low * right, low, right, in_low & in_right),
    )


@jit
def read(plane, taps, ACC: constexpr):
    """sum of weight * U over the taps of one channel plane."""
    total = tl.zeros(taps[0][1].shape, ACC)
    for k in tl.static_range(len(taps)):
        offset, weight, _, _, inside = taps[k]
        total = tl.fma(weight, tl.load(plane + offset, mask=inside, other=0.0).to(ACC), total)
    return total


@jit
def slope(plane, taps, ACC: constexpr):
    """The derivatives of `read` in the pixel coordinates, (d/dx, d/dy)."""
    dx = tl.zeros(taps[0][1].shape, ACC)
    dy = tl.zeros(taps[0][1].shape, ACC)
    for k in tl.static_range(len(taps)):
        offset, _, weight_dx, weight_dy, inside = taps[k]
        value = tl.load(plane + offset, mask=inside, other=0.0).to(ACC)
        dx = tl.fma(weight_dx, value, dx)
        dy = tl.fma(weight_dy, value, dy)
    return dx, dy


@jit
def scatter(d_plane, taps, d_value):
    """The adjoint of `read`: adds weight * d_value to every tap of one channel plane of the gradient."""
    for k in tl.static_range(len(taps)):
        offset, weight, _, _, inside = taps[k]
        tl.atomic_add(
            d_plane + offset,
            (weight * d_value).to(d_plane.dtype.element_ty),
            mask=inside,
            sem="relaxed",  # the default orders memory: a fence per atomic
        )
