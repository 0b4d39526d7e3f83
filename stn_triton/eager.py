"""The warp in torch operations, for tensors that no kernel takes: CPU tensors above all.

Same semantics as the kernels: float32 inside for half types, and 0 where a transform gives no finite point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .layout import memory_format
from .torch_sampler import bound, sample, sample_bounded

if TYPE_CHECKING:
    from .spec import WarpSpec


def warp(spec: WarpSpec, image: Tensor, theta: Tensor) -> Tensor:
    """The warped image, differentiable in both tensors, in the image's dtype and memory format."""
    many = () if spec.transforms is None else (spec.transforms,)
    shape = (image.shape[0], *many, image.shape[1], *spec.size)
    if 0 in shape:
        return ((image.sum() + theta.sum()) * 0).to(image.dtype).expand(shape)
    if many:
        one = spec._replace(transforms=None)
        outs = [warp(one, image, each) for each in theta.unbind(1)]
        if memory_format(image.shape, image.stride()) is torch.contiguous_format:
            return torch.stack(outs, 1)
        return torch.stack([out.movedim(1, -1) for out in outs], 1).movedim(-1, 2)
    # Calls that would do nothing are left out: on small images they are what the time goes into.
    wide = image.float() if image.element_size() < 4 else image
    if theta.dtype != wide.dtype:
        theta = theta.to(wide.dtype)
    grid = spec.transform.bounded_grid(theta, spec.size, spec.align_corners)
    bounded = grid is not None
    if grid is None:
        grid = spec.transform.grid_of(theta, spec.size, spec.align_corners)
    if grid.shape[0] != image.shape[0]:
        grid = grid.expand(image.shape[0], -1, -1, -1)
    options = spec.mode, spec.padding_mode, spec.align_corners
    if bounded:
        out = sample_bounded(wide, grid, *options)
    elif spec.transform.padding_answers_nonfinite:
        out = sample(wide, grid, *options)
    else:
        far = bound(grid.dtype)
        finite = grid.isfinite().all(-1)
        grid = torch.where(finite[..., None], grid, 0).clamp(-far, far)
        out = torch.where(finite[:, None], sample_bounded(wide, grid, *options), 0)
    layout = memory_format(image.shape, image.stride())
    if out.dtype == image.dtype and layout is torch.contiguous_format:
        return out
    return out.to(image.dtype, memory_format=layout)
