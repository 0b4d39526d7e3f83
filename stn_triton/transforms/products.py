"""Matrix products in full precision, whatever TF32, bfloat16 or autocast is set."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..tracing import is_plain


def products_are_exact(device: torch.device) -> bool:
    """Whether matrix products are not computed in reduced precision (TF32, bfloat16, autocast).

    Unknown off the CPU and while compiling.
    """
    if device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return precision in ("none", "ieee")


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64 but where there is none; besides, no setting reduces the precision of its products."""
    return torch.float32 if device.type == "mps" else torch.float64


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """Returns a @ b, (..., P, Q), in b's dtype and in full precision, whatever TF32 or autocast say.

    So are its gradients, whatever is set when they are computed.
    """
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad) and is_plain(a, b):
        return _Product.apply(a.to(b.dtype), b)
    return _multiply(a.to(b.dtype), b)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    if b.dim() == 2 and a.dim() > 2:  # one product, where torch.matmul might multiply sample by sample
        return _multiply(a.reshape(-1, a.shape[-1]), b).view(*a.shape[:-1], b.shape[-1])
    if products_are_exact(b.device):
        return torch.matmul(a, b)
    exact = exact_dtype(b.device)
    # Autocast ignores float64.
    with nullcontext() if exact == torch.float64 else torch.autocast(b.device.type, enabled=False):
        return torch.matmul(a.to(exact), b.to(exact)).to(b.dtype)


class _Product(Function):
    """Does `exact_product` outside traces and transforms."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _multiply(a, b)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad
        d_a = exact_product(d, b.mT).sum_to_size(a.shape) if needs_a else None
        if b.dim() == 2:  # one product over all samples, not one each
            a, d = a.reshape(-1, a.shape[-1]), d.reshape(-1, d.shape[-1])
        d_b = exact_product(a.mT, d).sum_to_size(b.shape) if needs_b else None
        return d_a, d_b
