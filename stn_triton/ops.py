"""The warp as one differentiable operation: a kernel where one runs, torch operations elsewhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import eager, launch
from .spec import WarpSpec


def warp(spec: WarpSpec, image: Tensor, theta: Tensor) -> Tensor:
    """The warped image (N, C, h, w). Arguments are taken as checked."""
    if launch.takes(image.device):
        return _Warp.apply(spec, image, theta)
    return eager.warp(spec, image, theta)


class _Warp(Function):
    """Saves image and theta, never a sampling grid."""

    @staticmethod
    def forward(ctx: Any, spec: WarpSpec, image: Tensor, theta: Tensor) -> Tensor:
        ctx.spec = spec
        ctx.save_for_backward(image, theta)
        return launch.forward(spec, image, theta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        return None, *launch.backward(ctx.spec, d_out, *ctx.saved_tensors, *ctx.needs_input_grad[1:])
