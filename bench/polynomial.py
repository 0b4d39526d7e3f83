"""A basis of the user's own, as users write them: the polynomials up to degree two."""

from __future__ import annotations

import torch
from torch import Tensor

from stn_triton import BasisExpansion
from stn_triton.kernels.language import TRITON_MISSING, jit, tl


@jit
def basis(k, x, y):
    """1, x, y, x^2, x y, y^2."""
    linear = tl.where(k == 0, 1.0, tl.where(k == 1, x, y))
    return tl.where(k < 3, linear, tl.where(k == 3, x * x, tl.where(k == 4, x * y, y * y)))


def torch_basis(x: Tensor, y: Tensor) -> Tensor:
    """The same, (6, ...)."""
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])


POLYNOMIAL = BasisExpansion(
    None if TRITON_MISSING else basis, 6, torch_basis, identity=[[0.0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
)
