"""The table of cases. A new transform joins every test by a row in `TRANSFORM_CASES`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import stn_triton
from stn_triton import reference
from stn_triton.spec import MODES, PADDING_MODES

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class TransformCase:
    """A transform, its public function, its reference, and PyTorch's own way of computing it."""

    name: str
    #: (rng, N, size) -> theta; generic, so that no source point sits on a kink.
    theta: Callable[[np.random.Generator, int, tuple[int, int]], np.ndarray]
    #: (image, theta, size, mode, padding_mode, align_corners) -> out
    sample: Callable[..., torch.Tensor]
    reference: Callable[..., np.ndarray]
    #: (d_out, image, theta, mode, padding_mode, align_corners, magnitude=...) -> (d_image, d_theta)
    reference_backward: Callable[..., tuple[np.ndarray, np.ndarray]]
    pytorch: Callable[..., torch.Tensor]


TRANSFORM_CASES = {
    case.name: case
    for case in (
        TransformCase(
            "affine",
            lambda rng, n, size: np.eye(2, 3) * 1.2 + 0.3 * rng.standard_normal((n, 2, 3)),
            lambda image, theta, size, mode, padding_mode, align_corners: stn_triton.affine_sample(
                image, theta, size, mode=mode, padding_mode=padding_mode, align_corners=align_corners
            ),
            reference.affine_sample,
            reference.affine_sample_backward,
            lambda image, theta, size, *options: _torch_sample(
                image, F.affine_grid(theta, (*image.shape[:2], *size), align_corners=options[-1]), *options
            ),
        ),
        TransformCase(
            "dense",
            lambda rng, n, size: rng.uniform(-1.6, 1.6, (n, *size, 2)),
            lambda image, theta, size, *options: stn_triton.grid_sample(image, theta, *options),
            lambda image, theta, size, *options: reference.grid_sample(image, theta, *options),
            reference.grid_sample_backward,
            lambda image, theta, size, *options: _torch_sample(image, theta, *options),
        ),
    )
}


def _torch_sample(image, grid, mode, padding_mode, align_corners):
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=align_corners)


def parametrize_samplers(function):
    """Over transforms, modes, paddings and align_corners, with ids like affine-bilinear-zeros-edges."""
    options = [
        pytest.param(*values, id="-".join([*values[:3], "centres" if values[3] else "edges"]))
        for values in itertools.product(TRANSFORM_CASES, MODES, PADDING_MODES, (False, True))
    ]
    return pytest.mark.parametrize(("transform", "mode", "padding_mode", "align_corners"), options)(function)


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def theta_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
