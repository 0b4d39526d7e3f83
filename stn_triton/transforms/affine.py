"""Affine: (u, v) = theta (x, y, 1), eq. 1 of the paper."""

from __future__ import annotations

import torch

from ..kernels.coordinates import finite
from ..kernels.language import constexpr, jit, tl
from ..kernels.preimage import LARGEST, determinant, pixels_in, slack_of
from ..torch_sampler import is_bounded
from .base import Transform
from .homogeneous import bounded_forms_over_grid, forms_at, forms_over_grid

# --- device: theta folded into a map of pixels, coefficients of (x, y, 1) counted from the centres ------------


@jit
def affine_load(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """The six coefficients of the map from centred target pixels to source pixels.

    The diagonal is theta times the ratio of sizes, exactly theta at equal sizes, so that the identity gives
    every pixel its own centre without rounding.
    """
    stride_0, stride_1, _ = strides
    a = tl.load(theta).to(ACC)
    b = tl.load(theta + stride_1).to(ACC)
    c = tl.load(theta + 2 * stride_1).to(ACC)
    d = tl.load(theta + stride_0).to(ACC)
    e = tl.load(theta + stride_0 + stride_1).to(ACC)
    f = tl.load(theta + stride_0 + 2 * stride_1).to(ACC)
    axis_x, axis_y = axes
    half_x, centre_x, ratio_x, pitch_x, _, _ = axis_x
    half_y, centre_y, ratio_y, pitch_y, _, _ = axis_y
    return (
        a * ratio_x, b * (pitch_y * half_x), tl.fma(c, half_x, centre_x),
        d * (pitch_x * half_y), e * ratio_y, tl.fma(f, half_y, centre_y),
    )  # fmt: skip


@jit
def affine_source(state, row, column, live, x, y, axes):
    """u = a x + (b y + c), v = e y + (d x + f), in pixels; a point that is not finite reads nothing.

    Monotone in x and in y: a fused product and sum rounds once, and rounding keeps order.
    """
    a, b, c, d, e, f = state
    u = tl.fma(a, x, tl.fma(b, y, c))
    v = tl.fma(e, y, tl.fma(d, x, f))
    return u, v, finite(live, u, v)


@jit
def affine_inverse(state, sizes, axes, RADIUS_X: constexpr, RADIUS_Y: constexpr, ACC: constexpr):
    """The inverse (x, y) = [[a, b], [d, e]]^-1 (j - c, i - f), and half the extents of every box, the same for all."""
    a, b, c, d, e, f = state
    h, w, H, W = sizes[0].to(ACC), sizes[1].to(ACC), sizes[2].to(ACC), sizes[3].to(ACC)
    slack = slack_of(ACC)
    det = determinant(a, b, d, e)
    regular = tl.abs(det) * LARGEST * LARGEST > 1
    scale = 1.0 / tl.where(regular, det, 1.0)
    x_by_u, x_by_v, y_by_u, y_by_v = e * scale, -b * scale, -d * scale, a * scale
    terms_u = tl.abs(a) * w + tl.abs(b) * h + tl.abs(c) + W
    terms_v = tl.abs(d) * w + tl.abs(e) * h + tl.abs(f) + H
    reach_u, reach_v = tl.fma(terms_u, slack, RADIUS_X), tl.fma(terms_v, slack, RADIUS_Y)
    half_x = tl.abs(x_by_u) * reach_u + tl.abs(x_by_v) * reach_v + w * slack
    half_y = tl.abs(y_by_u) * reach_u + tl.abs(y_by_v) * reach_v + h * slack
    regular = regular & (terms_u < LARGEST) & (terms_v < LARGEST) & (half_x < LARGEST) & (half_y < LARGEST)
    candidates = pixels_in(2 * half_x, w, ACC) * pixels_in(2 * half_y, h, ACC)
    candidates = tl.where(regular, candidates, float("inf"))
    return (x_by_u, x_by_v, y_by_u, y_by_v, c, f, half_x, half_y), candidates


@jit
def affine_box(numbers, column, row):
    """About the pixel's own preimage."""
    x_by_u, x_by_v, y_by_u, y_by_v, c, f, half_x, half_y = numbers
    u, v = column - c, row - f
    x, y = tl.fma(x_by_u, u, x_by_v * v), tl.fma(y_by_u, u, y_by_v * v)
    return x - half_x, x + half_x, y - half_y, y + half_y


@jit
def affine_extent(numbers, first_column, last_column, first_row, last_row):
    """The same for all."""
    _, _, _, _, _, _, half_x, half_y = numbers
    return 2 * half_x, 2 * half_y


@jit
def affine_start(state, d_theta, part, row, rows, column, sizes, ACC: constexpr):
    """Four sums per lane; x stays the same on a program's way down the rows, so it comes in at the end."""
    zero = tl.zeros(column.shape, ACC)
    return zero, zero, zero, zero


@jit
def affine_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
    """Adds a tile's d_u, d_u y, d_v, d_v y."""
    sum_u, sum_uy, sum_v, sum_vy = partial
    return sum_u + d_u, tl.fma(d_u, y, sum_uy), sum_v + d_v, tl.fma(d_v, y, sum_vy)


@jit
def store_affine(partial, block, STRIDE_ROW: constexpr, STRIDE_COLUMN: constexpr, x, axes):
    """The sum over pixels of (d_u, d_v)ᵀ (x, y, 1), a matrix (2, 3) of these strides."""
    sum_u, sum_uy, sum_v, sum_vy = partial
    axis_x, axis_y = axes
    half_x, _, ratio_x, pitch_x, _, _ = axis_x
    half_y, _, ratio_y, pitch_y, _, _ = axis_y
    tl.store(block, tl.sum(sum_u * x) * ratio_x)
    tl.store(block + STRIDE_COLUMN, tl.sum(sum_uy) * (pitch_y * half_x))
    tl.store(block + 2 * STRIDE_COLUMN, tl.sum(sum_u) * half_x)
    tl.store(block + STRIDE_ROW, tl.sum(sum_v * x) * (pitch_x * half_y))
    tl.store(block + STRIDE_ROW + STRIDE_COLUMN, tl.sum(sum_vy) * ratio_y)
    tl.store(block + STRIDE_ROW + 2 * STRIDE_COLUMN, tl.sum(sum_v) * half_y)


@jit
def affine_store(partial, state, d_theta, x, axes):
    """A (2, 3) block per program."""
    store_affine(partial, d_theta + tl.program_id(0).to(tl.int64) * 6, 3, 1, x, axes)


# --- host -------------------------------------------------------------------------------------------------


class Affine(Transform):
    """theta (N, 2, 3): the rows of an affine map of (x, y, 1)."""

    name = "affine"
    layout = "(N, 2, 3)"
    load, source, monotone = affine_load, affine_source, True
    inverse, box, extent = affine_inverse, affine_box, affine_extent
    start, adjoint, store = affine_start, affine_adjoint, affine_store

    def parameter_shape(self, size):
        return (2, 3)

    def identity(self, size=(1, 1), *, align_corners=False, dtype=None, device=None):
        return torch.eye(2, 3, dtype=dtype, device=device)

    def grid_of(self, theta, size, align_corners=False):
        return forms_over_grid(theta, size, align_corners)

    def bounded_grid(self, theta, size, align_corners=False):
        return bounded_forms_over_grid(theta, size, align_corners) if is_bounded(theta) else None

    def points_of(self, theta, xy, align_corners=False):
        return forms_at(theta[..., None], *xy.unbind(-1))

    def partials_shape(self, batch, size, blocks):
        return (batch, blocks.per_sample, 6)

    def sum_partials(self, partials):
        return partials.sum(1, dtype=torch.float64).unflatten(1, (2, 3))
