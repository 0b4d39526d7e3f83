"""What a call costs on the host: before its kernel is launched, and before there is one to launch.

Measured on a CPU: with a launcher that does nothing, and by compiling for a GPU that is not there.
"""

from __future__ import annotations

import tempfile
import time
from unittest import mock

import torch
from triton import knobs

from stn_triton import affine_sample, launch

from .cases import Case

CALLS, ROUNDS = 1000, 21


def do_nothing(*args: object, **options: object) -> None:
    """A launcher: a mock would count its calls, and take longer."""


def microseconds() -> dict[str, float]:
    """Microseconds of one call of `affine_sample` without gradients, and of what it shares with any call.

    Of the fastest round: whatever else the machine does only adds.
    """
    image, theta = torch.randn(64, 1, 28, 28), torch.eye(2, 3).repeat(64, 1, 1)
    calls = {
        "affine_sample": lambda: affine_sample(image, theta),
        "torch.empty": lambda: torch.empty(image.shape),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    with (
        mock.patch.object(launch, "takes", return_value=True),
        mock.patch.object(launch, "_launch", do_nothing),
    ):
        for _ in range(ROUNDS):
            for name, call in calls.items():
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                times[name].append(1e6 * (time.perf_counter() - start) / CALLS)
    return {name: min(values) for name, values in times.items()}


def cold_seconds() -> dict[str, float]:
    """Seconds to compile a kernel that no process has compiled before: most of what a first call takes."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        for work in ("forward", "both"):
            start = time.perf_counter()
            Case(work=work, dtype="float64").launches()  # of a kind that this process has not compiled
            seconds[work] = time.perf_counter() - start
    return seconds


def report() -> str:
    """The figures as lines."""
    us, seconds = microseconds(), cold_seconds()
    return (
        f"host: affine_sample without gradient spends {us['affine_sample'] - us['torch.empty']:.1f} us of its own "
        f"before the launch, and {us['torch.empty']:.1f} us in torch.empty\n"
        f"a cold first call compiles for {seconds['forward']:.1f} s, its backward pass for {seconds['both']:.1f} s"
    )
