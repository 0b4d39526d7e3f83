"""The table of cases. A new transform joins every test by a row in `TRANSFORM_CASES`."""

from __future__ import annotations

import functools
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

#: Those of PyTorch. A fill has the coordinates of zeros, and tests of its own.
PYTORCH_PADDINGS = tuple(mode for mode in PADDING_MODES if mode != "fill")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class TransformCase:
    """A transform, its public function, its reference, and PyTorch's own way of computing it."""

    name: str
    #: (rng, N, size) -> theta; generic, so that no source point sits on a kink.
    theta: Callable[[np.random.Generator, int, tuple[int, int]], np.ndarray]
    #: (image, theta, size, mode, padding_mode, align_corners, fill=None) -> out
    sample: Callable[..., torch.Tensor]
    reference: Callable[..., np.ndarray]
    #: (d_out, image, theta, mode, padding_mode, align_corners, fill, magnitude=...) -> (d_image, d_theta)
    reference_backward: Callable[..., tuple[np.ndarray, np.ndarray]]
    pytorch: Callable[..., torch.Tensor]


def _by_theta(name, theta, sample, torch_grid) -> TransformCase:
    """A transform by parameters; ``torch_grid(theta, size, align_corners)`` is PyTorch's own way to its grid."""

    def ours(image, theta, size, mode, padding_mode, align_corners, fill=None):
        return sample(image, theta, size, mode=mode, padding_mode=padding_mode, align_corners=align_corners, fill=fill)

    def pytorchs(image, theta, size, mode, padding_mode, align_corners, fill=None):
        grid = torch_grid(theta, size, align_corners)
        return _torch_sample(image, grid, mode, padding_mode, align_corners, fill)

    return TransformCase(
        name,
        theta,
        ours,
        functools.partial(reference.transform_sample, name),
        functools.partial(reference.transform_sample_backward, name),
        pytorchs,
    )


def _dense(image, theta, size, mode, padding_mode, align_corners, fill=None):
    """The drop-in, but for what PyTorch's signature has no place for."""
    if fill is None:
        return stn_triton.grid_sample(image, theta, mode, padding_mode, align_corners)
    return stn_triton.transform_sample(
        "dense", image, theta, size, mode=mode, padding_mode=padding_mode, align_corners=align_corners, fill=fill
    )


def _torch_sample(image, grid, mode, padding_mode, align_corners, fill=None):
    """A fill as it is usually done: by a second sampling, of ones."""
    if fill is None:
        return F.grid_sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    inside, ones = (
        F.grid_sample(t, grid, mode=mode, padding_mode="zeros", align_corners=align_corners)
        for t in (image, torch.ones_like(image[:, :1]))
    )
    return inside + fill.to(image)[..., None, None] * (1 - ones)


def _torch_affine(theta, size, align_corners):
    return F.affine_grid(theta, (theta.shape[0], 1, *size), align_corners=align_corners)


def _torch_identity(theta, size, align_corners):
    return _torch_affine(torch.eye(2, 3, dtype=theta.dtype).expand(theta.shape[0], -1, -1), size, align_corners)


def _torch_attention(theta, size, align_corners):
    scale = torch.diag_embed(theta[:, :1].expand(-1, 2))
    return _torch_affine(torch.cat([scale, theta[:, 1:, None]], 2), size, align_corners)


def _torch_homography(theta, size, align_corners):
    """kornia's way: homogeneous points through a batched product, then divided."""
    points = F.pad(_torch_identity(theta, size, align_corners), (0, 1), value=1)
    p, q, r = torch.einsum("nrk,nhwk->nhwr", theta, points).unbind(-1)
    return torch.stack([p / r, q / r], -1)


def _torch_projective(theta, size, align_corners):
    return _torch_homography(F.pad(theta, (0, 1), value=1).unflatten(1, (3, 3)), size, align_corners)


