"""Matrix products in full precision, whatever TF32, bfloat16 or autocast is set."""

from __future__ import annotations

import torch
from torch import Tensor


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


def exact_product(coefficients: Tensor, basis: Tensor) -> Tensor:
    """coefficients (N, 2, K) times a basis (K, P) or (N, K, P), in full precision whatever is set."""
    exact = basis.dtype if products_are_exact(basis.device) else exact_dtype(basis.device)
    return torch.matmul(coefficients.to(exact), basis.to(exact)).to(basis.dtype)
