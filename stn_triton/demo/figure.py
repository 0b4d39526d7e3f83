"""The picture: distorted digits with the outline of what the transformer chose, and below them what it made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ..transforms import Transform
from .data import CLASSES

PAPER, INK, BOX, TOP, RIGHT, WRONG, OUTSIDE = (
    "#ffffff",
    "#1f2937",
    "#38bdf8",
    "#f97316",
    "#15803d",
    "#dc2626",
    "#e2e8f0",
)
#: Room around the canvas, in pixels, for outlines that reach beyond it.
MARGIN = 15


def outline(transform: Transform, theta: Tensor, size: tuple[int, int], per_side: int = 48) -> Tensor:
    """The edge of the transformer's output, as a line on its input, clockwise from the top left corner.

    Args:
        transform: the map.
        theta: its parameters, (N, ...).
        size: (H, W) of the input, pixels.
        per_side: points per side, as sides need not be straight.

    Returns:
        (N, 4 * per_side + 1, 2) of x and y in pixels, whole at pixel centres. The first per_side + 1 points are
        the top side.
    """
    along = torch.linspace(-1, 1, per_side + 1, dtype=theta.dtype, device=theta.device)[:-1]
    one = torch.ones_like(along)
    xy = torch.cat([torch.stack(side, 1) for side in ((along, -one), (one, along), (-along, one), (-one, -along))])
    uv = transform.points(theta, torch.cat((xy, xy[:1])))
    return ((uv + 1) * uv.new_tensor([size[1], size[0]]) - 1) / 2


def draw(
    path: Path,
    title: str,
    images: Tensor,
    rectified: Tensor,
    outlines: Tensor,
    labels: Tensor,
    alone: Tensor,
    transformed: Tensor,
) -> None:
    """Saves a picture of digits in columns of CLASSES, each above its rectified self.

    Args:
        path: where to, .png.
        title: above it all.
        images: (N, 1, H, W).
        rectified: (N, 1, h, w).
        outlines: (N, P, 2), pixels of the images, as from `outline`.
        labels: (N,), what the digits are.
        alone: (N,), what the CNN alone takes them for.
        transformed: (N,), what the CNN with the transformer takes them for.
    """
    rows = -(-len(images) // CLASSES)
    figure = Figure(figsize=(1.22 * CLASSES, 3.05 * rows + 0.95), facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, color=INK, y=1 - 0.18 / figure.get_figheight(), va="top")
    axes = figure.subplots(2 * rows, CLASSES, squeeze=False)
    for unused in axes[-2:, len(images) - CLASSES * (rows - 1) :].flat:
        unused.axis("off")
    for k in range(len(images)):
        row, column = divmod(k, CLASSES)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        _show(above, images[k, 0], MARGIN)
        _draw_outline(above, outlines[k].cpu().numpy())
        _caption(above, "CNN", int(alone[k]), int(labels[k]))
        _show(below, rectified[k, 0])
        _caption(below, "with ST", int(transformed[k]), int(labels[k]))
    figure.text(
        0.5, 0.14 / figure.get_figheight(),
        "Test digits with the outline of what the spatial transformer (ST) chose, its top side orange; below each, "
        "what it chose as the CNN sees it.  Red: wrong class.",
        ha="center", fontsize=9.5, color=INK,
    )  # fmt: skip
    figure.subplots_adjust(
        left=0.01, right=0.99, wspace=0.06, hspace=0.2,
        top=1 - 0.55 / figure.get_figheight(), bottom=0.58 / figure.get_figheight(),
    )  # fmt: skip
    figure.savefig(path, dpi=150)


def _show(axes: Axes, image: Tensor, margin: float = 0.0) -> None:
    """An image with room around it, in pixels."""
    pixels = image.detach().cpu().numpy()
    height, width = pixels.shape
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axes.set(
        xlim=(-0.5 - margin, width - 0.5 + margin), ylim=(height - 0.5 + margin, -0.5 - margin),
        xticks=(), yticks=(), facecolor=OUTSIDE,
    )  # fmt: skip
    axes.spines[:].set_visible(False)


def _draw_outline(axes: Axes, points: np.ndarray) -> None:
    top = len(points) // 4 + 1
    axes.plot(*points.T, color=BOX, linewidth=1.3, solid_joinstyle="miter")
    axes.plot(*points[:top].T, color=TOP, linewidth=2)


def _caption(axes: Axes, model: str, predicted: int, label: int) -> None:
    axes.text(
        0.5, -0.04, f"{model}: {predicted}", transform=axes.transAxes, ha="center", va="top", fontsize=10,
        color=RIGHT if predicted == label else WRONG,
        fontweight="normal" if predicted == label else "bold",
    )  # fmt: skip
