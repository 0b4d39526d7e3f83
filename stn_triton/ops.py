"""The warp as one differentiable operation: a kernel where one runs, torch operations elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import eager, launch
from .backend import kernels_are_required
from .layout import ImageLike
from .spec import WarpSpec
from .tracing import are_gradients_in_memory, are_in_memory, is_tracing, outside_transforms

NO_SECOND_DERIVATIVES = "stn_triton's kernels have no second derivatives yet"
REPRODUCIBLE = ("cpu", "meta")  #: devices where torch's own sampler gives the same gradients on every run


def warp(spec: WarpSpec, image: Tensor, theta: Tensor, fill: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The warped image (N, C, h, w) or (N, M, C, h, w); and the mask (N, 1, h, w) or (N, M, 1, h, w) if asked for.

    Arguments are taken as checked; ``fill`` is (N, C) under that padding, of any strides.
    """
    if are_in_memory(image, theta, fill):
        with outside_transforms():
            return _warp_in_memory(spec, image, theta, fill)
    if not is_tracing() and kernels_are_required():
        raise RuntimeError(
            "backend: expected tensors in memory for 'triton', got some of a subclass or of a transform of torch.func; "
            "use_backend('auto') warps them by torch operations"
        )
    return _warp_by_operations(spec, image, theta, fill)


def _warp_by_operations(
    spec: WarpSpec, image: Tensor, theta: Tensor, fill: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    _check_reproducible(spec, image.requires_grad, image.device)
    return eager.warp(spec, image, theta, fill)


def _warp_in_memory(spec: WarpSpec, image: Tensor, theta: Tensor, fill: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Does `warp` with ordinary tensors, which a kernel can read."""
    if torch.is_grad_enabled():
        theta, fill = _savable(theta), None if fill is None else _savable(fill)
    if not launch.takes(image.device):
        return _warp_by_operations(spec, image, theta, fill)
    compute = torch.promote_types(torch.promote_types(image.dtype, theta.dtype), torch.float32)
    theta = spec.transform.coefficients(theta, compute)
    # Skipping the autograd function saves 6 us.
    if torch.is_grad_enabled() and (image.requires_grad or theta.requires_grad or _requires_grad(fill)):
        return _Warp.apply(spec, image, theta, fill)
    return launch.forward(spec, image, theta, fill, image.dtype)


def _savable(tensor: Tensor) -> Tensor:
    """Returns the tensor, or a copy if it was made under inference mode and could not be saved for a backward pass."""
    return tensor.clone() if tensor.is_inference() else tensor


def _check_reproducible(spec: WarpSpec, needs_image: bool, device: torch.device) -> None:
    """Raises ValueError if the image gradient must be reproducible, and torch's sampler would not make it so."""
    if spec.deterministic and needs_image and device.type not in REPRODUCIBLE:
        raise ValueError(f"deterministic: torch's own sampler, which this call takes, is not reproducible on {device}")


def _requires_grad(fill: Tensor | None) -> bool:
    return fill is not None and fill.requires_grad


class _Warp(Function):
    """Saves only what the needed gradients read, never a sampling grid.

    That is theta, the image for theta's gradient, and the coverage for the fill's.
    """

    @staticmethod
    def forward(
        ctx: Any, spec: WarpSpec, image: Tensor, theta: Tensor, fill: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        needs_image, needs_theta, needs_fill = ctx.needs_input_grad[1:]
        mask_dtype = torch.promote_types(image.dtype, torch.float32) if needs_fill else image.dtype
        out, mask = launch.forward(spec._replace(mask=spec.mask or needs_fill), image, theta, fill, mask_dtype)
        ctx.spec, ctx.like = spec, ImageLike.of(image)
        reads_image = needs_theta and launch.follows_theta(spec)
        ctx.save_for_backward(
            image if reads_image else None,
            theta if needs_image or needs_theta else None,
            fill if needs_theta or needs_fill else None,
            mask if needs_fill else None,
        )
        mask = mask.to(image.dtype, copy=needs_fill) if mask is not None and spec.mask else None
        if mask is not None and not needs_theta:
            ctx.mark_non_differentiable(mask)
        return out, mask

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_mask: Tensor | None) -> tuple[Tensor | None, ...]:
        differentiate: Any = _gradients
        if torch.is_grad_enabled():
            if not are_gradients_in_memory(d_out, d_mask):  # whose graph `_Backward` would lose
                raise RuntimeError(NO_SECOND_DERIVATIVES)
            differentiate = _Backward.apply
        return None, *differentiate(ctx.spec, d_out, d_mask, *ctx.saved_tensors, ctx.like, *ctx.needs_input_grad[1:])


def _gradients(
    spec: WarpSpec,
    d_out: Tensor,
    d_mask: Tensor | None,
    image: Tensor | None,
    theta: Tensor | None,
    fill: Tensor | None,
    mask: Tensor | None,
    like: ImageLike,
    needs_image: bool,
    needs_theta: bool,
    needs_fill: bool,
) -> tuple[Tensor | None, ...]:
    """(d_image, d_theta, d_fill), None where not needed."""
    d_fill = None
    if fill is not None and mask is not None:  # it is seen where the image does not cover the output
        d_fill = torch.where(mask == 1, 0, d_out * (1 - mask)).sum((-2, -1))
        d_fill = d_fill if spec.transforms is None else d_fill.sum(1)
        d_fill = torch.where(fill.isfinite(), d_fill, 0).to(fill.dtype)  # others are marks, without a derivative
    if theta is None or not (needs_image or needs_theta):
        return None, None, d_fill
    backward = launch.backward if are_gradients_in_memory(d_out, d_mask) else _backward_by_operations
    return *backward(spec, d_out, d_mask, image, like, theta, fill, needs_image, needs_theta), d_fill


def _backward_by_operations(
    spec: WarpSpec,
    d_out: Tensor,
    d_mask: Tensor | None,
    image: Tensor | None,
    like: ImageLike,
    theta: Tensor,
    fill: Tensor | None,
    needs_image: bool,
    needs_theta: bool,
) -> tuple[Tensor | None, ...]:
    """Computes `launch.backward` in torch operations, for gradients many at a time (``is_grads_batched``) or traced."""
    _check_reproducible(spec, needs_image, theta.device)
    with torch.enable_grad():
        # If the image was not saved, the gradients do not depend on its values.
        image = (like.empty(like.dtype).zero_() if image is None else image.detach()).requires_grad_(needs_image)
        theta = theta.detach().requires_grad_(needs_theta)
        wide = theta.to(torch.promote_types(like.dtype, torch.float32))
        grid = spec.transform.grid_of(
            wide if spec.transforms is None else wide.flatten(0, 1), spec.size, spec.align_corners
        )
        spec = spec._replace(mask=d_mask is not None)
        out, mask = eager.sample_grid(spec, image, grid, False, None if fill is None else fill.detach())
    outputs, given = [out], [d_out]
    if mask is not None and d_mask is not None:
        outputs, given = [out, mask], [d_out, d_mask]
    wanted = [tensor for tensor, needed in ((image, needs_image), (theta, needs_theta)) if needed]
    gradients = iter(torch.autograd.grad(outputs, wanted, given, materialize_grads=True))
    return next(gradients) if needs_image else None, next(gradients) if needs_theta else None


class _Backward(Function):
    """`_gradients` where a graph of them is asked for: an error if they are differentiated.

    What `once_differentiable` returns depends on nothing, so that a gradient penalty could be lost silently.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, ...]:
        return _gradients(*args)

    @staticmethod
    def backward(ctx: Any, *d_gradients: Tensor | None) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVES)
