"""The paper's own claim about time (section 4.2): a CNN for house numbers, with and without four transformers.

Its "ST-CNN Multi", four transformers in front of the first four convolutions, is there 6 % slower than the CNN, forward
and backward. The networks are those of its appendix A.3, but for dropout; the images are noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_triton import FullyConnectedLocalisation, SpatialTransformer
from stn_triton.demo.compare import TwoCalls

from .clock import Clock
from .gate import SLACK, TIMES_PYTORCH_OURS, relative_error
from .measure import device_times, interleaved
from .steps import Step

NAME = "svhn-cnn"
LINE = "the paper's CNN without and with four affine transformers, a training step (the paper, 4.2)"
PAPER = 0.06  #: what it reports
#: Filters of 5 x 5, and whether a 2 x 2 maximum follows.
CONVOLUTIONS = [
    (48, True),
    (64, False),
    (128, True),
    (160, False),
    (192, True),
    (192, False),
    (192, True),
    (192, False),
]
TRANSFORMERS = 4
HIDDEN = (3072, 3072, 3072)
DIGITS, CLASSES = 5, 11  # up to five digits, or none
SIZE = 64
BATCH = 128
LONGEST = 1.0  # seconds that the CNN may take on a CPU, where the batch is halved until it does
TIMES_A_PASS = 80  # as long as a warp's pass is measured: the difference is a few per cent of a long step
MODELS = ("cnn", "ours", "pytorch")

Warp = Callable[[nn.Module], nn.Module]  # a transformer of a localisation network


class FirstOf(nn.Module):
    """A module that returns a tuple, of which the first is wanted."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """The first."""
        return self.module(x)[0]


WARPS: dict[str, Warp] = {
    "ours": SpatialTransformer,
    "pytorch": lambda localisation: FirstOf(TwoCalls(localisation, "affine")),
}


def build(warp: Warp | None) -> nn.Sequential:
    """The CNN, (N, 3, 64, 64) -> (N, 55), with transformers if there is a warp; always of the same weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels, size = 3, SIZE
    for k, (filters, pooled) in enumerate(CONVOLUTIONS):
        if warp and k < TRANSFORMERS:
            with torch.random.fork_rng(devices=[]):
                localisation = FullyConnectedLocalisation((channels, size, size), (32, 32))
                with torch.no_grad():  # no longer the identity, as after some training
                    localisation[-1].bias += 0.05 * torch.randn(6)
                layers.append(warp(localisation))
        layers += [nn.Conv2d(channels, filters, 5, padding=2), nn.ReLU()]
        if pooled:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        channels = filters
    layers.append(nn.Flatten())
    width = channels * size**2
    for units in HIDDEN:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, DIGITS * CLASSES))


def measure(clock: Clock, device: torch.device, seconds: float) -> dict[str, Any]:
    """Seconds of a step forward and backward for each of `MODELS`, or what the gate says against it.

    ``seconds`` is what a pass of a warp is given.
    """
    models = {"cnn": build(None), **{name: build(warp) for name, warp in WARPS.items()}}
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(CLASSES, (BATCH, DIGITS))
    models = {name: model.to(device) for name, model in models.items()}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        complaint = gate({name: models[name] for name in WARPS}, images[:2].to(device))
    if complaint:
        return {"red": complaint}

    def steps(batch: int) -> dict[str, Step]:
        x, y = images[:batch].to(device), labels[:batch].to(device)
        return {name: Step(lambda: None, lambda _, model=model: train(model, x, y)) for name, model in models.items()}

    batch = BATCH
    while device.type == "cpu" and batch > 1 and device_times(clock, steps(batch)["cnn"], 1)[0] > LONGEST:
        batch //= 2
    steps_of_batch = steps(batch)
    for step in steps_of_batch.values():
        device_times(clock, step, 2)
    return {"batch": batch, "seconds": interleaved(clock, steps_of_batch, TIMES_A_PASS * seconds)}


def train(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Gradients of all parameters."""
    logits = model(images).unflatten(1, (DIGITS, CLASSES)).transpose(1, 2)
    return list(torch.autograd.grad(F.cross_entropy(logits, labels), list(model.parameters())))


def gate(models: dict[str, nn.Module], images: Tensor) -> str:
    """What is wrong with the logits of ours, by the rule of `bench.gate`; empty if nothing is.

    Gradients are judged where such a warp is a workload: here they jump at the kinks of the other layers.
    """
    with torch.no_grad():
        truth = copy.deepcopy(models["pytorch"]).double()(images.double())
        errors = {name: relative_error(model(images), truth) for name, model in models.items()}
    limit = TIMES_PYTORCH_OURS * errors["pytorch"] + SLACK
    return "" if errors["ours"] <= limit else f"logits off by {errors['ours']:.1e} (limit {limit:.1e})"
