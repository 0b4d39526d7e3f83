"""Allocates and launches the kernels: the forward warp and its gradients, for tensors that a kernel takes."""

from __future__ import annotations

import os
import sys
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .kernels.language import TRITON_MISSING
from .kernels.warp import warp_backward, warp_forward
from .layout import ImageLike, TensorLayout
from .plan import INTERPRETED, plan_backward, plan_forward
from .spec import WarpSpec

MAX_PROGRAMS = 2**31 - 1  # of launch grid axis x


def takes(device: torch.device) -> bool:
    """Whether the kernels run on this device. Warns once where a user would expect them to, and they do not."""
    if INTERPRETED if device.type == "cpu" else device.type == "cuda" and not TRITON_MISSING:
        return True
    asked_for = TRITON_MISSING and os.environ.get("TRITON_INTERPRET")
    if asked_for or device.type not in ("cpu", "meta"):
        _warn_once(device.type)
    return False


@cache
def _warn_once(device_type: str) -> None:
    reason = f"triton cannot be imported ({TRITON_MISSING})" if TRITON_MISSING else "the kernels do not run there"
    warnings.warn(f"stn_triton uses torch operations on {device_type}: {reason}", stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """`stacklevel`, for the function that asks, of the first frame outside this package: the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(__package__):
        level, frame = level + 1, frame.f_back
    return level


def forward(
    spec: WarpSpec, image: Tensor, theta: Tensor, fill: Tensor | None, mask_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The warped image (N, C, h, w) or (N, M, C, h, w), in its dtype and memory format; and the mask if asked for."""
    # The kernels read memory, which holds the negative of a tensor whose negation is still pending.
    image, theta = image.resolve_neg(), theta.resolve_neg()
    fill = None if fill is None else fill.resolve_neg()
    plan = plan_forward(spec, TensorLayout.of(image), TensorLayout.of(theta), _strides(fill))
    out = torch.empty(plan.shape, dtype=image.dtype, device=image.device, memory_format=plan.memory_format)
    mask = torch.empty((plan.shape[0], 1, *spec.size), dtype=mask_dtype, device=image.device) if spec.mask else None
    if out.numel() or (mask is not None and mask.numel()):
        # The kernel neither reads nor writes what there is not: the image stands in for it.
        outside = image if fill is None else fill, image if mask is None else mask
        args = image, theta, out, *plan.numbers, *outside, *plan.constants
        _launch(warp_forward, plan.programs, *args, options=plan.options)
    if spec.transforms is not None:
        by_image = image.shape[0], spec.transforms
        # Not a view to autograd, which would forbid some in-place operations on it.
        out = torch.ops.aten._unsafe_view(out, (*by_image, *out.shape[1:]))
        mask = None if mask is None else torch.ops.aten._unsafe_view(mask, (*by_image, *mask.shape[1:]))
    return out, mask


def _strides(fill: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if fill is None else fill.stride()


def follows_theta(spec: WarpSpec) -> bool:
    """Whether the output changes with theta at all, but by jumps: nearest is constant between them."""
    return spec.mode != "nearest"


def backward(
    spec: WarpSpec,
    d_out: Tensor,
    d_mask: Tensor | None,
    image: Tensor | None,
    like: ImageLike,
    theta: Tensor,
    fill: Tensor | None,
    needs_image: bool,
    needs_theta: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(d_image, d_theta) in the dtypes of image and theta; None where not needed.

    The image is read for the gradient of theta only; without that it may be None. So may d_mask, without a mask.
    """
    if needs_image:
        _alert_not_deterministic()
    reads_image = needs_theta and follows_theta(spec)
    compute = torch.promote_types(like.dtype, torch.float32)  # half types could not be added to atomically
    if spec.transforms is not None:
        d_out, d_mask = d_out.flatten(0, 1), None if d_mask is None else d_mask.flatten(0, 1)
    d_out, theta = d_out.resolve_neg(), theta.resolve_neg()
    fill = None if fill is None else fill.resolve_neg()
    d_mask = None if d_mask is None else d_mask.resolve_neg().contiguous()
    spec = spec._replace(mask=d_mask is not None)
    if like.memory_format is torch.channels_last:
        d_out = d_out.contiguous(memory_format=torch.channels_last)  # copies an expanded one, such as a sum's
    image = image.resolve_neg() if reads_image and image is not None else None
    d_image = like.empty(compute).zero_() if needs_image else None
    layouts = [None if t is None else TensorLayout.of(t) for t in (d_out, image, theta, d_image)]
    plan = plan_backward(spec, like, *layouts, _strides(fill))
    runs = d_out.numel() or (d_mask is not None and d_mask.numel())
    partials = None
    if reads_image and runs:
        make = torch.zeros if spec.transform.partials_begin_as_zeros else torch.empty
        partials = make(plan.shape, dtype=compute, device=like.device)
    if runs and (needs_image or reads_image):
        # The kernel neither reads nor writes what is not needed: d_out stands in for it.
        wanted = (d_out, image, theta, d_image, partials, fill, d_mask)
        *tensors, fill, d_mask = (d_out if tensor is None else tensor for tensor in wanted)
        args = *tensors, *plan.numbers, fill, d_mask, *plan.constants
        _launch(warp_backward, plan.programs, *args, options=plan.options)
    d_theta = None
    if needs_theta:
        d_theta = torch.zeros_like(theta) if partials is None else _sum_partials(spec, partials, theta, like.shape[0])
    return None if d_image is None else d_image.to(like.dtype), d_theta


def _alert_not_deterministic() -> None:
    """As PyTorch's own sampler does: atomics add up the image gradient in any order."""
    if torch.are_deterministic_algorithms_enabled():
        message = (
            "the image gradient of stn_triton's kernels is summed by atomics and not deterministic, but "
            "torch.use_deterministic_algorithms(True) is set"
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)


def _sum_partials(spec: WarpSpec, partials: Tensor, theta: Tensor, batch: int) -> Tensor:
    """d_theta, the second stage of its reduction: over programs, and over the batch for a theta that was broadcast."""
    d_theta = spec.transform.sum_partials(partials)
    if spec.transforms is not None:
        d_theta = d_theta.unflatten(0, (batch, spec.transforms))
    if theta.shape[0] != batch:
        d_theta = d_theta.sum(0, keepdim=True)
    return d_theta.to(theta.dtype)


def _launch(kernel: Any, programs: int, *args: Any, options: dict[str, Any]) -> None:
    """On the tensors' own device and its current stream."""
    if programs > MAX_PROGRAMS:
        raise ValueError(f"size: expected at most {MAX_PROGRAMS} tiles of pixels in a batch, got {programs}")
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **options)
    else:
        kernel[(programs,)](*args, **options)
