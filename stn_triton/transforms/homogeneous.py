"""Linear forms a x + b y + c over a target grid, in torch: rows of theta times (x, y, 1), for the CPU path."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from .base import normalised, target_axis
from .products import exact_product, products_are_exact

#: h + w up to which an output's bases are kept, at most a megabyte of them; sums serve beyond.
LONGEST_BASES = 4096


def forms_at(rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The forms at points x, y, along a new last axis, from rows (N, R, 3, ...) by broadcasting."""
    return torch.stack([a * x + (b * y + c) for a, b, c in (row.unbind(1) for row in rows.unbind(1))], -1)


def forms_over_grid(rows: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """(N, h, w, R) from rows (N, R, 3) by broadcasting: exact under any setting, on any device, for any rows."""
    h, w = size
    x = target_axis(w, align_corners, rows)
    y = target_axis(h, align_corners, rows)[:, None]
    return forms_at(rows[..., None, None], x, y)


def bounded_forms_over_grid(rows: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """`forms_over_grid` of bounded rows: as T = M_theta B with B separable, where matrix products are exact.

    Two thin products, the fastest form on a CPU, both ways. The zeros in the bases would make NaN of an infinity.
    """
    if sum(size) > LONGEST_BASES or not products_are_exact(rows.device):
        return forms_over_grid(rows, size, align_corners)
    bases = (torch.from_numpy(basis) for basis in _bases(rows.shape[1], *size, align_corners, rows.dtype))
    if torch.is_grad_enabled() and rows.requires_grad:
        return _Forms.apply(rows, *bases)
    return _multiplied(rows, *bases)


def _multiplied(rows: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """Multiplies rows (N, R, 3) by `_bases`: (N, h, w, R), where products are exact."""
    batch, count, _ = rows.shape
    h, w = by_row.shape[1] // (2 * count), by_column.shape[1] // count
    of_rows = torch.matmul(rows.reshape(batch, 3 * count), by_row)  # (a, b y + c) of each row and form
    of_pixels = torch.matmul(of_rows.view(batch * h, 2 * count), by_column)
    return of_pixels.view(batch, h, w, count)


class _Forms(Function):
    """Does `_multiplied` as one step of autograd, with gradients in full precision whatever is set by then."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        ctx.save_for_backward(by_row, by_column)
        ctx.shape = rows.shape
        return _multiplied(rows, by_row, by_column)

    @staticmethod
    def backward(ctx: Any, d_forms: Tensor) -> tuple[Tensor, None, None]:
        by_row, by_column = ctx.saved_tensors
        d_of_rows = exact_product(d_forms.reshape(-1, by_column.shape[1]), by_column.mT)
        d_rows = exact_product(d_of_rows.reshape(-1, by_row.shape[1]), by_row.mT)
        return d_rows.reshape(ctx.shape), None, None


def planar_bases(size: tuple[int, int], align_corners: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(3, 2h) and (2, w) whose products with rows (N R, 3) are forms (N R, h, w) in planes of their own.

    The first gives a and b y + c of each target row, the second a x + (b y + c) of each pixel.
    """
    return tuple(torch.from_numpy(basis) for basis in _planar_bases(*size, align_corners, dtype))  # type: ignore


@lru_cache(maxsize=64)
def _planar_bases(h: int, w: int, align_corners: bool, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Kept as numpy arrays, since a tensor made under inference mode could not be used outside it."""
    number = np.float64 if dtype == torch.float64 else np.float32
    x, y = (normalised(np.arange(n, dtype=number), n, align_corners) for n in (w, h))
    by_row = np.zeros((3, h, 2), number)
    by_row[0, :, 0], by_row[1, :, 1], by_row[2, :, 1] = 1, y, 1
    return by_row.reshape(3, -1), np.stack([x, np.ones_like(x)])


@lru_cache(maxsize=64)
def _bases(count: int, h: int, w: int, align_corners: bool, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The same for R forms side by side.

    (3R, 2Rh): rows of theta to each target row's coefficients; (2R, Rw): those to the forms at its points.
    """
    by_row, by_column = _planar_bases(h, w, align_corners, dtype)
    each = np.eye(count, dtype=by_row.dtype)
    by_row = np.einsum("khi,rs->rkhsi", by_row.reshape(3, h, 2), each)
    return by_row.reshape(3 * count, -1), np.einsum("iw,rs->riws", by_column, each).reshape(2 * count, -1)
