"""Projective: (u, v) = (p, q) / r with (p, q, r) = theta (x, y, 1), the paper's plane projective transformation.

A homography and its negative are one map, so theta is taken with the sign that makes its last entry positive: the
middle of the output is in front of the camera. A point with r <= 1e-6 (|theta_31| + |theta_32| + |theta_33|), or not
above 1e-18, lies behind it or on the horizon: it has no source, reads nothing and gets no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..kernels.coordinates import finite
from ..kernels.language import constexpr, jit, tl
from ..torch_sampler import bound, is_bounded
from .base import Transform
from .homogeneous import LONGEST_BASES, forms_at, forms_over_grid, planar_bases
from .products import products_are_exact

#: A denominator r lies behind the camera up to this share of the last row, |theta_31| + |theta_32| + |theta_33|,
HORIZON = 1e-6
#: and up to this in any case, where the square of 1 / r is no float32.
LEAST = 1e-18

# --- device: numerators in pixels from the image's centre, so that the identity divides what is exact by 1 -------


@jit
def projective_state(a, b, c, d, e, f, g, h, i, axes):
    """The nine coefficients of forms of centred target pixels, theta's sign, and where the horizon lies."""
    axis_x, axis_y = axes
    half_x, _, ratio_x, pitch_x, _, _ = axis_x
    half_y, _, ratio_y, pitch_y, _, _ = axis_y
    sign = tl.where(i < 0, -1.0, 1.0).to(half_x.dtype)
    horizon = tl.maximum((tl.abs(g) + tl.abs(h) + tl.abs(i)) * 1e-6, 1e-18)  # `HORIZON`, `LEAST`
    return (
        sign * a * ratio_x, sign * b * (pitch_y * half_x), sign * c * half_x,
        sign * d * (pitch_x * half_y), sign * e * ratio_y, sign * f * half_y,
        sign * g * pitch_x, sign * h * pitch_y, sign * i, sign, horizon,
    )  # fmt: skip


