"""Attention: (u, v) = s (x, y) + t, a crop that is scaled alike in both axes, eq. 2 of the paper."""

from __future__ import annotations

import torch

from ..kernels.coordinates import finite
from ..kernels.language import constexpr, jit, tl
from .affine import affine_box, affine_extent, affine_inverse
from .base import Transform, target_axis

# --- device: each axis a map of its own, a k + b of the pixels counted from the centre --------------------------


@jit
def attention_load(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """The slope and the offset of either axis; s itself at equal sizes, as in `affine_load`."""
    stride_0, _, _ = strides
    s = tl.load(theta).to(ACC)
    shift_x = tl.load(theta + stride_0).to(ACC)
    shift_y = tl.load(theta + 2 * stride_0).to(ACC)
    axis_x, axis_y = axes
    half_x, centre_x, ratio_x, _, _, _ = axis_x
    half_y, centre_y, ratio_y, _, _, _ = axis_y
    return s * ratio_x, tl.fma(shift_x, half_x, centre_x), s * ratio_y, tl.fma(shift_y, half_y, centre_y)


@jit
def attention_source(state, row, column, live, x, y, axes):
    """One rounding an axis, so monotone; a point that is not finite reads nothing."""
    scale_x, shift_x, scale_y, shift_y = state
    u, v = tl.fma(scale_x, x, shift_x), tl.fma(scale_y, y, shift_y)
    return u, v, finite(live, u, v)


@jit
def attention_inverse(state, sizes, axes, RADIUS_X: constexpr, RADIUS_Y: constexpr, ACC: constexpr):
    """That of the affine map it is."""
    scale_x, shift_x, scale_y, shift_y = state
    zero = tl.zeros([], ACC)
    return affine_inverse((scale_x, zero, shift_x, zero, scale_y, shift_y), sizes, axes, RADIUS_X, RADIUS_Y, ACC)


@jit
def attention_start(state, d_theta, part, row, rows, column, sizes, ACC: constexpr):
    """Three sums per lane, since x stays the same on its way down the rows."""
    zero = tl.zeros(column.shape, ACC)
    return zero, zero, zero


@jit
def attention_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
    """Adds a tile's d_u, d_v, d_v y."""
    sum_u, sum_v, sum_vy = partial
    return sum_u + d_u, sum_v + d_v, tl.fma(d_v, y, sum_vy)


@jit
def attention_store(partial, state, d_theta, x, axes):
    """d_s = sum over pixels of d_u x + d_v y, d_t = sum of (d_u, d_v)."""
    sum_u, sum_v, sum_vy = partial
    axis_x, axis_y = axes
    half_x, _, ratio_x, _, _, _ = axis_x
    half_y, _, ratio_y, _, _, _ = axis_y
    block = d_theta + tl.program_id(0).to(tl.int64) * 3
    tl.store(block, tl.sum(sum_u * x) * ratio_x + tl.sum(sum_vy) * ratio_y)
    tl.store(block + 1, tl.sum(sum_u) * half_x)
    tl.store(block + 2, tl.sum(sum_v) * half_y)


# --- host -------------------------------------------------------------------------------------------------


class Attention(Transform):
    """theta (N, 3): scale s, then the translation (tx, ty) of the crop's centre."""

    name = "attention"
    layout = "(N, 3)"
    load, source, monotone = attention_load, attention_source, True
    inverse, box, extent = attention_inverse, affine_box, affine_extent
    start, adjoint, store = attention_start, attention_adjoint, attention_store

    def parameter_shape(self, size):
        return (3,)

    def identity(self, size=(1, 1), *, align_corners=False, dtype=None, device=None):
        return torch.tensor([1.0, 0.0, 0.0], dtype=dtype, device=device)

    def grid_of(self, theta, size, align_corners=False):
        (h, w), (s, shift_x, shift_y) = size, theta[..., None].unbind(1)
        u = s * target_axis(w, align_corners, theta) + shift_x
        v = s * target_axis(h, align_corners, theta) + shift_y
        return torch.stack([u[:, None, :].expand(-1, h, -1), v[:, :, None].expand(-1, -1, w)], -1)

    def points_of(self, theta, xy, align_corners=False):
        return theta[:, None, :1] * xy + theta[:, None, 1:]

    def partials_shape(self, batch, size, blocks):
        return (batch, blocks.per_sample, 3)

    def sum_partials(self, partials):
        return partials.sum(1, dtype=torch.float64)
