"""Bytes that a workload must move at least, and how many a second a device copies: the yardstick for both."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from math import prod
from statistics import median

import torch

from .clock import Clock
from .inputs import DTYPES, Inputs, transform_of
from .measure import device_times
from .rivals import exact_grid, sample
from .steps import Step
from .workloads import Workload

FLOAT32 = 4  #: bytes, of theta
COPIED = 2**30  #: bytes: a server's cache holds a quarter


def touched_pixels(workload: Workload, inputs: Inputs) -> int:
    """Pixels of the images that any output reads: those that an output of ones gives a gradient to."""
    n, _, h, w = workload.image
    theta = inputs.theta.detach()
    image = torch.zeros(n, 1, h, w, dtype=theta.dtype, device=theta.device, requires_grad=True)
    fill = None if inputs.fill is None else torch.zeros(1, device=theta.device)
    out = sample(replace(workload, mask=False), image, exact_grid(workload)(theta), fill)
    (weights,) = torch.autograd.grad(out, image, torch.ones_like(out))
    return int(weights.count_nonzero())


def compulsory_bytes(workload: Workload, touched: int) -> dict[str, int]:
    """By pass, each tensor once: read, or written whole.

    Forward the `touched_pixels` of the image in all channels, theta and the output, and the mask. Backward the output's
    gradient, theta, those pixels again where theta's gradient is needed, and the gradients. Pixels, not the sectors of
    memory that they lie in: what a cache has to fetch for scattered ones is more.
    """
    n, c, h, w = workload.image
    samples, pixels = n * (workload.transforms or 1), prod(workload.size)
    itemsize = DTYPES[workload.dtype].itemsize
    theta = samples * prod(transform_of(workload).parameter_shape(workload.size)) * FLOAT32
    image = n * c * h * w * itemsize
    read = touched * c * itemsize
    out = samples * pixels * (c + workload.mask) * itemsize
    forward = read + theta + out
    if workload.needs == "none":
        return {"forward": forward}
    backward = out + theta + workload.needs_image * image + workload.needs_theta * (read + theta)
    return {"forward": forward, "backward": backward, "both": forward + backward}


def copy_bandwidth(clock: Clock, device: torch.device) -> float:
    """Bytes a second, read and written, of a copy far larger than any cache."""
    source = torch.ones(COPIED // FLOAT32, device=device)
    target = torch.zeros_like(source)
    step = Step(lambda: None, lambda _: target.copy_(source))
    device_times(clock, step, 2)
    return 2 * COPIED / median(device_times(clock, step, 11))


class Flush:
    """Called, it fills the last level of cache with something else."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @cached_property
    def buffer(self) -> torch.Tensor:
        """Made when it is needed."""
        return torch.zeros(COPIED // FLOAT32, device=self.device)

    def __call__(self) -> None:
        self.buffer.zero_()