@jit
def homography_load(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """Of a matrix, (3, 3)."""
    stride_0, stride_1, _ = strides
    row_1, row_2 = theta + stride_0, theta + 2 * stride_0
    return projective_state(
        tl.load(theta).to(ACC), tl.load(theta + stride_1).to(ACC), tl.load(theta + 2 * stride_1).to(ACC),
        tl.load(row_1).to(ACC), tl.load(row_1 + stride_1).to(ACC), tl.load(row_1 + 2 * stride_1).to(ACC),
        tl.load(row_2).to(ACC), tl.load(row_2 + stride_1).to(ACC), tl.load(row_2 + 2 * stride_1).to(ACC),
        axes,
    )  # fmt: skip


@jit
def projective_load(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """Of the first eight entries: the ninth is 1."""
    stride_0, _, _ = strides
    return projective_state(
        tl.load(theta).to(ACC), tl.load(theta + stride_0).to(ACC), tl.load(theta + 2 * stride_0).to(ACC),
        tl.load(theta + 3 * stride_0).to(ACC), tl.load(theta + 4 * stride_0).to(ACC),
        tl.load(theta + 5 * stride_0).to(ACC), tl.load(theta + 6 * stride_0).to(ACC),
        tl.load(theta + 7 * stride_0).to(ACC), tl.full([], 1, ACC),
        axes,
    )  # fmt: skip


@jit
def project(state, x, y):
    """(p / r, q / r, 1 / r, whether in front of the camera): the quotients in pixels from the image's centre."""
    a, b, c, d, e, f, g, h, i, _, horizon = state
    p = tl.fma(a, x, tl.fma(b, y, c))
    q = tl.fma(d, x, tl.fma(e, y, f))
    r = tl.fma(g, x, tl.fma(h, y, i))
    front = r > horizon
    r = tl.where(front, r, 1.0)
    inverse = 1.0 / r
    inverse = tl.fma(inverse, tl.fma(-r, inverse, 1.0), inverse)  # GPUs approximate it; of 1 it must be 1
    return p * inverse, q * inverse, inverse, front


@jit
def projective_source(state, row, column, live, x, y, axes):
    """The projected point, in pixels; behind the camera, and where it is not finite, it reads nothing."""
    axis_x, axis_y = axes
    _, centre_x, _, _, _, _ = axis_x
    _, centre_y, _, _, _, _ = axis_y
    u, v, _, front = project(state, x, y)
    u, v = u + centre_x, v + centre_y
    return u, v, finite(live & front, u, v)


@jit
def projective_start(state, d_theta, part, row, rows, column, sizes, ACC: constexpr):
    """Six sums per lane, since x stays the same on its way down the rows."""
    zero = tl.zeros(column.shape, ACC)
    return zero, zero, zero, zero, zero, zero


@jit
def projective_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
    """Adds a tile's d_p, d_q, d_r and their products with y: d_p = d_u / r, d_r = -(d_u p + d_v q) / r^2.

    Nothing where a point is so far away that it has lost its place in the image, as on the CPU path.
    """
    sum_p, sum_py, sum_q, sum_qy, sum_r, sum_ry = partial
    u, v, inverse, _ = project(state, x, y)
    far: constexpr = 1e15 if u.dtype == tl.float64 else 1e9  # `torch_sampler.bound`
    near = (tl.abs(u) < far) & (tl.abs(v) < far)
    d_p, d_q = tl.where(near, d_u * inverse, 0.0), tl.where(near, d_v * inverse, 0.0)
    d_r = tl.where(near, -tl.fma(d_p, u, d_q * v), 0.0)
    return (
        sum_p + d_p, tl.fma(d_p, y, sum_py), sum_q + d_q, tl.fma(d_q, y, sum_qy), sum_r + d_r, tl.fma(d_r, y, sum_ry),
    )  # fmt: skip


@jit
def store_eight(block, partial, state, x, axes):
    """d_theta = sum over pixels of (d_p, d_q, d_r)ᵀ (x, y, 1) but for its last entry."""
    sum_p, sum_py, sum_q, sum_qy, sum_r, sum_ry = partial
    sign = state[9]
    axis_x, axis_y = axes
    half_x, _, ratio_x, pitch_x, _, _ = axis_x
    half_y, _, ratio_y, pitch_y, _, _ = axis_y
    tl.store(block, tl.sum(sum_p * x) * (sign * ratio_x))
    tl.store(block + 1, tl.sum(sum_py) * (sign * pitch_y * half_x))
    tl.store(block + 2, tl.sum(sum_p) * (sign * half_x))
    tl.store(block + 3, tl.sum(sum_q * x) * (sign * pitch_x * half_y))
    tl.store(block + 4, tl.sum(sum_qy) * (sign * ratio_y))
    tl.store(block + 5, tl.sum(sum_q) * (sign * half_y))
    tl.store(block + 6, tl.sum(sum_r * x) * (sign * pitch_x))
    tl.store(block + 7, tl.sum(sum_ry) * (sign * pitch_y))


@jit
def homography_store(partial, state, d_theta, x, axes):
    """All nine."""
    block = d_theta + tl.program_id(0).to(tl.int64) * 9
    store_eight(block, partial, state, x, axes)
    tl.store(block + 8, tl.sum(partial[4]) * state[9])


@jit
def projective_store(partial, state, d_theta, x, axes):
    """All but the last."""
    store_eight(d_theta + tl.program_id(0).to(tl.int64) * 8, partial, state, x, axes)


# --- host -------------------------------------------------------------------------------------------------


class Projective(Transform):
    """theta (N, 8), row by row, the ninth entry being 1: as a network predicts it. See `Homography` for matrices."""

    name = "projective"
    layout = "(N, 8)"
    load, source = projective_load, projective_source
    start, adjoint, store = projective_start, projective_adjoint, projective_store

    def parameter_shape(self, size):
        return (8,)

    def identity(self, size=(1, 1), *, align_corners=False, dtype=None, device=None):
        return torch.eye(3, dtype=dtype, device=device).flatten()[:8]

    def matrix(self, theta: Tensor) -> Tensor:
        """(N, 3, 3), with a last entry that is not negative."""
        return torch.cat([theta, torch.ones_like(theta[:, :1])], 1).unflatten(1, (3, 3))

    def grid_of(self, theta, size, align_corners=False):
        """As in the base class; NaN where a point lies behind the camera."""
        rows = self.matrix(theta)
        return _divide(forms_over_grid(rows, size, align_corners), rows[:, None, None])

    def bounded_grid(self, theta, size, align_corners=False):
        rows = self.matrix(theta)
        if not _lies_in_front(rows):
            return None
        if sum(size) > LONGEST_BASES or not products_are_exact(rows.device):
            forms = forms_over_grid(rows, size, align_corners)
            return forms[..., :2] / forms[..., 2:]
        return _Quotients.apply(rows, *planar_bases(size, align_corners, rows.dtype))

    def points_of(self, theta, xy, align_corners=False):
        """As in the base class; NaN where a point lies behind the camera."""
        rows = self.matrix(theta)
        return _divide(forms_at(rows[..., None], *xy.unbind(-1)), rows[:, None])

    def partials_shape(self, batch, size, blocks):
        return (batch, blocks.per_sample, 8)

    def sum_partials(self, partials):
        return partials.sum(1)


class Homography(Projective):
    """theta (N, 3, 3), of either sign and any scale whose denominators exceed `LEAST`: `Projective` for matrices."""

    name = "homography"
    layout = "(N, 3, 3)"
    load, store = homography_load, homography_store

    def parameter_shape(self, size):
        return (3, 3)

    def identity(self, size=(1, 1), *, align_corners=False, dtype=None, device=None):
        return torch.eye(3, dtype=dtype, device=device)

    def matrix(self, theta):
        return torch.where(theta[:, 2:, 2:] < 0, -theta, theta)

    def partials_shape(self, batch, size, blocks):
        return (batch, blocks.per_sample, 9)

    def sum_partials(self, partials):
        return super().sum_partials(partials).unflatten(1, (3, 3))


class _Quotients(Function):
    """(N, h, w, 2) of (p, q) / r over a target grid from rows (N, 3, 3), all in front: half the passes of autograd's.

    d_p = d_u / r, d_q = d_v / r, d_r = -(d_p u + d_q v), and the sums of them and their products with x and y.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        forms = _planes(rows, by_row, by_column)
        inverse = forms[:, 2:].reciprocal_()
        forms[:, :2].mul_(inverse)
        ctx.save_for_backward(rows, by_row, by_column, forms)
        return forms[:, :2].permute(0, 2, 3, 1)

    @staticmethod
    def backward(ctx: Any, d_grid: Tensor) -> tuple[Tensor, None, None]:
        rows, by_row, by_column, forms = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the gradients is asked for
            planes = _planes(rows, by_row, by_column)
            grid = (planes[:, :2] / planes[:, 2:]).permute(0, 2, 3, 1)
            return torch.autograd.grad(grid, rows, d_grid, create_graph=True)[0], None, None
        u, v, inverse = forms.unbind(1)  # nothing in place: many gradients may come at once
        d_p, d_q = d_grid[..., 0] * inverse, d_grid[..., 1] * inverse
        d_r = torch.addcmul(d_p * u, d_q, v).neg()
        of_rows = [torch.mm(d.reshape(-1, d.shape[-1]), by_column.T).view(d.shape[0], -1) for d in (d_p, d_q, d_r)]
        return torch.stack(of_rows, 1) @ by_row.T, None, None


def _planes(rows: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """p, q and r, (N, 3, h, w)."""
    of_rows = torch.mm(rows.reshape(-1, 3), by_row)
    return torch.mm(of_rows.view(-1, 2), by_column).view(rows.shape[0], 3, -1, by_column.shape[1])


def _divide(forms: Tensor, rows: Tensor) -> Tensor:
    """(p, q) / r of forms (..., 3), NaN behind the camera; gradients never meet a division by 0."""
    horizon = (HORIZON * rows[..., 2, :].abs().sum(-1)).clamp(min=LEAST)
    front = ((forms[..., 2] > horizon) & forms.isfinite().all(-1))[..., None]
    safe = torch.where(front, forms, 1)
    return torch.where(front, safe[..., :2] * safe[..., 2:].reciprocal(), torch.nan)


def _lies_in_front(rows: Tensor) -> bool:
    """Whether the whole target square is known to, and to map to a bounded grid; judged without looking at pixels."""
    if not is_bounded(rows):
        return False
    largest = rows.detach().abs().sum(-1)  # of the forms on the square
    least = 2 * rows.detach()[:, 2, 2] - largest[:, 2]  # denominator, at one of its corners
    ahead = (least > 1e3 * (HORIZON * largest[:, 2]).clamp(min=LEAST)) & (largest.amax(-1) < bound(rows.dtype) * least)
    return bool(ahead.all())
