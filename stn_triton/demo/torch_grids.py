"""The transforms that the demo offers, each with PyTorch's own way to its sampling grid, to compare with."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference


class TorchGrid(NamedTuple):
    """How a grid is made in PyTorch, with align_corners=False."""

    make: Callable[[Tensor, tuple[int, int]], Tensor]  #: theta (N, ...) and (h, w) of the output to (N, h, w, 2)
    words: str


def attention_grid(theta: Tensor, size: tuple[int, int]) -> Tensor:
    """From (N, 3): s, tx, ty."""
    scale, shift_x, shift_y = theta.unbind(1)
    zero = torch.zeros_like(scale)
    return affine_grid(torch.stack([scale, zero, shift_x, zero, scale, shift_y], 1).unflatten(1, (2, 3)), size)


def affine_grid(theta: Tensor, size: tuple[int, int]) -> Tensor:
    """From (N, 2, 3)."""
    return F.affine_grid(theta, [len(theta), 1, *size], align_corners=False)


def projective_grid(theta: Tensor, size: tuple[int, int]) -> Tensor:
    """From (N, 8): homogeneous coordinates of constant points, divided by the third."""
    matrix = F.pad(theta, (0, 1), value=1.0).unflatten(1, (3, 3))
    pqr = _constant(_homogeneous_points, size, theta) @ matrix.mT
    return (pqr[..., :2] / pqr[..., 2:]).unflatten(1, size)


def spline_grid(theta: Tensor, size: tuple[int, int]) -> Tensor:
    """From (N, 16, 2): linear in theta, so a product with a constant basis, the spline's system solved within it."""
    return (_constant(_spline_weights, size, theta) @ theta).unflatten(1, size)


def mesh_grid(theta: Tensor, size: tuple[int, int]) -> Tensor:
    """From (N, 16, 2): the same with hats."""
    return (_constant(_hats, size, theta) @ theta).unflatten(1, size)


def _homogeneous_points(size: tuple[int, int]) -> np.ndarray:
    """(h w, 3)."""
    xy = reference.target_points(size, False).reshape(-1, 2)
    return np.concatenate([xy, np.ones_like(xy[:, :1])], 1)


def _spline_weights(size: tuple[int, int]) -> np.ndarray:
    """(h w, 16): each control point's share of each target point's source."""
    points = reference.four_by_four()
    basis = reference.spline_basis(reference.target_points(size, False), points)
    return (basis @ reference.spline_system(points, 0.0)).reshape(-1, len(points))


def _hats(size: tuple[int, int]) -> np.ndarray:
    """(h w, 16): each vertex's share of each target point's source."""
    hats = np.zeros((*size, 16))
    for vertex, weight in reference.mesh_corners(size, False, (4, 4)):
        np.put_along_axis(hats, vertex[..., None], weight[..., None], -1)
    return hats.reshape(-1, 16)


def _constant(build: Callable[[tuple[int, int]], np.ndarray], size: tuple[int, int], theta: Tensor) -> Tensor:
    return _kept(build, size, theta.dtype, theta.device)


@lru_cache
def _kept(
    build: Callable[[tuple[int, int]], np.ndarray], size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Computed in float64, once."""
    return torch.from_numpy(build(size)).to(device, dtype)


TORCH_GRIDS = {
    "attention": TorchGrid(attention_grid, "F.affine_grid of the matrix"),
    "affine": TorchGrid(affine_grid, "F.affine_grid"),
    "projective": TorchGrid(projective_grid, "points @ matrix, divided"),
    "piecewise_affine": TorchGrid(mesh_grid, "constant basis @ theta"),
    "tps": TorchGrid(spline_grid, "constant basis @ theta"),
}
