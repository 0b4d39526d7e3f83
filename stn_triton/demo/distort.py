"""RTS, the paper's distortion: a digit rotated, scaled and put at a random place of a larger canvas."""

from __future__ import annotations

from math import radians

import torch
from torch import Tensor

from ..functional import affine_sample

CANVAS = (42, 42)
MAX_ANGLE = radians(45)
SCALES = (0.7, 1.2)


def rts(images: Tensor, generator: torch.Generator, canvas: tuple[int, int] = CANVAS) -> Tensor:
    """Digits at random angles, scales and places.

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
    angle = MAX_ANGLE * (2 * draws[0] - 1)
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * draws[1]
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
    half_digit = shift.new_tensor([size[1], size[0]]) / 2
    half_canvas = shift.new_tensor([canvas[1], canvas[0]]) / 2
    return torch.cat((back * half_canvas, offset), 2) / half_digit[:, None]


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
    height, width = images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centres = torch.stack((x - (width - 1) / 2, y - (height - 1) / 2)).flatten(1).to(images)
    turned = scale[:, None, None] * (_rotation(angle) @ centres)
    # A turned pixel reaches this far beyond its centre, along x as along y.
    reach = (scale * (angle.cos().abs() + angle.sin().abs()) / 2)[:, None]
    blank = images.flatten(1)[:, None] == 0
    low = -turned.masked_fill(blank, torch.inf).amin(2) + reach
    high = -turned.masked_fill(blank, -torch.inf).amax(2) - reach
    half_canvas = images.new_tensor([canvas[1], canvas[0]]) / 2
    low, high = low - half_canvas, high + half_canvas
    middle = ((low + high) / 2).nan_to_num(0.0)  # an empty image has no extent
    fits = low <= high
    return torch.where(fits, low, middle), torch.where(fits, high, middle)


def _rotation(angle: Tensor) -> Tensor:
    """(N, 2, 2), turning x towards y."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, -sin, sin, cos), 1).unflatten(1, (2, 2))
