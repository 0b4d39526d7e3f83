"""torch's own sampler, made safe for any grid, and a single image shared among the threads.

On the CPU it answers non-finite grids with NaN or a crash, so it is only ever given bounded ones here; and it gives
a thread whole samples, so that it would leave one image to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from .tracing import is_plain, is_transforming

# torch's own numbering
MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
PADDING_MODES = {"zeros": 0, "border": 1, "reflection": 2}
#: Offsets of the first and the last tap from the nearest pixel (nearest), else from the pixel below.
FIRST_AND_LAST_TAP = {"nearest": (0, 0), "bilinear": (0, 1), "bicubic": (-1, 2)}
#: Target pixels from which torch's sampler gives a thread as little as one sample (its grain, in torch 2.13).
ONE_SAMPLE_PER_THREAD = 8192
#: Gradients of a single image that are made at once, to be added up.
MOST_GRADIENTS = 4


def bound(dtype: torch.dtype) -> float:
    """Normalised coordinates up to here stay finite as pixels of any image, and so do sums of a few of them.

    Beyond, neighbouring numbers of the dtype are many pixels apart, and mirrors of them no longer mean a place.
    """
    return 1e15 if dtype == torch.float64 else 1e9


def sample(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """`torch.nn.functional.grid_sample` (N, C, h, w) of one dtype, by the table in `stn_triton.reference`."""
    if is_bounded(grid):
        grid = torch.ops.aten.alias(grid) if grid.requires_grad else grid  # it may be the user's own
        return sample_bounded(image, grid, mode, padding_mode, align_corners)
    far = bound(grid.dtype)
    first = torch.tensor(  # pixel 0
        [-far if padding_mode == "border" else -1 if align_corners else 1 / n - 1 for n in image.shape[:1:-1]],
        dtype=grid.dtype, device=grid.device,
    )  # fmt: skip
    lost = ~grid.isfinite() if padding_mode == "reflection" else grid.isnan()
    clean = torch.where(lost, first, grid).clamp(-far, far)
    # As pixels, since an infinite coordinate of a one-pixel axis is 0 * inf: unknown.
    pixels = [u * (n - 1 if align_corners else n) for u, n in zip(grid.unbind(-1), image.shape[:1:-1], strict=True)]
    x_known, y_known = (~t.isnan() if padding_mode == "border" else t.isfinite() for t in pixels)
    known = x_known & y_known
    clean = with_gradient_where(clean, lambda points: known)  # unknown points read pixel 0, which may not be finite
    out = sample_bounded(image, clean, mode, padding_mode, align_corners)
    return torch.where(known[:, None], out, 0 if padding_mode == "zeros" else out.detach())


def sample_bounded(image: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """Does `sample` with a grid within its `bound`; the grid gets a hook."""
    if mode == "bilinear" and padding_mode == "zeros":
        # torch's CPU sampler multiplies d_out by 0 where no tap is inside, so that an infinite d_out gives NaN.
        pixels = image.shape[2:]  # the hook must not keep the image alive
        grid = with_gradient_where(grid, lambda points: taps_inside(points, pixels, mode, align_corners)[0])
    options = MODES[mode], PADDING_MODES[padding_mode], align_corners
    shares, by_rows = _shares(image, grid)
    if shares == 1:
        return torch.grid_sampler(image, grid, *options)
    (_, channels, *in_size), (_, h, w, _) = image.shape, grid.shape
    if by_rows:
        image, grid = image.expand(shares, -1, -1, -1), grid.view(shares, h // shares, w, 2)
    else:
        image, grid = image.view(shares, channels // shares, *in_size), grid.expand(shares, -1, -1, -1)
    out = torch.grid_sampler(image, grid, *options)
    if by_rows:
        out = out.transpose(0, 1).contiguous()
    # Not a view to autograd, which would forbid some in-place operations on it.
    return torch.ops.aten._unsafe_view(out, (1, channels, h, w))


def with_gradient_where(grid: Tensor, counts: Callable[[Tensor], Tensor]) -> Tensor:
    """Drops what is not finite in the grid's gradient, except at the points (N, h, w) for which ``counts`` is true.

    The grid gets a hook; within a trace or a transform a new one is returned.
    """
    if not torch.is_grad_enabled() or not (grid.requires_grad or is_transforming()):
        return grid
    if not is_plain(grid):  # a hook would not be traced or transformed
        return torch.where(counts(grid.detach())[..., None], grid, grid.detach())
    points = grid.detach()

    def let_through(d_grid: Tensor | None) -> Tensor | None:
        if d_grid is None or is_bounded(d_grid):
            return None
        return torch.where(counts(points)[..., None], d_grid, 0)

    grid.register_hook(let_through)
    return grid


def taps_inside(grid: Tensor, in_size: Sequence[int], mode: str, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Whether any, and whether all, of a point's taps are inside the image, ignoring padding; (N, h, w) each."""
    first, last = FIRST_AND_LAST_TAP[mode]
    any_inside, all_inside = [], []
    for u, n in zip(grid.unbind(-1), in_size[::-1], strict=True):
        t = (u + 1) * ((n - 1 if align_corners else n) / 2) - (0 if align_corners else 0.5)
        tap = t.round() if mode == "nearest" else t.floor()
        any_inside.append((tap + last >= 0) & (tap + first < n))
        all_inside.append((tap + first >= 0) & (tap + last < n))
    return any_inside[0] & any_inside[1], all_inside[0] & all_inside[1]


def is_bounded(values: Tensor) -> bool:
    """Whether all values are known to lie within their `bound`."""
    if _cannot_be_asked(values):
        return False
    if values.is_contiguous():  # if their squares do together, each does, with room for rounding; a third of the time
        flat = values.detach().view(-1)
        return float(torch.dot(flat, flat)) < 0.5 * bound(values.dtype) ** 2
    return largest_magnitude(values) < bound(values.dtype)


def largest_magnitude(values: Tensor) -> float:
    """Of all values; NaN if there is one.

    Infinity where asking would synchronise (off the CPU) or make one graph of what depends on the values
    (`torch.compile`, `torch.jit.trace`, `torch.func`, forward mode).
    """
    if _cannot_be_asked(values):
        return float("inf")
    if values.numel() == 0:
        return 0.0
    low, high = torch.aminmax(values.detach())
    return max(-float(low), float(high))


def _cannot_be_asked(values: Tensor) -> bool:
    return values.device.type != "cpu" or not is_plain(values)


def _shares(image: Tensor, grid: Tensor) -> tuple[int, bool]:
    """Into how many samples a single image is divided for torch's sampler, and whether by rows of the output.

    Shares are equal, and at most one for each thread. Those of channels each make their own coordinates and, if asked
    for, their own gradient of the grid; those of rows a gradient of the whole image, which pays unless the output is
    the smaller one. A trace would keep the number: 1.
    """
    (batch, channels, *in_size), (_, h, w, _) = image.shape, grid.shape
    if not is_plain(image) or batch != 1 or image.device.type != "cpu" or h * w < ONE_SAMPLE_PER_THREAD:
        return 1, False
    threads = torch.get_num_threads()
    of_channels = _largest_divisor(channels, threads)
    bands = min(threads, h * w // ONE_SAMPLE_PER_THREAD)
    if image.requires_grad and torch.is_grad_enabled():
        bands = min(bands, MOST_GRADIENTS) if h * w >= prod(in_size) else 1
    of_rows = _largest_divisor(h, bands)
    return (of_rows, True) if of_rows > of_channels else (of_channels, False)


def _largest_divisor(n: int, most: int) -> int:
    return max(d for d in range(1, most + 1) if n % d == 0)
