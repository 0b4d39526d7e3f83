"""PyTorch's own ways to the sampling grids of transforms, to compare with.

Each is a function of the output's size (h, w), of align_corners, and of theta's dtype and device. It makes what is
constant, in float64, and returns the function of theta alone that a model would call: theta (N, ...) to (N, h, w, 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference

Grid = Callable[[Tensor], Tensor]
GridOf = Callable[[tuple[int, int], bool, torch.dtype, torch.device], Grid]


class TorchGrid(NamedTuple):
    """How a grid is made in PyTorch."""

    of: GridOf
    words: str


def affine_grid(size: tuple[int, int], align_corners: bool, dtype: torch.dtype, device: torch.device) -> Grid:
    """From (N, 2, 3)."""
    return lambda theta: F.affine_grid(theta, [len(theta), 1, *size], align_corners=align_corners)


def attention_grid(size: tuple[int, int], align_corners: bool, dtype: torch.dtype, device: torch.device) -> Grid:
    """From (N, 3): s, tx, ty."""
    affine = affine_grid(size, align_corners, dtype, device)

    def grid(theta: Tensor) -> Tensor:
        scale, shift_x, shift_y = theta.unbind(1)
        zero = torch.zeros_like(scale)
        return affine(torch.stack([scale, zero, shift_x, zero, scale, shift_y], 1).unflatten(1, (2, 3)))

    return grid


def homography_grid(size: tuple[int, int], align_corners: bool, dtype: torch.dtype, device: torch.device) -> Grid:
    """From (N, 3, 3): homogeneous coordinates of constant points, divided by the third."""
    xy = reference.target_points(size, align_corners).reshape(-1, 2)
    points = torch.tensor(np.concatenate([xy, np.ones_like(xy[:, :1])], 1), dtype=dtype, device=device)  # (h w, 3)

    def grid(theta: Tensor) -> Tensor:
        pqr = points @ theta.mT
        return (pqr[..., :2] / pqr[..., 2:]).unflatten(1, size)

    return grid


def projective_grid(size: tuple[int, int], align_corners: bool, dtype: torch.dtype, device: torch.device) -> Grid:
    """From (N, 8)."""
    homography = homography_grid(size, align_corners, dtype, device)
    return lambda theta: homography(F.pad(theta, (0, 1), value=1.0).unflatten(1, (3, 3)))


def spline_grid(size: tuple[int, int], align_corners: bool, dtype: torch.dtype, device: torch.device) -> Grid:
    """From (N, 16, 2): linear in theta, so a product with a constant basis, the spline's system solved within it."""
    points = reference.four_by_four()
    basis = reference.spline_basis(reference.target_points(size, align_corners), points)
    weights = (basis @ reference.spline_system(points, 0.0)).reshape(-1, len(points))
    return _product(torch.tensor(weights, dtype=dtype, device=device), size)


def mesh_grid(size: tuple[int, int], align_corners: bool, dtype: torch.dtype, device: torch.device) -> Grid:
    """From (N, 16, 2): the same with hats."""
    hats = np.zeros((*size, 16))
    for vertex, weight in reference.mesh_corners(size, align_corners, (4, 4)):
        np.put_along_axis(hats, vertex[..., None], weight[..., None], -1)
    return _product(torch.tensor(hats.reshape(-1, 16), dtype=dtype, device=device), size)


def _product(constant: Tensor, size: tuple[int, int]) -> Grid:
    """Of (h w, K), each point's share of each target point's source, and theta (N, K, 2)."""
    return lambda theta: (constant @ theta).unflatten(1, size)


TORCH_GRIDS = {
    "attention": TorchGrid(attention_grid, "F.affine_grid of the matrix"),
    "affine": TorchGrid(affine_grid, "F.affine_grid"),
    "projective": TorchGrid(projective_grid, "points @ matrix, divided"),
    "piecewise_affine": TorchGrid(mesh_grid, "constant basis @ theta"),
    "tps": TorchGrid(spline_grid, "constant basis @ theta"),
}
