"""Training and testing, the same for every model."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Digits
from .distort import Distortion

BATCH = 128
PEAK_RATE = 3e-3


def train(
    model: nn.Module, digits: Digits, distortion: Distortion, epochs: int, seed: int, on_step: Callable[[], object]
) -> None:
    """Trains in place by Adam with a one-cycle rate, every digit distorted afresh whenever it is seen.

    Args:
        model: (N, 1, 42, 42) -> (N, 10), on the digits' device.
        digits: not distorted.
        distortion: of each digit.
        epochs: passes over the training digits.
        seed: of batches and distortions.
        on_step: called after every step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, epochs * steps_per_epoch(digits))
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(digits.train_labels), generator=generator).to(digits.train_labels.device)
        for at in order.split(BATCH):
            step(model, optimizer, distortion.apply(digits.train_images[at], generator), digits.train_labels[at])
            schedule.step()
            on_step()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """One training step on a batch (N, 1, 42, 42) with labels (N,)."""
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def steps_per_epoch(digits: Digits) -> int:
    """Batches per pass over the training digits."""
    return -(-len(digits.train_labels) // BATCH)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes (N,) of images (N, 1, 42, 42)."""
    model.eval()
    return torch.cat([model(batch).argmax(1) for batch in images.split(1024)])
