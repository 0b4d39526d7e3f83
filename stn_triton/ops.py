"""The warp as one differentiable operation: a kernel where one runs, torch operations elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import eager, launch
from .layout import ImageLike
from .spec import WarpSpec


def warp(spec: WarpSpec, image: Tensor, theta: Tensor) -> Tensor:
    """The warped image (N, C, h, w) or (N, M, C, h, w). Arguments are taken as checked."""
    if not launch.takes(image.device):
        return eager.warp(spec, image, theta)
    if _is_plain(image, theta):
        return launch.forward(spec, image, theta)
    return _Warp.apply(spec, image, theta)


def _is_plain(image: Tensor, theta: Tensor) -> bool:
    """Whether nothing watches the call: no gradient, and no transform of `torch.func` or forward mode (which `_Warp`
    refuses). An autograd function costs 6 us a call.
    """
    return (
        not (torch.is_grad_enabled() and (image.requires_grad or theta.requires_grad))
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


class _Warp(Function):
    """Saves theta, and the image if theta's gradient will read it; never a sampling grid."""

    @staticmethod
    def forward(ctx: Any, spec: WarpSpec, image: Tensor, theta: Tensor) -> Tensor:
        reads_image = ctx.needs_input_grad[2] and launch.follows_theta(spec)
        ctx.spec, ctx.like = spec, ImageLike.of(image)
        ctx.save_for_backward(image if reads_image else None, theta)
        return launch.forward(spec, image, theta)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        image, theta = ctx.saved_tensors
        differentiate = _Backward.apply if torch.is_grad_enabled() else launch.backward
        return None, *differentiate(ctx.spec, d_out, image, ctx.like, theta, *ctx.needs_input_grad[1:])


class _Backward(Function):
    """`launch.backward` where a graph of it is asked for: an error if its results are differentiated.

    What `once_differentiable` returns depends on nothing, so that a gradient penalty could be lost silently.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, Tensor | None]:
        return launch.backward(*args)

    @staticmethod
    def backward(ctx: Any, *d_gradients: Tensor | None) -> Any:
        raise RuntimeError("stn_triton's kernels have no second derivatives yet")
