"""The paper's four distortions (section 4.1 and appendix A.4), each of a digit on a larger canvas.

R: rotation. RTS: rotation, scale and translation. P: a projective map. E: an elastic one, a thin plate spline.
"""

from __future__ import annotations

from collections.abc import Callable
from math import radians
from typing import NamedTuple

import torch
from torch import Tensor

from .. import geometry
from ..functional import affine_sample, projective_sample, tps_sample
from ..transforms import TRANSFORMS

CANVAS = (42, 42)
R_MAX_ANGLE = radians(90)
RTS_MAX_ANGLE = radians(45)
RTS_SCALES = (0.7, 1.2)
#: Of P and of E, before points are displaced.
PE_SCALES = (0.75, 1.0)
#: Standard deviations of displacements along x and along y, in pixels.
P_DISPLACEMENT, E_DISPLACEMENT = 5.0, 1.5
#: P keeps this share of each corner's triangle, at least, as `geometry.corner_areas` has them.
LEAST_AREA = 0.1


def rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    """R: digits at random angles in the middle of the canvas, arguments and result as in `rts`."""
    angle = _uniform(images, generator, -R_MAX_ANGLE, R_MAX_ANGLE)
    one, centre = torch.ones_like(angle), angle.new_zeros(len(images), 2)
    return affine_sample(images, placing(angle, one, centre, (images.shape[2], images.shape[3]), CANVAS), CANVAS)


def rts(images: Tensor, generator: torch.Generator, canvas: tuple[int, int] = CANVAS) -> Tensor:
    """RTS: digits at random angles, scales and places.

    Args:
        images: (N, 1, H, W), ink where not 0.
        generator: on the CPU, so that a seed means the same distortions on every device.
        canvas: (h, w) in pixels.

    Returns:
        (N, 1, h, w).
    """
    angle, scale, shift = random_poses(images, generator, canvas)
    theta = placing(angle, scale, shift, (images.shape[2], images.shape[3]), canvas)
    return affine_sample(images, theta, canvas)


def random_poses(
    images: Tensor, generator: torch.Generator, canvas: tuple[int, int] = CANVAS
) -> tuple[Tensor, Tensor, Tensor]:
    """Angles, scales and shifts, all uniform, the shift among those that keep the digit on the canvas.

    Args:
        images: (N, 1, H, W), ink where not 0.
        generator: on the CPU.
        canvas: (h, w) in pixels.

    Returns:
        angle (N,), scale (N,) and shift (N, 2) as in `placing`.
    """
    draws = torch.rand(4, len(images), generator=generator).to(images.device)
    angle = RTS_MAX_ANGLE * (2 * draws[0] - 1)
    scale = RTS_SCALES[0] + (RTS_SCALES[1] - RTS_SCALES[0]) * draws[1]
    low, high = free_shifts(images, angle, scale, canvas)
    return angle, scale, low + (high - low) * draws[2:].T


