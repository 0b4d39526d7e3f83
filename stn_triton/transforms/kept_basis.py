"""Grids by displacements of K points, (x, y) + sum over k of f_k(x, y) d_k, with functions f that are kept.

One product of matrices: the fastest form on a CPU, both ways, where the functions' values at all pixels are few.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..torch_sampler import bound, largest_magnitude
from .base import target_axis
from .homogeneous import products_are_exact

#: Numbers of the functions, (K, h w), up to which they are kept from call to call: 16 MiB of float32.
LARGEST_BASIS = 2**22


class PointTransform(Protocol):
    """A transform that is linear in the displacements of K points. Equal ones have the same functions."""

    def functions_at(self, xy: Tensor) -> Tensor:
        """(K, P) of float64: each point's function at points xy (P, 2) of float64, on the CPU."""

    def __hash__(self) -> int: ...


def kept_grid(
    transform: PointTransform, displacement: Tensor, size: tuple[int, int], align_corners: bool
) -> Tensor | None:
    """The grid (N, h, w, 2) by displacements (N, K, 2) if it is known to be `torch_sampler.is_bounded`.

    None if it is not, where the functions are too many to be kept, and where matrix products are not exact.
    """
    if displacement.shape[1] * size[0] * size[1] > LARGEST_BASIS or not products_are_exact(displacement.device):
        return None
    far, farthest = bound(displacement.dtype) / 2, largest_magnitude(displacement)
    if not farthest < far:
        return None
    basis, growth = _basis(transform, size, align_corners, displacement.dtype)
    if not farthest * growth < far:
        return None
    identity = torch.eye(2, dtype=displacement.dtype, device=displacement.device).expand(displacement.shape[0], 2, 2)
    weights = torch.cat([displacement, identity], 1).transpose(1, 2).contiguous()  # else it multiplies sample by sample
    return torch.matmul(weights, torch.from_numpy(basis)).unflatten(-1, size).movedim(1, -1)


@lru_cache(maxsize=8)
def _basis(
    transform: PointTransform, size: tuple[int, int], align_corners: bool, dtype: torch.dtype
) -> tuple[np.ndarray, float]:
    """(K + 2, h w): the functions, x and y at every target pixel; and by how much they may enlarge displacements.

    Kept as a numpy array, since a tensor made under inference mode could not be used outside it.
    """
    like = torch.empty(0, dtype=torch.float64, device="cpu")
    y, x = (target_axis(n, align_corners, like) for n in size)
    xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)
    functions = transform.functions_at(xy)
    return torch.cat([functions, xy.T]).to(dtype).numpy(), float(functions.abs().sum(0).max())
