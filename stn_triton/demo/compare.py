"""This package against PyTorch's two calls: the time of a training step, and how far the results differ."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import transform_sample
from ..transforms import TRANSFORMS
from .models import TransformerCNN
from .torch_grids import TORCH_GRIDS, Grid
from .train import PEAK_RATE, step

WARM_UPS = 3


class TwoCalls(nn.Module):
    """The transformer of a model, with the same parameters, but warping by PyTorch's grid and `F.grid_sample`.

    Args:
        localisation: (N, C, H, W) -> the parameters.
        transform: a name in `TORCH_GRIDS`.

    Shape: (N, C, H, W) -> (N, C, H, W) and theta.
    """

    def __init__(self, localisation: nn.Module, transform: str) -> None:
        super().__init__()
        self.localisation = localisation
        self.transform = transform

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The warped image and theta."""
        shape = TRANSFORMS[self.transform].parameter_shape((image.shape[2], image.shape[3]))
        theta = self.localisation(image).reshape(-1, *shape)
        return two_calls(self.transform, image, theta), theta


def two_calls(transform: str, image: Tensor, theta: Tensor) -> Tensor:
    """PyTorch's warp of an image (N, C, H, W) by theta, of the image's own size, with a sampling grid between."""
    grid = _grid_of(transform, (image.shape[2], image.shape[3]), theta.dtype, theta.device)
    return F.grid_sample(image, grid(theta), align_corners=False)


@lru_cache
def _grid_of(transform: str, size: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Grid:
    return TORCH_GRIDS[transform].of(size, False, dtype, device)


def step_times(
    model: TransformerCNN, transform: str, images: Tensor, labels: Tensor, repeats: int
) -> tuple[float, float]:
    """Median times of a training step with this package and with the two calls, measured in turn.

    Args:
        model: left as it is, the steps train copies.
        transform: the model's.
        images: a batch (N, 1, 42, 42).
        labels: (N,).
        repeats: steps of each that count.

    Returns:
        milliseconds: this package's, the two calls'.
    """
    ours, torchs = copy.deepcopy(model), copy.deepcopy(model)
    torchs.transformer = TwoCalls(torchs.localisation, transform)
    steps = [
        partial(step, m.train(), torch.optim.Adam(m.parameters(), PEAK_RATE), images, labels) for m in (ours, torchs)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARM_UPS + repeats):
        for which in (0, 1) if turn % 2 else (1, 0):
            elapsed = _milliseconds(steps[which], images.device)
            if turn >= WARM_UPS:
                times[which].append(elapsed)
    return median(times[0]), median(times[1])


class Difference(NamedTuple):
    """The largest absolute difference between two tensors, and the largest absolute value there is."""

    largest: float
    out_of: float


def differences(model: TransformerCNN, transform: str, images: Tensor) -> dict[str, Difference]:
    """How far the warp and its gradients are from those of the two calls, on the model's own theta.

    Args:
        model: gives theta.
        transform: the model's.
        images: (N, 1, 42, 42).

    Returns:
        differences of the output and of the gradients to theta and image, of the sum of the output times
        fixed random numbers.
    """
    with torch.no_grad():
        _, theta = model.transformer(images)
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)

    def results(warp: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        leaves = [theta.clone().requires_grad_(), images.clone().requires_grad_()]
        out = warp(leaves[1], leaves[0])
        return [out.detach(), *torch.autograd.grad(out, leaves, weights)]

    ours = results(partial(transform_sample, TRANSFORMS[transform]))
    torchs = results(partial(two_calls, transform))
    return {
        name: Difference((a - b).abs().max().item(), b.abs().max().item())
        for name, a, b in zip(("output", "gradient to theta", "gradient to image"), ours, torchs, strict=True)
    }


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    start = perf_counter()
    run()
    _synchronise(device)
    return 1000 * (perf_counter() - start)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