def placing(angle: Tensor, scale: Tensor, shift: Tensor, size: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """theta of the map from the canvas back to the digit.

    Args:
        angle: (N,), radians, clockwise as seen, as y points down.
        scale: (N,), canvas pixels per digit pixel.
        shift: (N, 2), x and y of the digit's centre from the canvas' centre, canvas pixels.
        size: (H, W) of the digits, pixels.
        canvas: (h, w), pixels.

    Returns:
        (N, 2, 3), normalised as in `affine_sample`.
    """
    back = _rotation(-angle) / scale[:, None, None]
    offset = -back @ shift[:, :, None]
    return torch.cat((back * _half(canvas, shift), offset), 2) / _half(size, shift)[:, None]


def free_shifts(images: Tensor, angle: Tensor, scale: Tensor, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The shifts that keep all ink on the canvas, from low to high; both centre it if it is too large.

    Args:
        images: (N, 1, H, W), ink where not 0.
        angle: (N,), radians.
        scale: (N,).
        canvas: (h, w), pixels.

    Returns:
        low, high: (N, 2), x and y in canvas pixels.
    """
    turned = scale[:, None, None] * (_rotation(angle) @ _pixel_centres(images))
    # A turned pixel reaches this far beyond its centre, along x as along y.
    reach = (scale * (angle.cos().abs() + angle.sin().abs()) / 2)[:, None]
    low, high = _extent(turned, images)
    return _shifts_to_fit(low - reach, high + reach, canvas)


def project(images: Tensor, generator: torch.Generator) -> Tensor:
    """P: digits whose four corners are displaced at random, arguments and result as in `rts`."""
    corners = onto_canvas(random_corners(images, generator), images)
    return projective_sample(images, stretching(corners), CANVAS)


def random_corners(images: Tensor, generator: torch.Generator) -> Tensor:
    """Corners of a square of random size, each displaced by itself.

    Displacements are normally distributed, so that some would turn a digit inside out or flatten it to a line. Those
    are drawn again: cut off at a bound, they would pile up there.

    Args:
        images: (N, 1, H, W).
        generator: on the CPU.

    Returns:
        (N, 4, 2), canvas pixels from the canvas' centre, clockwise from the top left.
    """
    square = _square(images)
    corners = square.repeat(len(images), 1, 1)
    drawn = torch.arange(len(images), device=images.device)
    while len(drawn):
        scaled = square * _uniform(images[drawn], generator, *PE_SCALES)[:, None, None]
        corners[drawn] = scaled + _normal(scaled, generator, P_DISPLACEMENT)
        least = LEAST_AREA * geometry.corner_areas(scaled)
        drawn = drawn[(geometry.corner_areas(corners[drawn]) < least).any(1)]
    return corners


def onto_canvas(corners: Tensor, images: Tensor) -> Tensor:
    """Those corners (N, 4, 2) moved together, as little as keeps the ink's bounding box on the canvas."""
    low, high = _extent(_pixel_centres(images).expand(len(images), -1, -1), images)
    square = _square(images)
    box = torch.where(square > 0, high[:, None] + 0.5, low[:, None] - 0.5) / square.abs()
    to_canvas = geometry.from_corners(corners / _half(CANVAS, corners))
    placed = TRANSFORMS["homography"].points(to_canvas, box) * _half(CANVAS, corners)
    low, high = _shifts_to_fit(placed.amin(1), placed.amax(1), CANVAS)
    return corners + low.clamp(min=0).minimum(high)[:, None]


def stretching(corners: Tensor) -> Tensor:
    """theta of the homography from the canvas back to the digit.

    Args:
        corners: (N, 4, 2), as in `random_corners`.

    Returns:
        (N, 3, 3), normalised as in `projective_sample`.
    """
    return geometry.invert(geometry.from_corners(corners / _half(CANVAS, corners)))


def bend(images: Tensor, generator: torch.Generator) -> Tensor:
    """E: digits bent by a thin plate spline of random points, arguments and result as in `rts`."""
    scale = _uniform(images, generator, *PE_SCALES)
    displacement = _normal(images.new_empty(len(images), 16, 2), generator, E_DISPLACEMENT)
    return elastic(images, scale, displacement)


def elastic(images: Tensor, scale: Tensor, displacement: Tensor) -> Tensor:
    """Digits scaled in the middle of the canvas, then warped by a spline.

    Its 4 x 4 control points lie on the canvas, over the digit's unscaled square. A displacement is one of what is read,
    as the warp maps output points to source points: there the canvas shows what the scaled digit has so far away, and
    ink moves the other way.

    Args:
        images: (N, 1, H, W).
        scale: (N,), canvas pixels per digit pixel.
        displacement: (N, 16, 2), x and y in canvas pixels, row by row of points.

    Returns:
        (N, 1, h, w).
    """
    half_digit = _half((images.shape[2], images.shape[3]), images)
    points = TRANSFORMS["tps"].identity(CANVAS, dtype=images.dtype, device=images.device) * half_digit
    theta = (points + displacement) / scale[:, None, None] / half_digit
    return tps_sample(images, theta, CANVAS, control_points=points / _half(CANVAS, images))


def _extent(places: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest x and y (N, 2) of those places (N, 2, H W) of pixels where there is ink."""
    blank = images.flatten(1)[:, None] == 0
    return places.masked_fill(blank, torch.inf).amin(2), places.masked_fill(blank, -torch.inf).amax(2)


def _shifts_to_fit(least: Tensor, most: Tensor, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`free_shifts` of ink from least to most (N, 2), in pixels from the canvas' centre."""
    low, high = -least - _half(canvas, least), -most + _half(canvas, most)
    middle = ((low + high) / 2).nan_to_num(0.0)  # an empty image has no extent
    fits = low <= high
    return torch.where(fits, low, middle), torch.where(fits, high, middle)


def _pixel_centres(images: Tensor) -> Tensor:
    """(2, H W), x and y in pixels from the image's centre."""
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x - (width - 1) / 2, y - (height - 1) / 2)).flatten(1).to(images)


def _square(images: Tensor) -> Tensor:
    """(4, 2), the corners of a digit in pixels from its centre, clockwise from the top left."""
    corners = images.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return corners * _half((images.shape[2], images.shape[3]), images)


def _half(size: tuple[int, int], like: Tensor) -> Tensor:
    """Half the width and half the height of (h, w)."""
    return like.new_tensor([size[1], size[0]]) / 2


def _uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """(N,), drawn on the CPU."""
    return low + (high - low) * torch.rand(len(images), generator=generator).to(images)


def _normal(like: Tensor, generator: torch.Generator, deviation: float) -> Tensor:
    """Of a tensor's shape, drawn on the CPU."""
    return deviation * torch.randn(like.shape, generator=generator).to(like)


def _rotation(angle: Tensor) -> Tensor:
    """(N, 2, 2), turning x towards y."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, -sin, sin, cos), 1).unflatten(1, (2, 2))


class Distortion(NamedTuple):
    """One that the demo offers."""

    apply: Callable[[Tensor, torch.Generator], Tensor]  #: digits (N, 1, H, W) and a generator on the CPU, as in `rts`
    words: str


DISTORTIONS = {
    "R": Distortion(rotate, "rotated (up to 90 degrees either way)"),
    "RTS": Distortion(rts, "rotated (up to 45 degrees either way), scaled (0.7 to 1.2) and put at a random place"),
    "P": Distortion(project, "scaled (0.75 to 1), then each of four corners displaced by N(0, 5 pixels)"),
    "E": Distortion(bend, "scaled (0.75 to 1), then 4 x 4 points of a spline displaced by N(0, 1.5 pixels)"),
}
