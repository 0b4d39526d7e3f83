"""Bytes that a workload must move at least, and how many a second a device copies: the yardstick for both."""

from __future__ import annotations

from math import prod
from statistics import median

import torch

from .clock import Clock
from .inputs import DTYPES, transform_of
from .measure import device_times
from .steps import Step
from .workloads import Workload

TAPS = {"nearest": 1, "bilinear": 4, "bicubic": 16}
FLOAT32 = 4  #: bytes, of theta


def compulsory_bytes(workload: Workload) -> dict[str, int]:
    """By pass, each tensor once: read, or written whole.

    Forward the image, as much of it as its outputs can touch, theta and the output, and the mask. Backward the output's
    gradient, theta, the image where theta's gradient is needed, and the gradients.
    """
    n, c, h, w = workload.image
    samples, pixels = n * (workload.transforms or 1), prod(workload.size)
    itemsize = DTYPES[workload.dtype].itemsize
    theta = samples * prod(transform_of(workload).parameter_shape(workload.size)) * FLOAT32
    image = n * c * h * w * itemsize
    touched = min(image, TAPS[workload.mode] * samples * pixels * c * itemsize)
    out = samples * pixels * (c + workload.mask) * itemsize
    forward = touched + theta + out
    if workload.needs == "none":
        return {"forward": forward}
    backward = out + theta + workload.needs_image * image + workload.needs_theta * (touched + theta)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def copy_bandwidth(clock: Clock, device: torch.device) -> float:
    """Bytes a second, read and written, of a copy far larger than any cache."""
    size = 2**30
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    step = Step(lambda: None, lambda _: target.copy_(source))
    device_times(clock, step, 2)
    return 2 * size / median(device_times(clock, step, 11))


class Flush:
    """Called, it fills the last level of cache with something else."""

    def __init__(self, device: torch.device) -> None:
        self.buffer = torch.zeros(2**28, device=device)  # 1 GiB: a server's cache holds a quarter

    def __call__(self) -> None:
        self.buffer.zero_()
