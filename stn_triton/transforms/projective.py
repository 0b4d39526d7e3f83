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

from ..kernels.coordinates import finite, largest, smallest
from ..kernels.language import constexpr, jit, tl
from ..kernels.preimage import LARGEST, determinant, pixels_in, slack_of
from ..torch_sampler import bound, is_bounded
from .base import Transform
from .homogeneous import LONGEST_BASES, forms_at, forms_over_grid, planar_bases
from .products import exact_product, products_are_exact

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
    """(p / r, q / r, 1 / r), NaN behind the camera; the quotients in pixels from the image's centre."""
    a, b, c, d, e, f, g, h, i, _, horizon = state
    p = tl.fma(a, x, tl.fma(b, y, c))
    q = tl.fma(d, x, tl.fma(e, y, f))
    r = tl.fma(g, x, tl.fma(h, y, i))
    front = r > horizon
    inverse = 1.0 / tl.where(front, r, 1.0)
    inverse = tl.fma(inverse, tl.fma(-r, inverse, 1.0), inverse)  # GPUs approximate it; of 1 it must be 1
    inverse = tl.where(front, inverse, float("nan"))
    return p * inverse, q * inverse, inverse


@jit
def projective_source(state, row, column, live, x, y, axes):
    """The projected point, in pixels; behind the camera, and where it is not finite, it reads nothing."""
    axis_x, axis_y = axes
    _, centre_x, _, _, _, _ = axis_x
    _, centre_y, _, _, _, _ = axis_y
    u, v, _ = project(state, x, y)
    u, v = u + centre_x, v + centre_y
    return u, v, finite(live, u, v)


@jit
def projective_inverse(state, sizes, axes, RADIUS_X: constexpr, RADIUS_Y: constexpr, ACC: constexpr):
    """The inverse matrix, (x, y, 1) / r = inverse (j - centre_x, i - centre_y, 1), by cofactors; and boxes' margins.

    There are boxes if 1 / r is positive, and varies by less than a thousand, over the image and a border of a pixel
    more than boxes reach: then no horizon crosses it, and no point behind the camera is mapped to it.
    """
    a, b, c, d, e, f, g, h, i, _, _ = state
    target_h, target_w, H, W = sizes[0].to(ACC), sizes[1].to(ACC), sizes[2].to(ACC), sizes[3].to(ACC)
    axis_x, axis_y = axes
    slack = slack_of(ACC)
    x_by_u, x_by_v, x_by_1 = determinant(e, f, h, i), determinant(c, b, i, h), determinant(b, c, e, f)
    y_by_u, y_by_v, y_by_1 = determinant(f, d, i, g), determinant(a, c, g, i), determinant(c, a, f, d)
    r_by_u, r_by_v, r_by_1 = determinant(d, e, g, h), determinant(b, a, h, g), determinant(a, b, d, e)
    det = a * x_by_u + b * y_by_u + c * r_by_u
    certain = tl.abs(det) > 8 * slack * (tl.abs(a * x_by_u) + tl.abs(b * y_by_u) + tl.abs(c * r_by_u))
    regular = certain & (tl.abs(det) * LARGEST * LARGEST > 1)
    scale = 1.0 / tl.where(regular, det, 1.0)
    x_by_u, x_by_v, x_by_1 = x_by_u * scale, x_by_v * scale, x_by_1 * scale
    y_by_u, y_by_v, y_by_1 = y_by_u * scale, y_by_v * scale, y_by_1 * scale
    r_by_u, r_by_v, r_by_1 = r_by_u * scale, r_by_v * scale, r_by_1 * scale
    below = RADIUS_Y - RADIUS_X  # that far below the image the middle of a lane's pixels can lie
    far_u, far_v = axis_x[1] + (RADIUS_X + 1), axis_y[1] + (RADIUS_Y + 1 + below)
    spread = tl.abs(r_by_u) * far_u + tl.abs(r_by_v) * far_v
    least, most = r_by_1 - spread, r_by_1 + spread
    regular = regular & (least * 1000 > most)
    least = tl.where(regular, least, 1.0)
    # By how much a point's u and v may be rounded, where they are in the image; and the inverse's x and y.
    terms_r = tl.abs(g) * target_w + tl.abs(h) * target_h + tl.abs(i)
    terms_u = (tl.abs(a) * target_w + tl.abs(b) * target_h + tl.abs(c) + terms_r * far_u) * most + W
    terms_v = (tl.abs(d) * target_w + tl.abs(e) * target_h + tl.abs(f) + terms_r * far_v) * most + H
    terms_x = (tl.abs(x_by_u) * far_u + tl.abs(x_by_v) * far_v + tl.abs(x_by_1) + target_w * most) / least + target_w
    terms_y = (tl.abs(y_by_u) * far_u + tl.abs(y_by_v) * far_v + tl.abs(y_by_1) + target_h * most) / least + target_h
    regular = regular & (terms_u * slack < 1) & (terms_v * slack < 1) & (terms_x < LARGEST) & (terms_y < LARGEST)
    reach_u, reach_v = tl.fma(terms_u, slack, RADIUS_X), tl.fma(terms_v, slack, RADIUS_Y)
    margin_x, margin_y = terms_x * slack, terms_y * slack
    # d x / d u = (x_by_u - x r_by_u) r, and |x| is half the output's width at most where it matters.
    half_w, half_h = target_w * 0.5, target_h * 0.5
    by_reach_x = tl.fma(tl.abs(r_by_u), half_w, tl.abs(x_by_u)) * reach_u
    by_reach_x += tl.fma(tl.abs(r_by_v), half_w, tl.abs(x_by_v)) * reach_v
    by_reach_y = tl.fma(tl.abs(r_by_u), half_h, tl.abs(y_by_u)) * reach_u
    by_reach_y += tl.fma(tl.abs(r_by_v), half_h, tl.abs(y_by_v)) * reach_v
    width, height = 2 * (by_reach_x / least + margin_x), 2 * (by_reach_y / least + margin_y)
    candidates = tl.where(regular, pixels_in(width, target_w, ACC) * pixels_in(height, target_h, ACC), float("inf"))
    # Without boxes, numbers that nobody divides by zero with.
    of_r = tl.where(regular, r_by_u, 0.0), tl.where(regular, r_by_v, 0.0), tl.where(regular, r_by_1, 1.0)
    rows = (x_by_u, x_by_v, x_by_1), (y_by_u, y_by_v, y_by_1), of_r
    centres = axis_x[1], axis_y[1]
    return (rows, centres, (reach_u, reach_v), (margin_x, margin_y), (by_reach_x, by_reach_y)), candidates


