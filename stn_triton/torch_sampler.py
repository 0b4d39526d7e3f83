"""torch's own sampler, made safe for any grid, and a single image shared among the threads.

On the CPU it answers non-finite grids with NaN or a crash, so it is only ever given bounded ones here; and it gives
a thread whole samples, so that it would leave one image to one thread.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# torch's own numbering
MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
PADDING_MODES = {"zeros": 0, "border": 1, "reflection": 2}
#: Target pixels from which torch's sampler gives a thread as little as one sample (its grain, in torch 2.13).
ONE_SAMPLE_PER_THREAD = 8192


def bound(dtype: torch.dtype) -> float:
    """Normalised coordinates up to here stay finite as pixels of any image, and so do sums of a few of them.

    Beyond, neighbouring numbers of the dtype are many pixels apart, and mirrors of them no longer mean a place.
    """
    return 1e15 if dtype == torch.float64 else 1e9


def sample(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """`torch.nn.functional.grid_sample` (N, C, h, w) of one dtype, by the table in `stn_triton.reference`."""
    if is_bounded(grid):
        return sample_bounded(image, grid, mode, padding_mode, align_corners)
    far = bound(grid.dtype)
    first = torch.tensor(  # pixel 0
        [-1 if align_corners else 1 / n - 1 for n in image.shape[:1:-1]], dtype=grid.dtype, device=grid.device
    )
    lost = ~grid.isfinite() if padding_mode == "reflection" else grid.isnan()
    clean = torch.where(lost, first, grid).clamp(-far, far)
    out = sample_bounded(image, clean, mode, padding_mode, align_corners)
    # As pixels, since an infinite coordinate of a one-pixel axis is 0 * inf: unknown.
    pixels = [u * (n - 1 if align_corners else n) for u, n in zip(grid.unbind(-1), image.shape[:1:-1], strict=True)]
    x_known, y_known = (~t.isnan() if padding_mode == "border" else t.isfinite() for t in pixels)
    known = (x_known & y_known)[:, None]
    return torch.where(known, out, 0 if padding_mode == "zeros" else out.detach())


def sample_bounded(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """`sample` of a grid within its `bound`."""
    options = MODES[mode], PADDING_MODES[padding_mode], align_corners
    groups = _channel_groups(image, grid)
    if groups == 1:
        return torch.grid_sampler(image, grid, *options)
    image = image.view(groups, -1, *image.shape[2:])
    out = torch.grid_sampler(image, grid.expand(groups, -1, -1, -1), *options)
    # Not a view to autograd, which would forbid some in-place operations on it.
    return torch.ops.aten._unsafe_view(out, (1, -1, *out.shape[2:]))


def is_bounded(values: Tensor) -> bool:
    """Whether all values are known to lie within their `bound`.

    The answer is no where asking would synchronise (off the CPU) or make one graph of what depends on the values
    (tracing, compiling, `torch.func`).
    """
    if values.device.type != "cpu" or _values_are_hidden() or isinstance(values, FakeTensor):
        return False
    if values.numel() == 0:
        return True
    low, high = torch.aminmax(values.detach())  # NaN if there is one
    far = bound(values.dtype)
    return float(low) > -far and float(high) < far


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor made here may be kept: not a fake one, nor one of a transform of `torch.func`."""
    return not isinstance(tensor, FakeTensor) and not torch._C._are_functorch_transforms_active()


def _channel_groups(image: Tensor, grid: Tensor) -> int:
    """Into how many samples the channels of an image are divided for torch's sampler; 1 leaves it as it is.

    For a single image of some size it is the largest divisor of the channels up to the number of threads. Each group
    makes its own coordinates and, if asked for, its own gradient of the grid. A trace would keep the number: 1.
    """
    if _values_are_hidden() or image.device.type != "cpu" or image.shape[0] != 1:
        return 1
    if grid.shape[1] * grid.shape[2] < ONE_SAMPLE_PER_THREAD:
        return 1
    channels = image.shape[1]
    return max(n for n in range(1, torch.get_num_threads() + 1) if channels % n == 0)


def _values_are_hidden() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
