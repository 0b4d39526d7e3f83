"""Dense: the source points themselves, one per target pixel. `grid_sample` is the warp by this transform."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.language import constexpr, jit, tl
from ..torch_sampler import sample
from .base import Transform, target_points

# --- device -----------------------------------------------------------------------------------------------


@jit
def dense_load(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """Where this sample's points lie: nothing is read yet."""
    stride_row, stride_column, stride_axis = strides
    return theta, stride_row.to(INDEX), stride_column.to(INDEX), stride_axis.to(INDEX)


@jit
def dense_source(state, row, column, live, x, y, axes):
    """The stored (u, v) in pixels. What a non-finite one reads is the padding rule's to say."""
    theta, stride_row, stride_column, stride_axis = state
    axis_x, axis_y = axes
    half_x, centre_x, _, _, _, _ = axis_x
    half_y, centre_y, _, _, _, _ = axis_y
    point = theta + row.to(stride_row.dtype) * stride_row + column.to(stride_row.dtype) * stride_column
    u = tl.load(point, mask=live, other=0.0).to(half_x.dtype)
    v = tl.load(point + stride_axis, mask=live, other=0.0).to(half_x.dtype)
    return tl.fma(u, half_x, centre_x), tl.fma(v, half_y, centre_y), live


@jit
def dense_start(state, d_theta, part, row, rows, column, sizes, ACC: constexpr):
    """Nothing to sum: every pixel has its own two parameters. (Triton's loops carry no empty tuple.)"""
    return tl.full([], 0, ACC)


@jit
def dense_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
    """Stores a tile's gradients in their places, one set for every block of channels."""
    axis_x, axis_y = axes
    half_x, _, _, _, _, _ = axis_x
    half_y, _, _, _, _, _ = axis_y
    h, w, _, _ = sizes
    point = d_theta + ((part * h + row) * w + column) * 2
    tl.store(point, d_u * half_x, mask=live)
    tl.store(point + 1, d_v * half_y, mask=live)
    return partial


@jit
def dense_store(partial, state, d_theta, x, axes):
    """Nothing is left to store."""


# --- host -------------------------------------------------------------------------------------------------


class Dense(Transform):
    """theta (N, h, w, 2): source points (u, v), normalised, of every target pixel."""

    name = "dense"
    layout = "(N, h, w, 2)"
    padding_answers_nonfinite = True
    load, source = dense_load, dense_source
    start, adjoint, store = dense_start, dense_adjoint, dense_store

    def parameter_shape(self, size):
        return (*size, 2)

    def identity(self, size, *, align_corners=False, dtype=None, device=None):
        like = torch.empty(0, dtype=dtype, device=device)
        return target_points(size, align_corners, like)

    def size_of(self, theta):
        return (1, 1, 1, *theta.shape)[-3:-1]

    def grid_of(self, theta, size, align_corners=False):
        return theta

    def points_of(self, theta, xy, align_corners=False):
        """Source points between the stored ones are interpolated; beyond the outermost they stay."""
        return interpolated(theta, xy, align_corners)

    def partials_shape(self, batch, size, blocks):
        return (batch, blocks.channel_blocks[0], *self.parameter_shape(size))

    def sum_partials(self, partials):
        return partials.squeeze(1) if partials.shape[1] == 1 else partials.sum(1)


def interpolated(field: Tensor, xy: Tensor, align_corners: bool) -> Tensor:
    """The vectors of a field (N, h, w, 2) at points xy, (P, 2) or (N, P, 2); beyond its outermost pixels theirs."""
    at = xy.expand(field.shape[0], 1, -1, -1) if xy.dim() == 2 else xy.unsqueeze(1)
    vectors = sample(field.movedim(-1, 1), at, "bilinear", "border", align_corners)
    return vectors.squeeze(2).movedim(1, -1)
