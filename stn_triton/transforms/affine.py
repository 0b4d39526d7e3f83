"""Affine: (u, v) = theta (x, y, 1), eq. 1 of the paper."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..kernels.language import constexpr, jit, tl
from ..torch_sampler import is_bounded
from .base import Transform, narrowed, normalised, target_axis, widened

# --- device: theta folded into a map of pixels, coefficients of (x, y, 1) counted from the centres ------------


@jit
def affine_load(theta, stride_0, stride_1, stride_2, axes, ACC: constexpr, INDEX: constexpr):
    """The six coefficients of the map from centred target pixels to source pixels.

    The diagonal is theta times the ratio of sizes, exactly theta at equal sizes, so that the identity gives
    every pixel its own centre without rounding.
    """
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
    return u, v, live & (tl.abs(u) < float("inf")) & (tl.abs(v) < float("inf"))


@jit
def affine_start(shape: constexpr, ACC: constexpr):
    """Four sums per lane; x stays the same on a program's way down the rows, so it comes in at the end."""
    zero = tl.zeros(shape, ACC)
    return zero, zero, zero, zero


@jit
def affine_adjoint(partial, d_theta, sample, row, column, live, y, sizes, d_u, d_v, axes):
    """Adds a tile's d_u, d_u y, d_v, d_v y."""
    sum_u, sum_uy, sum_v, sum_vy = partial
    return sum_u + d_u, tl.fma(d_u, y, sum_uy), sum_v + d_v, tl.fma(d_v, y, sum_vy)


@jit
def affine_store(partial, d_theta, x, axes):
    """d_theta = sum over pixels of (d_u, d_v)ᵀ (x, y, 1), a (2, 3) block per program."""
    sum_u, sum_uy, sum_v, sum_vy = partial
    axis_x, axis_y = axes
    half_x, _, ratio_x, pitch_x, _, _ = axis_x
    half_y, _, ratio_y, pitch_y, _, _ = axis_y
    block = d_theta + tl.program_id(0).to(tl.int64) * 6
    tl.store(block, tl.sum(sum_u * x) * ratio_x)
    tl.store(block + 1, tl.sum(sum_uy) * (pitch_y * half_x))
    tl.store(block + 2, tl.sum(sum_u) * half_x)
    tl.store(block + 3, tl.sum(sum_v * x) * (pitch_x * half_y))
    tl.store(block + 4, tl.sum(sum_vy) * ratio_y)
    tl.store(block + 5, tl.sum(sum_v) * half_y)


#: h + w up to which an output's bases are kept, at most half a megabyte of them; sums serve beyond.
LONGEST_BASES = 4096

# --- host -------------------------------------------------------------------------------------------------


class Affine(Transform):
    """theta (N, 2, 3): the rows of an affine map of (x, y, 1)."""

    name = "affine"
    layout = "(N, 2, 3)"
    load, source, monotone = affine_load, affine_source, True
    start, adjoint, store = affine_start, affine_adjoint, affine_store

    def parameter_shape(self, size):
        return (2, 3)

    def identity(self, size=(1, 1), *, align_corners=False, dtype=None, device=None):
        return torch.eye(2, 3, dtype=dtype, device=device)

    def grid(self, theta, size, align_corners=False):
        self.check_theta(theta, size)
        if theta.element_size() < 4:  # a half type: computed in float32, rounded once
            return self.grid(theta.float(), size, align_corners).to(theta.dtype)
        run = self.bounded_grid if is_bounded(theta) else _grid_by_sums
        return run(theta, size, align_corners)

    def bounded_grid(self, theta, size, align_corners=False):
        by_products = sum(size) <= LONGEST_BASES and _products_are_exact(theta.device)
        return (_grid_by_products if by_products else _grid_by_sums)(theta, size, align_corners)

    def points(self, theta, xy, align_corners=False):
        self.check_theta(theta, (1, 1))
        theta, wide_xy = widened(theta, xy)
        return narrowed(_map(theta[..., None], *wide_xy.unbind(-1)), xy)

    def partials_shape(self, batch, channel_blocks, tiles, size):
        return (batch, channel_blocks * tiles, 6)

    def sum_partials(self, partials):
        return partials.sum(1).unflatten(1, (2, 3))


def _map(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(u, v) along a new last axis, from rows (N, 2, 3, ...) by broadcasting."""
    return torch.stack([a * x + (b * y + c) for a, b, c in (row.unbind(1) for row in theta.unbind(1))], -1)


def _grid_by_sums(theta: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """The grid by broadcasting: exact under any setting, on any device, for any theta."""
    h, w = size
    x = target_axis(w, align_corners, theta)
    y = target_axis(h, align_corners, theta)[:, None]
    return _map(theta[..., None, None], x, y)


def _products_are_exact(device: torch.device) -> bool:
    """Whether matrix products are not computed in reduced precision (TF32, bfloat16, autocast); unknown off the CPU."""
    if device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return precision in ("none", "ieee")


def _grid_by_products(theta: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """The grid as T = M_theta B with B separable: two thin products, the fastest form on a CPU, both ways.

    Of bounded parameters only: the zeros in the bases make NaN of an infinity.
    """
    batch, (h, w) = theta.shape[0], size
    rows, columns = _bases(h, w, align_corners, theta.dtype)
    by_row = torch.mm(theta.reshape(batch, 6), torch.from_numpy(rows))  # (a, b y + c, d, e y + f) of each row
    return torch.mm(by_row.view(batch * h, 4), torch.from_numpy(columns)).view(batch, h, w, 2)


@lru_cache(maxsize=64)
def _bases(h: int, w: int, align_corners: bool, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(6, 4h): theta to each row's coefficients; (4, 2w): those to the row's points.

    Kept as numpy arrays, since a tensor made under inference mode could not be used outside it.
    """
    number = np.float64 if dtype == torch.float64 else np.float32
    x, y = (normalised(np.arange(n, dtype=number), n, align_corners) for n in (w, h))
    rows = np.zeros((2, 3, h, 2, 2), number)
    columns = np.zeros((2, 2, w, 2), number)
    for r in range(2):
        rows[r, 0, :, r, 0] = 1
        rows[r, 1, :, r, 1] = y
        rows[r, 2, :, r, 1] = 1
        columns[r, 0, :, r] = x
        columns[r, 1, :, r] = 1
    return rows.reshape(6, 4 * h), columns.reshape(4, 2 * w)
