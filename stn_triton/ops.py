"""The warp as one differentiable operation: a kernel where one runs, torch operations elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import eager, launch
from .layout import ImageLike
from .spec import WarpSpec


def warp(spec: WarpSpec, image: Tensor, theta: Tensor) -> Tensor:
    """The warped image (N, C, h, w). Arguments are taken as checked."""
    if launch.takes(image.device):
        return _Warp.apply(spec, image, theta)
    return eager.warp(spec, image, theta)


class _Warp(Function):
    """Saves theta, and the image if theta's gradient will read it; never a sampling grid."""

    @staticmethod
    def forward(ctx: Any, spec: WarpSpec, image: Tensor, theta: Tensor) -> Tensor:
        reads_image = ctx.needs_input_grad[2] and launch.follows_theta(spec)
        ctx.spec, ctx.like = spec, ImageLike.of(image)
        ctx.save_for_backward(image if reads_image else None, theta)
        return launch.forward(spec, image, theta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        image, theta = ctx.saved_tensors
        return None, *launch.backward(ctx.spec, d_out, image, ctx.like, theta, *ctx.needs_input_grad[1:])
