"""The tensors of a workload, from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stn_triton import TRANSFORMS, Flow, ThinPlateSpline, Transform, reference

from .polynomial import POLYNOMIAL
from .workloads import Workload

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Inputs(NamedTuple):
    """What a call is given, and what comes back to its output.

    The output's gradient has the image's layout: a channels_last convolution behind the warp gives one such, whatever
    it was given.
    """

    image: Tensor  #: (N, C, H, W)
    theta: Tensor  #: (N, ...) or (N, M, ...)
    fill: Tensor | None  #: (C,) of the padding of that name
    d_out: tuple[Tensor, ...]  #: like the output, and like the mask if there is one


def make_inputs(workload: Workload, device: torch.device) -> Inputs:
    """Leaves that need the workload's gradients; the same for the same workload."""
    rng = np.random.default_rng(0)
    n, c, _, _ = workload.image
    many = () if workload.transforms is None else (workload.transforms,)
    dtype = DTYPES[workload.dtype]
    layout = torch.channels_last if workload.layout == "channels_last" else torch.contiguous_format

    def images(*shape: int) -> Tensor:
        made = torch.from_numpy(rng.standard_normal(shape, np.float32)).to(device, dtype)
        return made.contiguous(memory_format=layout) if len(shape) == 4 else made

    image = images(*workload.image)
    samples = VALUES[workload.values or workload.transform](rng, workload.with_batch(n * (workload.transforms or 1)))
    theta = torch.tensor(samples.reshape(n, *many, *samples.shape[1:]), dtype=torch.float32, device=device)
    d_out = [images(n, *many, c, *workload.size)] + [images(n, *many, 1, *workload.size)] * workload.mask
    return Inputs(
        image.requires_grad_(workload.needs_image),
        theta.requires_grad_(workload.needs_theta),
        torch.linspace(-1, 1, c, device=device) if workload.padding_mode == "fill" else None,
        tuple(d_out),
    )


def transform_of(workload: Workload) -> Transform:
    """The object that our calls take."""
    if workload.transform == "polynomial":
        return POLYNOMIAL
    if workload.transform == "flow":
        return Flow(image_size=(workload.image[2], workload.image[3]))
    if workload.transform == "tps" and workload.lattice != (4, 4):
        return ThinPlateSpline(lattice(workload))
    return TRANSFORMS[workload.transform]


def lattice(workload: Workload) -> np.ndarray:
    """(K, 2): control points row by row over [-1, 1] x [-1, 1]."""
    x, y = (np.linspace(-1, 1, count) for count in workload.lattice)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def _identity(workload: Workload) -> np.ndarray:
    """(h, w, 2)."""
    return reference.target_points(workload.size, workload.align_corners)


def _affine(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    return np.eye(2, 3) + 0.1 * rng.standard_normal((workload.image[0], 2, 3))


def _rotated(
    rng: np.random.Generator, workload: Workload, turn: float | None = np.pi / 6, scale: float = 0.0
) -> np.ndarray:
    """By ``turn``, or by any angle; zoomed by up to 2 ** scale either way; moved by a tenth."""
    n = workload.image[0]
    angle = np.full(n, turn) if turn is not None else rng.uniform(-np.pi, np.pi, n)
    zoom = 2 ** rng.uniform(-scale, scale, n)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    x, y = rng.uniform(-0.1, 0.1, (2, n))
    return np.stack([cos, -sin, x, sin, cos, y], 1).reshape(n, 2, 3)


def _shifts(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    """Crops at whole pixels."""
    theta = np.zeros((workload.image[0], 2, 3))
    for k in (0, 1):  # x and y
        length, out = workload.image[3 - k], workload.size[1 - k]
        room = (length - out) // 2
        theta[:, k, k] = out / length
        theta[:, k, 2] = 2 * rng.integers(-room, room + 1, len(theta)) / length
    return theta


def _homography(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    """Close to the identity, all of the output in front of the camera."""
    return np.eye(3) + np.array([[0.1], [0.1], [0.05]]) * rng.uniform(-1, 1, (workload.image[0], 3, 3))


def _projective(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    matrix = _homography(rng, workload).reshape(-1, 9)
    return (matrix / matrix[:, 8:])[:, :8]


def _points(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    """Of a spline or mesh: drawn together a little, so that few fall outside."""
    points = lattice(workload)
    return 0.95 * points + 0.03 * rng.standard_normal((workload.image[0], *points.shape))


def _polynomial(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    return np.eye(2, 6, 1) + 0.05 * rng.standard_normal((workload.image[0], 2, 6))


def _attention(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    n = workload.image[0]
    return np.concatenate([rng.uniform(0.4, 0.6, (n, 1)), rng.uniform(-0.4, 0.4, (n, 2))], 1)


def _flow(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    """Pixels, smooth: one motion of a few for each sample, and little beside it."""
    shape = (workload.image[0], *workload.size, 2)
    return 3 * rng.standard_normal((shape[0], 1, 1, 2)) + 0.3 * rng.standard_normal(shape)


def _nearby(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    """The identity displaced by such a flow."""
    return _identity(workload) + _flow(rng, workload) * 2 / np.array(workload.size[::-1])


def _windows(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    """Of pixels next to each other, around one point of each sample."""
    (h, w), (n, _, height, width) = workload.size, workload.image
    around = np.stack(np.meshgrid(np.arange(w) - w // 2, np.arange(h) - h // 2), -1)
    centre = rng.uniform(0, [width - 1, height - 1], (n, 1, 1, 2))
    return 2 * (centre + around) / [max(width - 1, 1), max(height - 1, 1)] - 1


def _scattered(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    return rng.uniform(-1, 1, (workload.image[0], *workload.size, 2))


VALUES: dict[str, Callable[[np.random.Generator, Workload], np.ndarray]] = {
    "attention": _attention,
    "affine": _affine,
    "rotated": _rotated,
    "similar": lambda rng, workload: _rotated(rng, workload, None, 0.3),
    "shifts": _shifts,
    "projective": _projective,
    "homography": _homography,
    "tps": _points,
    "piecewise_affine": _points,
    "polynomial": _polynomial,
    "flow": _flow,
    "nearby": _nearby,
    "windows": _windows,
    "scattered": _scattered,
}
