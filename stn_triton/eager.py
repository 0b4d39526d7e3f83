"""The warp in torch operations, for tensors that no kernel takes: CPU tensors above all.

Same semantics as the kernels: float32 inside for half types, and 0 where a transform gives no finite point.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .layout import memory_format
from .torch_sampler import bound, is_bounded, sample, sample_bounded, taps_inside, with_gradient_where
from .tracing import is_plain

if TYPE_CHECKING:
    from .spec import WarpSpec


def warp(spec: WarpSpec, image: Tensor, theta: Tensor, fill: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The warped image, differentiable in all tensors, in its dtype and memory format; and the mask if asked for."""
    batch, many = image.shape[0], () if spec.transforms is None else (spec.transforms,)
    shape = (batch, *many, image.shape[1], *spec.size)
    if 0 in (batch, *many, *spec.size):
        nothing = ((image.sum() + theta.sum() + (0 if fill is None else fill.sum())) * 0).to(image.dtype)
        return nothing.expand(shape), nothing.expand(batch, *many, 1, *spec.size) if spec.mask else None
    compute = torch.promote_types(image.dtype, torch.float32)
    theta = theta.flatten(0, 1) if many else theta
    grid, bounded = spec.transform.make_grid(theta, spec.size, spec.align_corners, compute)
    return sample_grid(spec, image, grid, bounded, fill)


def sample_grid(
    spec: WarpSpec, image: Tensor, grid: Tensor, bounded: bool, fill: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Does `warp` with the transform's grid, (N, h, w, 2) or (N M, h, w, 2). ``bounded``: it `is_bounded`."""
    batch, many = image.shape[0], () if spec.transforms is None else (spec.transforms,)
    # Calls that would do nothing are left out: on small images they are what the time goes into.
    wide = image.float() if image.element_size() < 4 else image
    if many:  # outputs of an image below each other are one
        grid = grid.unflatten(0, (-1, *many)).flatten(1, 2)
    if grid.shape[0] != batch:
        grid = grid.expand(batch, -1, -1, -1)
    out, mask = _sampler(spec, grid, bounded)(wide), None
    if spec.mask or fill is not None:
        of_mask = with_gradient_where(torch.ops.aten.alias(grid), partial(_is_partly_inside, spec, image.shape[2:]))
        ones = torch.ones((), dtype=wide.dtype, device=wide.device).expand(batch, 1, *image.shape[2:])
        mask = _sampler(spec, of_mask, bounded)(ones)
        # Exactly 1 inside, where bicubic weights add up to it within 17 eps; the derivative stays, for at the outermost
        # pixels there is one.
        eps = torch.finfo(mask.dtype).eps
        off = (mask - 1).abs()
        mask = mask + torch.where(off <= (32 if spec.mode == "bicubic" else 8) * eps, 1 - mask, 0).detach()
        if fill is not None:
            # torch's sampler rounds the coordinate of the last pixel by up to 1.4 eps of its axis' length, besides what
            # the grid is rounded by (measured together: 1.3): no mark for that.
            nearly = (2 * (image.shape[2] + image.shape[3]) + 32) * eps
            out = _filled(out, mask, fill[:, :, None, None].to(wide.dtype), off, nearly)
    layout = memory_format(image.shape, image.stride())
    if mask is not None:
        mask = _finished(spec, mask, image.dtype, torch.contiguous_format)
    return _finished(spec, out, image.dtype, layout), mask if spec.mask else None


def _is_partly_inside(spec: WarpSpec, in_size: torch.Size, points: Tensor) -> Tensor:
    """Tells which points (N, h, w, 2) have taps both inside and outside the image; elsewhere coverage is constant."""
    if spec.padding_mode in ("border", "reflection"):
        return torch.zeros((), dtype=torch.bool, device=points.device).expand(points.shape[:-1])
    any_inside, all_inside = taps_inside(points, in_size, spec.mode, spec.align_corners)
    return any_inside & ~all_inside


def _sampler(spec: WarpSpec, grid: Tensor, bounded: bool) -> Callable[[Tensor], Tensor]:
    """What samples a tensor (N, C, H, W) of the grid's dtype at the grid, with 0 where a transform has no point."""
    padding_mode = "zeros" if spec.padding_mode == "fill" else spec.padding_mode
    options = spec.mode, padding_mode, spec.align_corners
    if bounded:
        return lambda image: sample_bounded(image, grid, *options)
    if spec.transform.padding_answers_nonfinite:
        return lambda image: sample(image, grid, *options)
    far = bound(grid.dtype)
    finite = grid.isfinite().all(-1)
    clean = torch.where(finite[..., None], grid, 0).clamp(-far, far)
    return lambda image: torch.where(finite[:, None], sample_bounded(image, clean, *options), 0)


def _filled(out: Tensor, mask: Tensor, colour: Tensor, off: Tensor, nearly: float) -> Tensor:
    """What the image does not cover in a colour (N, C, 1, 1).

    A colour that is not finite is a mark, which has no derivative and stays outside: more than ``nearly`` off full
    coverage.
    """
    bounded = is_bounded(colour)
    if colour.requires_grad:  # where the colour is not seen, d_out must not reach it: it may not be finite
        colour = torch.where(mask == 1, colour.detach(), colour)
    if bounded:
        return torch.addcmul(out, colour, 1 - mask)
    known = colour.isfinite()
    filled = torch.addcmul(out, torch.where(known, colour, 0), 1 - mask)
    return filled + torch.where(known | (off <= nearly), 0, colour).detach()


def _finished(spec: WarpSpec, out: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """In its dtype and memory format, of M transforms with an axis for them."""
    if spec.transforms is None:
        out = out if out.dtype == dtype else out.to(dtype)
        if layout is torch.contiguous_format:
            return out
        if out.requires_grad and is_plain(out):
            # torch's sampler goes through a gradient in planes in half the time.
            out.register_hook(lambda d_out: None if d_out is None else d_out.contiguous())
        return out.contiguous(memory_format=layout)
    out = out.to(dtype).unflatten(2, (spec.transforms, -1))  # (N, C, M, h, w)
    if layout is torch.contiguous_format:
        out = out.transpose(1, 2).contiguous()
    else:
        out = out.movedim(1, -1).contiguous().movedim(-1, 2)
    # Not a view to autograd, which would forbid some in-place operations on it.
    return torch.ops.aten._unsafe_view(out, out.shape)
