"""Transforms by displacements of K points; fastest on a CPU as one product with functions that are kept."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from ..caches import BoundedCache
from ..torch_sampler import bound, largest_magnitude
from .base import Transform, target_points
from .products import exact_product, products_are_exact

#: Numbers of a transform's functions, (K, h w), up to which they are kept from call to call: 16 MiB of float32.
LARGEST_BASIS = 2**22
#: Largest gradient of a grid, in numbers, that is copied so that all samples share one product: 1 MiB of float32.
LARGEST_COPY = 2**18
#: Numbers that are computed at once, in float64: half a megabyte, for a core's own cache.
AT_ONCE = 2**16


class PointTransform(Transform):
    """(u, v) = (x, y) + sum over k of f_k(x, y) d_k, with displacements d of K points. Equal ones have equal f."""

    #: K up to which a product with all of the functions is the fastest form.
    most_points: ClassVar[float] = float("inf")

    @abstractmethod
    def displacement(self, theta: Tensor, dtype: torch.dtype) -> Tensor:
        """(..., K, 2) of ``dtype`` from theta (..., K, 2): from the points as theta's dtype holds them, so that the
        identity's are exactly 0.
        """

    @abstractmethod
    def functions_at(self, xy: Tensor) -> Tensor:
        """(K, P): f at points xy (P, 2), in float64 on the CPU."""

    def make_grid(self, theta, size, align_corners, dtype):
        grid = self._kept_grid(theta, size, align_corners, dtype)
        return super().make_grid(theta, size, align_corners, dtype) if grid is None else (grid, True)

    def _kept_grid(
        self, theta: Tensor, size: tuple[int, int], align_corners: bool, dtype: torch.dtype
    ) -> Tensor | None:
        """None unless functions are few enough to be kept, products exact, and the grid known to be bounded."""
        count = theta.shape[1]
        few = count <= self.most_points and 0 < count * size[0] * size[1] <= LARGEST_BASIS
        if not few or not products_are_exact(theta.device):
            return None
        displacement = self.displacement(theta, dtype)
        far, farthest = bound(dtype) / 2, largest_magnitude(displacement)
        if not farthest < far:
            return None
        functions, growth = kept_functions(self, size, align_corners, dtype)
        if not farthest * growth < far:
            return None
        return _KeptGrid.apply(displacement, torch.from_numpy(functions), self, size, align_corners)

    def displacement_gradient(
        self, d_grid: Tensor, functions: Tensor, size: tuple[int, int], align_corners: bool
    ) -> Tensor:
        """Returns d_displacement (N, K, 2) from the gradient of a grid made with kept functions (K + 2, h w)."""
        d_points, functions = d_grid.reshape(len(d_grid), -1, 2), functions[:-2]
        if d_points.numel() > LARGEST_COPY:
            return exact_product(functions, d_points)  # no copy, one product per sample
        return exact_product(d_points.mT, functions.mT).mT


class _KeptGrid(Function):
    """The grid (N, h, w, 2) of displacements (N, K, 2) by one product with kept functions."""

    @staticmethod
    def forward(
        ctx: Any,
        displacement: Tensor,
        functions: Tensor,
        transform: PointTransform,
        size: tuple[int, int],
        align_corners: bool,
    ) -> Tensor:
        ctx.save_for_backward(functions)
        ctx.options = transform, size, align_corners
        identity = torch.eye(2, dtype=displacement.dtype, device=displacement.device).expand(len(displacement), 2, 2)
        weights = torch.cat([displacement, identity], 1).mT.contiguous()  # so that all samples share one product
        return torch.matmul(weights.flatten(0, 1), functions).view(-1, 2, *size).movedim(1, -1)

    @staticmethod
    def backward(ctx: Any, d_grid: Tensor) -> tuple[Tensor | None, ...]:
        (functions,), (transform, size, align_corners) = ctx.saved_tensors, ctx.options
        return transform.displacement_gradient(d_grid, functions, size, align_corners), None, None, None, None


#: Functions of the most recently used transforms and sizes.
_kept: BoundedCache[tuple[np.ndarray, float]] = BoundedCache(
    max_entries=256, max_bytes=2**27, bytes_of=lambda kept: kept[0].nbytes
)


def kept_functions(
    transform: PointTransform, size: tuple[int, int], align_corners: bool, dtype: torch.dtype
) -> tuple[np.ndarray, float]:
    """(K + 2, h w): the functions, x and y at every target pixel; and by how much they may enlarge displacements.

    Kept as a numpy array, since a tensor made under inference mode could not be used outside it.
    """
    key = transform.cache_key(), size, align_corners, dtype
    return _kept.get(key, lambda: _evaluate(transform, size, align_corners, dtype))


def _evaluate(
    transform: PointTransform, size: tuple[int, int], align_corners: bool, dtype: torch.dtype
) -> tuple[np.ndarray, float]:
    xy = target_points(size, align_corners, torch.empty(0, dtype=torch.float64, device="cpu")).view(-1, 2)
    parts, growth = [], 0.0
    for some in xy.split(max(1, AT_ONCE // transform.parameter_shape(size)[0])):
        values = transform.functions_at(some)
        parts.append(torch.cat([values, some.T]).to(dtype))
        growth = max(growth, float(values.abs().sum(0).max()))
    return torch.cat(parts, 1).numpy(), growth
