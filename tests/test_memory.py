"""Memory that a call takes beside the tensors of its caller: live bytes at the peak, counted."""

from math import prod
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bench.memory import LiveBytes
from stn_triton import TRANSFORMS, ThinPlateSpline, Transform, configs, launch, plan, transform_sample


class Case(NamedTuple):
    """A workload of float32."""

    transform: Transform
    image: tuple[int, ...]
    batch: tuple[int, ...]  #: of theta, (N,) or (N, M)
    size: tuple[int, int]


LATTICE = np.stack(np.meshgrid(*[np.linspace(-1, 1, 5)] * 2), -1).reshape(-1, 2)
CASES = {
    "spline of 25 points": Case(ThinPlateSpline(LATTICE), (4, 3, 256, 256), (4,), (256, 256)),
    "four crops of birds": Case(TRANSFORMS["attention"], (16, 3, 448, 448), (16, 4), (224, 224)),
}


class Bytes(NamedTuple):
    """What a call takes at most beside the tensors of its caller, which are image, theta, output and d_output."""

    forward: int  #: with the output
    backward: int  #: with the gradients, and what the forward pass saved for them
    out: int
    d_image: int
    d_theta: int
    grids: int  #: all of them, if they were made


def count(case: Case, device: torch.device) -> Bytes:
    """Of a call that is not the first of its kind, with gradients to image and theta."""
    image = torch.zeros(case.image, device=device, requires_grad=True)
    identity = case.transform.identity(case.size, device=device)
    theta = identity.repeat(*case.batch, *[1] * identity.dim()).requires_grad_()

    def call():
        return transform_sample(case.transform, image, theta, case.size)

    d_out = torch.zeros_like(call())
    with LiveBytes() as live:
        out = call()
        forward, live.peak = live.peak, live.now
        gradients = torch.autograd.grad(out, [image, theta], d_out)
        backward = live.peak - out.nbytes
    sizes = out.nbytes, *(gradient.nbytes for gradient in gradients)
    assert forward >= sizes[0]  # or nothing was counted
    assert backward >= sum(sizes[1:])
    del out, gradients
    assert live.now == 0
    return Bytes(forward, backward, *sizes, 8 * prod(case.batch) * prod(case.size))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels_take_what_they_give(kernel_path, monkeypatch, case):
    """And a twentieth at most: no grid, no copy of the image for each transform, few partial sums."""
    if plan.INTERPRETED:  # launches as on a GPU, with kernels, which allocate nothing, left out
        monkeypatch.setattr(launch, "_launch", lambda *args, **options: None)
        monkeypatch.setattr(plan, "_config", lambda *args: configs.choose_config(*args[:2], args[2].size[1], *args[3:]))
    taken = count(case, kernel_path.device)
    assert taken.forward <= 1.05 * taken.out
    assert taken.backward <= 1.05 * (taken.d_image + taken.d_theta)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_torch_operations_take_grids_besides(torch_path, case):
    """Forward all grids, which are saved, and the output; backward the grids, their gradients, and the image's. Of M
    transforms the output, and backward its gradient, once more, in the order that torch's sampler has.

    And a hundredth, for what is made of theta.
    """
    taken = count(case, torch_path.device)
    again = taken.out if len(case.batch) == 2 else 0
    assert taken.forward <= 1.01 * (taken.out + again + taken.grids)
    assert taken.backward <= 1.01 * (taken.d_image + taken.d_theta + again + 2 * taken.grids)
