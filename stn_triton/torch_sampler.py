"""torch's own sampler, made safe for any grid.

On the CPU it answers non-finite grids with NaN or a crash (https://github.com/pytorch/pytorch/issues/24823), so it
is only ever given bounded ones here.
"""

from __future__ import annotations

import torch
from torch import Tensor

# torch's own numbering
MODES = {"bilinear": 0, "nearest": 1}
PADDING_MODES = {"zeros": 0, "border": 1, "reflection": 2}

# Normalised coordinates within this bound stay finite as pixels of any image, sums of a few of them as well.
BOUND = 1e9


def sample(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """`torch.nn.functional.grid_sample` (N, C, h, w) of one dtype, by the table in `stn_triton.reference`."""
    if is_bounded(grid):
        return sample_bounded(image, grid, mode, padding_mode, align_corners)
    infinity = -1.0 if padding_mode == "reflection" else BOUND
    clean = grid.nan_to_num(nan=-1.0, posinf=infinity, neginf=-abs(infinity)).clamp(-BOUND, BOUND)
    out = sample_bounded(image, clean, mode, padding_mode, align_corners)
    # As pixels, since an infinite coordinate of a one-pixel axis is 0 * inf: unknown.
    pixels = [u * (n - 1 if align_corners else n) for u, n in zip(grid.unbind(-1), image.shape[:1:-1], strict=True)]
    x_known, y_known = (~t.isnan() if padding_mode == "border" else t.isfinite() for t in pixels)
    known = (x_known & y_known)[:, None]
    return torch.where(known, out, 0 if padding_mode == "zeros" else out.detach())


def sample_bounded(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """`sample` of a grid within `BOUND`."""
    return torch.grid_sampler(image, grid, MODES[mode], PADDING_MODES[padding_mode], align_corners)


def is_bounded(values: Tensor) -> bool:
    """Whether all values lie within `BOUND`. Off the CPU, where asking would synchronise, the answer is no."""
    if values.device.type != "cpu":
        return False
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values.detach())  # NaN if there is one
    return float(low) > -BOUND and float(high) < BOUND