def _torch_spline(theta, size, align_corners):
    """The usual way: a constant inverse, torch's own, and a constant basis, made in float64, and two products."""
    points = reference.four_by_four()
    to_weights = torch.linalg.inv(torch.tensor(reference.spline_matrix(points, 0.0)))[:, : len(points)].to(theta.dtype)
    xy = reference.target_points(size, align_corners)
    basis = torch.tensor(reference.spline_basis(xy, points), dtype=theta.dtype)
    return torch.einsum("hwb,nbr->nhwr", basis, torch.einsum("bk,nkr->nbr", to_weights, theta))


def _torch_mesh(theta, size, align_corners):
    """Every vertex's hat everywhere, a constant basis made in float64: 1 - max(|s|, |t|, |s - t|) where positive."""
    s, t = 1.5 * (reference.target_points(size, align_corners)[..., None, :] - reference.four_by_four()).T
    hats = np.maximum(0, 1 - np.maximum(np.maximum(abs(s), abs(t)), abs(s - t)))
    return torch.einsum("kwh,nkr->nhwr", torch.tensor(hats, dtype=theta.dtype), theta)


def _homographies(rng, n, size):
    """The whole output in front of the camera, whichever sign."""
    matrix = np.eye(3) * [1.2, 1.2, 1] + np.array([[0.3], [0.3], [0.15]]) * rng.uniform(-1, 1, (n, 3, 3))
    return matrix * np.where(np.arange(n) % 2, -0.7, 1.3)[:, None, None]


def _eight(matrix):
    return (matrix / matrix[:, 2:, 2:]).reshape(-1, 9)[:, :8]


TRANSFORM_CASES = {
    case.name: case
    for case in (
        _by_theta(
            "attention",
            lambda rng, n, size: [1.2, 0, 0] + 0.3 * rng.standard_normal((n, 3)),
            stn_triton.attention_sample,
            _torch_attention,
        ),
        _by_theta(
            "affine",
            lambda rng, n, size: np.eye(2, 3) * 1.2 + 0.3 * rng.standard_normal((n, 2, 3)),
            stn_triton.affine_sample,
            _torch_affine,
        ),
        _by_theta(
            "projective",
            lambda rng, n, size: _eight(_homographies(rng, n, size)),
            stn_triton.projective_sample,
            _torch_projective,
        ),
        _by_theta("homography", _homographies, stn_triton.projective_sample, _torch_homography),
        _by_theta(
            "tps",
            lambda rng, n, size: 1.1 * reference.four_by_four() + rng.uniform(-0.3, 0.3, (n, 16, 2)),
            stn_triton.tps_sample,
            _torch_spline,
        ),
        _by_theta(
            "piecewise_affine",
            lambda rng, n, size: 1.1 * reference.four_by_four() + rng.uniform(-0.3, 0.3, (n, 16, 2)),
            stn_triton.piecewise_affine_sample,
            _torch_mesh,
        ),
        _by_theta(
            "flow",
            lambda rng, n, size: rng.uniform(-0.7, 0.7, (n, *size, 2)),
            functools.partial(stn_triton.transform_sample, "flow"),
            lambda theta, size, align_corners: theta + _torch_identity(theta, size, align_corners),
        ),
        TransformCase(
            "dense",
            lambda rng, n, size: rng.uniform(-1.6, 1.6, (n, *size, 2)),
            _dense,
            lambda image, theta, size, *options: reference.grid_sample(image, theta, *options),
            reference.grid_sample_backward,
            lambda image, theta, size, *options: _torch_sample(image, theta, *options),
        ),
    )
}


def parametrize_samplers(function):
    """Over transforms, modes, paddings and align_corners, with ids like affine-bilinear-zeros-edges."""
    options = [
        pytest.param(*values, id="-".join([*values[:3], "centres" if values[3] else "edges"]))
        for values in itertools.product(TRANSFORM_CASES, MODES, PADDING_MODES, (False, True))
    ]
    return pytest.mark.parametrize(("transform", "mode", "padding_mode", "align_corners"), options)(function)


def fill_of(padding_mode: str, channels: int) -> tuple[np.ndarray, ...]:
    """The last argument of a case's functions: a colour (C,), or none."""
    return (np.linspace(-1.5, 1, channels),) if padding_mode == "fill" else ()


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def theta_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