@jit
def form_at_corners(row, u, v, reach):
    """A row of the inverse matrix at the four corners about (u, v)."""
    by_u, by_v, by_1 = row
    middle = tl.fma(by_u, u, tl.fma(by_v, v, by_1))
    along_u, along_v = by_u * reach[0], by_v * reach[1]
    left, right = middle - along_u, middle + along_u
    return left - along_v, left + along_v, right - along_v, right + along_v


@jit
def projective_box(numbers, column, row):
    """Between the preimages of the four corners about the pixel: lines stay lines."""
    rows, centres, reach, margin, _ = numbers
    u, v = column - centres[0], row - centres[1]
    x0, x1, x2, x3 = form_at_corners(rows[0], u, v, reach)
    y0, y1, y2, y3 = form_at_corners(rows[1], u, v, reach)
    r0, r1, r2, r3 = form_at_corners(rows[2], u, v, reach)
    r0, r1, r2, r3 = 1.0 / r0, 1.0 / r1, 1.0 / r2, 1.0 / r3
    x0, x1, x2, x3 = x0 * r0, x1 * r1, x2 * r2, x3 * r3
    y0, y1, y2, y3 = y0 * r0, y1 * r1, y2 * r2, y3 * r3
    return (
        smallest(x0, x1, x2, x3) - margin[0], largest(x0, x1, x2, x3) + margin[0],
        smallest(y0, y1, y2, y3) - margin[1], largest(y0, y1, y2, y3) + margin[1],
    )  # fmt: skip


@jit
def projective_extent(numbers, first_column, last_column, first_row, last_row):
    """As at the nearest point of the pixels and what their samplers reach, where 1 / r is least."""
    rows, centres, reach, margin, by_reach = numbers
    by_u, by_v, by_1 = rows[2]
    far_u, near_u = last_column - centres[0] + reach[0], first_column - centres[0] - reach[0]
    far_v, near_v = last_row - centres[1] + reach[1], first_row - centres[1] - reach[1]
    least = tl.minimum(by_u * near_u, by_u * far_u) + tl.minimum(by_v * near_v, by_v * far_v) + by_1
    return 2 * (by_reach[0] / least + margin[0]), 2 * (by_reach[1] / least + margin[1])


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
    u, v, inverse = project(state, x, y)
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
    inverse, box, extent = projective_inverse, projective_box, projective_extent
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
        return partials.sum(1, dtype=torch.float64)


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
        of_rows = [exact_product(d.reshape(-1, d.shape[-1]), by_column.T).view(d.shape[0], -1) for d in (d_p, d_q, d_r)]
        return exact_product(torch.stack(of_rows, 1), by_row.T), None, None


def _planes(rows: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """p, q and r, (N, 3, h, w)."""
    of_rows = exact_product(rows.reshape(-1, 3), by_row)
    return exact_product(of_rows.view(-1, 2), by_column).view(rows.shape[0], 3, -1, by_column.shape[1])


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
