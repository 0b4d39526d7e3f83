"""The warp in torch operations, for tensors that no kernel takes: CPU tensors above all.

Same semantics as the kernels: float32 inside for half types, 0 where a transform gives no finite point, and
non-finite grids answered as PyTorch answers them on CUDA. torch's CPU sampler answers those with NaN or a
crash (https://github.com/pytorch/pytorch/issues/24823), so it is only ever given bounded grids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .layout import memory_format

if TYPE_CHECKING:
    from .spec import WarpSpec

MODES = {"bilinear": 0, "nearest": 1}  # torch's own numbering
PADDING_MODES = {"zeros": 0, "border": 1, "reflection": 2}

# Normalised coordinates within this bound stay finite as pixels of any image, sums of a few of them as well.
BOUND = 1e9


def warp(spec: WarpSpec, image: Tensor, theta: Tensor) -> Tensor:
    """The warped image (N, C, h, w), differentiable in both tensors, in the image's dtype and memory format."""
    shape = (*image.shape[:2], *spec.size)
    if 0 in shape:
        return ((image.sum() + theta.sum()) * 0).to(image.dtype).expand(shape)
    # Calls that would do nothing are left out: on small images they are what the time goes into.
    wide = image.float() if image.element_size() < 4 else image
    if theta.dtype != wide.dtype:
        theta = theta.to(wide.dtype)
    grid = spec.transform.grid(theta, spec.size, spec.align_corners)
    if grid.shape[0] != image.shape[0]:
        grid = grid.expand(image.shape[0], -1, -1, -1)
    options = spec.mode, spec.padding_mode, spec.align_corners
    if _is_bounded(theta):
        out = _torch_sample(wide, grid, *options)
    elif spec.transform.padding_answers_nonfinite:
        out = _sample_any(wide, grid, *options)
    else:
        finite = grid.isfinite().all(-1)
        grid = torch.where(finite[..., None], grid, 0).clamp(-BOUND, BOUND)
        out = torch.where(finite[:, None], _torch_sample(wide, grid, *options), 0)
    layout = memory_format(image)
    if out.dtype == image.dtype and layout is torch.contiguous_format:
        return out
    return out.to(image.dtype, memory_format=layout)


def sample(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """torch's `grid_sample` (N, C, h, w), for any grid."""
    run = _torch_sample if _is_bounded(grid) else _sample_any
    return run(image, grid, mode, padding_mode, align_corners)


def _torch_sample(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    return torch.grid_sampler(image, grid, MODES[mode], PADDING_MODES[padding_mode], align_corners)


def _is_bounded(theta: Tensor) -> bool:
    """Whether no coordinate needs care. Only asked on the CPU, where the answer costs no synchronisation."""
    if theta.device.type != "cpu":
        return False
    values = theta.detach().numpy().ravel()
    with np.errstate(all="ignore"):
        return bool(values @ values < BOUND * BOUND)  # False for NaN


def _sample_any(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """`_torch_sample` of a grid with any coordinates, by the table in `stn_triton.reference`."""
    infinity = -1.0 if padding_mode == "reflection" else BOUND
    clean = grid.nan_to_num(nan=-1.0, posinf=infinity, neginf=-abs(infinity)).clamp(-BOUND, BOUND)
    out = _torch_sample(image, clean, mode, padding_mode, align_corners)
    # As pixels, since an infinite coordinate of a one-pixel axis is 0 * inf: unknown.
    pixels = [u * (n - 1 if align_corners else n) for u, n in zip(grid.unbind(-1), image.shape[:1:-1], strict=True)]
    x_known, y_known = (~t.isnan() if padding_mode == "border" else t.isfinite() for t in pixels)
    known = (x_known & y_known)[:, None]
    return torch.where(known, out, 0 if padding_mode == "zeros" else out.detach())
