"""The warp as one differentiable operation: a kernel where one runs, torch operations elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import eager, launch
from .layout import ImageLike
from .spec import WarpSpec

REPRODUCIBLE = ("cpu", "meta")  #: devices where torch's own sampler gives the same gradients on every run


def warp(spec: WarpSpec, image: Tensor, theta: Tensor, fill: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The warped image (N, C, h, w) or (N, M, C, h, w); and the mask (N, 1, h, w) or (N, M, 1, h, w) if asked for.

    Arguments are taken as checked; ``fill`` is (N, C) under that padding, of any strides.
    """
    if not launch.takes(image.device):
        if spec.deterministic and image.requires_grad and image.device.type not in REPRODUCIBLE:
            raise ValueError(f"deterministic: expected a CPU or a device where the kernels run, got {image.device}")
        return eager.warp(spec, image, theta, fill)
    compute = torch.promote_types(torch.promote_types(image.dtype, theta.dtype), torch.float32)
    theta = spec.transform.coefficients(theta, compute)
    if _is_plain(image, theta, fill):
        return launch.forward(spec, image, theta, fill, image.dtype)
    return _Warp.apply(spec, image, theta, fill)


def _is_plain(image: Tensor, theta: Tensor, fill: Tensor | None) -> bool:
    """Whether nothing watches the call: no gradient, and no transform of `torch.func` or forward mode (which `_Warp`
    refuses). An autograd function costs 6 us a call.
    """
    return (
        not (torch.is_grad_enabled() and (image.requires_grad or theta.requires_grad or _requires_grad(fill)))
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _requires_grad(fill: Tensor | None) -> bool:
    return fill is not None and fill.requires_grad


class _Warp(Function):
    """Saves theta, the image if theta's gradient reads it, the coverage if the fill's does; never a sampling grid."""

    @staticmethod
    def forward(
        ctx: Any, spec: WarpSpec, image: Tensor, theta: Tensor, fill: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        needs_theta, needs_fill = ctx.needs_input_grad[2:]
        mask_dtype = torch.promote_types(image.dtype, torch.float32) if needs_fill else image.dtype
        out, mask = launch.forward(spec._replace(mask=spec.mask or needs_fill), image, theta, fill, mask_dtype)
        ctx.spec, ctx.like = spec, ImageLike.of(image)
        reads_image = needs_theta and launch.follows_theta(spec)
        ctx.save_for_backward(image if reads_image else None, theta, fill, mask if needs_fill else None)
        mask = mask.to(image.dtype, copy=needs_fill) if mask is not None and spec.mask else None
        if mask is not None and not needs_theta:
            ctx.mark_non_differentiable(mask)
        return out, mask

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, d_mask: Tensor | None) -> tuple[Tensor | None, ...]:
        differentiate: Any = _Backward.apply if torch.is_grad_enabled() else _gradients
        return None, *differentiate(ctx.spec, d_out, d_mask, *ctx.saved_tensors, ctx.like, *ctx.needs_input_grad[1:])


def _gradients(
    spec: WarpSpec,
    d_out: Tensor,
    d_mask: Tensor | None,
    image: Tensor | None,
    theta: Tensor,
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
        d_fill = (d_out * (1 - mask)).sum((-2, -1))
        d_fill = d_fill if spec.transforms is None else d_fill.sum(1)
        d_fill = torch.where(fill.isfinite(), d_fill, 0).to(fill.dtype)  # others are marks, without a derivative
    return *launch.backward(spec, d_out, d_mask, image, like, theta, fill, needs_image, needs_theta), d_fill


class _Backward(Function):
    """`_gradients` where a graph of them is asked for: an error if they are differentiated.

    What `once_differentiable` returns depends on nothing, so that a gradient penalty could be lost silently.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, ...]:
        return _gradients(*args)

    @staticmethod
    def backward(ctx: Any, *d_gradients: Tensor | None) -> Any:
        raise RuntimeError("stn_triton's kernels have no second derivatives yet")
