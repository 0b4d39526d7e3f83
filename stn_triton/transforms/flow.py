"""Flow: (u, v) = (x, y) + theta, a displacement for every target pixel, as optical flow and registration have it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..checks import check_bool, check_size
from ..kernels.language import constexpr, jit, tl
from ..torch_sampler import is_bounded
from .base import target_points
from .dense import Dense, interpolated

#: Target pixels up to which their points are kept, of the 16 sizes used last: up to 8 MiB of float32.
MOST_KEPT = 2**16

# --- device: the identity in pixels, exact at equal sizes, and the stored displacement times its unit ------------


@jit
def flow_state(theta, stride_row, stride_column, stride_axis, axes, PIXELS: constexpr, INDEX: constexpr):
    """Where this sample's displacements lie, and how many pixels one of them is; nothing is read yet."""
    axis_x, axis_y = axes
    half_x, half_y = axis_x[0], axis_y[0]
    if PIXELS:  # 0 on an axis without extent, as everywhere
        half_x, half_y = (
            tl.where(half_x > 0, 1.0, 0.0).to(half_x.dtype),
            tl.where(half_y > 0, 1.0, 0.0).to(half_x.dtype),
        )
    return theta, stride_row.to(INDEX), stride_column.to(INDEX), stride_axis.to(INDEX), half_x, half_y


@jit
def flow_load(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """Of (h, w, 2), normalised."""
    return flow_state(theta, strides[0], strides[1], strides[2], axes, False, INDEX)


@jit
def flow_load_pixels(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """Of (h, w, 2), in pixels."""
    return flow_state(theta, strides[0], strides[1], strides[2], axes, True, INDEX)


@jit
def flow_load_first(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """Of (2, h, w), normalised."""
    return flow_state(theta, strides[1], strides[2], strides[0], axes, False, INDEX)


@jit
def flow_load_first_pixels(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """Of (2, h, w), in pixels."""
    return flow_state(theta, strides[1], strides[2], strides[0], axes, True, INDEX)


@jit
def flow_source(state, row, column, live, x, y, axes):
    """The displaced point, in pixels; where the displacement is not finite it reads nothing.

    A finite one may be inf in pixels: as far outside as any, to the padding rules.
    """
    theta, stride_row, stride_column, stride_axis, unit_x, unit_y = state
    axis_x, axis_y = axes
    _, centre_x, ratio_x, _, _, _ = axis_x
    _, centre_y, ratio_y, _, _, _ = axis_y
    point = theta + row.to(stride_row.dtype) * stride_row + column.to(stride_row.dtype) * stride_column
    d_x = tl.load(point, mask=live, other=0.0).to(unit_x.dtype)
    d_y = tl.load(point + stride_axis, mask=live, other=0.0).to(unit_x.dtype)
    u = tl.fma(d_x, unit_x, tl.fma(ratio_x, x, centre_x))
    v = tl.fma(d_y, unit_y, tl.fma(ratio_y, y, centre_y))
    return u, v, live & (tl.fma(d_x, 0.0, d_y * 0.0) == 0)  # 0 of finite ones alone: one comparison for both


@jit
def flow_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
    """Stores a tile's gradients in their places of (h, w, 2), one set for every block of channels."""
    h, w, _, _ = sizes
    point = d_theta + ((part * h + row) * w + column) * 2
    tl.store(point, d_u * state[4], mask=live)
    tl.store(point + 1, d_v * state[5], mask=live)
    return partial


@jit
def flow_adjoint_first(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
    """The same in places of (2, h, w)."""
    h, w, _, _ = sizes
    tl.store(d_theta + (part * 2 * h + row) * w + column, d_u * state[4], mask=live)
    tl.store(d_theta + ((part * 2 + 1) * h + row) * w + column, d_v * state[5], mask=live)
    return partial


# --- host -------------------------------------------------------------------------------------------------

LOADS = {
    (False, False): flow_load,
    (False, True): flow_load_pixels,
    (True, False): flow_load_first,
    (True, True): flow_load_first_pixels,
}


class Flow(Dense):
    """theta (N, h, w, 2) or (N, 2, h, w): displacements (x, y) from target to source points.

    Args:
        channels_first: theta is (N, 2, h, w), as networks give it.
        image_size: (H, W) of the image, if displacements are in its pixels; None if in normalised coordinates. An axis
            of one pixel has no extent under align_corners, and displacements along it do nothing.
    """

    name = "flow"
    padding_answers_nonfinite = False
    source = flow_source

    def __init__(self, *, channels_first: bool = False, image_size: tuple[int, int] | None = None) -> None:
        self.channels_first = check_bool("channels_first", channels_first)
        self.image_size = None if image_size is None else check_size(image_size, "image_size", 1)
        self.layout = "(N, 2, h, w)" if self.channels_first else Dense.layout

    @property
    def load(self):  # not kept: objects are copied and pickled, Triton's functions cannot be
        return LOADS[self.channels_first, self.image_size is not None]

    @property
    def adjoint(self):
        return flow_adjoint_first if self.channels_first else flow_adjoint

    def __repr__(self) -> str:
        return f"Flow(channels_first={self.channels_first}, image_size={self.image_size})"

    def settings(self):
        return self.channels_first, self.image_size

    def parameter_shape(self, size):
        return (2, *size) if self.channels_first else (*size, 2)

    def identity(self, size, *, align_corners=False, dtype=None, device=None):
        return torch.zeros(self.parameter_shape(size), dtype=dtype, device=device)

    def size_of(self, theta):
        return (1, 1, *theta.shape)[-2:] if self.channels_first else super().size_of(theta)

    def grid_of(self, theta, size, align_corners=False):
        field = self._field(theta)
        if self.image_size is not None:
            # In normalised coordinates a displacement may be twice as large: a finite one stays finite.
            most = torch.finfo(field.dtype).max / 2
            field = torch.where(field.isfinite(), field.clamp(-most, most), field)
        return self._displaced(target_points(size, align_corners, theta), field, align_corners)

    def bounded_grid(self, theta, size, align_corners=False):
        if not is_bounded(theta):
            return None
        few = size[0] * size[1] <= MOST_KEPT
        points = _kept_points(size, align_corners, theta.dtype) if few else target_points(size, align_corners, theta)
        return self._displaced(points, self._field(theta), align_corners)

    def points_of(self, theta, xy, align_corners=False):
        """Displacements between the stored ones are interpolated; beyond the outermost they stay."""
        return self._displaced(xy, interpolated(self._field(theta), xy, align_corners), align_corners)

    def _field(self, theta: Tensor) -> Tensor:
        """(N, h, w, 2)."""
        return theta.movedim(1, -1) if self.channels_first else theta

    def _displaced(self, points: Tensor, displacements: Tensor, align_corners: bool) -> Tensor:
        """Normalised points (..., P, 2) displaced by as many (N, ..., P, 2) in the flow's own unit."""
        if self.image_size is None:
            return points + displacements
        # By halves of the extent, exact: twice a finite displacement may be inf. One of each for every point of a row,
        # since torch would broadcast two numbers at a time.
        row = points.shape[-2:-1]
        halves = [points.new_full(row, (n - int(align_corners) or 2) / 2) for n in self.image_size[::-1]]
        return torch.addcdiv(points, displacements, torch.stack(halves, -1))


@lru_cache(maxsize=16)
def _kept_points(size: tuple[int, int], align_corners: bool, dtype: torch.dtype) -> Tensor:
    """`target_points` on the CPU, not to be changed."""
    return target_points(size, align_corners, torch.empty(0, dtype=dtype, device="cpu"))
