"""The three ways to the image's gradient beside PyTorch's, for affine maps of many scales.

`stn_triton.configs.MOST_CANDIDATES` says up to where an image is gathered; from this a person may set it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_triton import affine_sample, configs, launch, plan

from ..codegen.capture import forget_plans
from ..gate import MOST, relative_error
from ..measure import calls_in_a_graph, device_times, interleaved
from ..report import columns
from ..runner import Runner
from ..steps import Step, captured

WAYS = ("gathered", "scattered", "in whole numbers")
#: By which images are made larger (above 1) or smaller; and the degrees that they are turned by.
ZOOMS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
TURNS = (0, 30)


class Case(NamedTuple):
    """Images, as large as what they are warped to."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    mode: str = "bilinear"

    def name(self, turn: int) -> str:
        """Of a row."""
        layout = "channels_last " if self.memory_format is torch.channels_last else ""
        size = "x".join(map(str, self.shape))
        return f"{size} {str(self.dtype).removeprefix('torch.')} {layout}{self.mode}, turned by {turn}"


CASES = (
    Case((8, 1, 512, 512)),
    Case((8, 3, 512, 512)),
    Case((8, 16, 256, 256)),
    Case((8, 64, 112, 112), torch.bfloat16, torch.channels_last),
    Case((8, 3, 512, 512), mode="bicubic"),
)


@contextmanager
def taken(way: str) -> Iterator[None]:
    """Within, every image goes this way."""
    forget_plans()
    try:
        with (
            mock.patch.object(launch, "gathers", plan.gathers if way == "gathered" else lambda spec: False),
            mock.patch.object(plan, "MOST_CANDIDATES", 2**31 - 1),
        ):
            yield
    finally:
        forget_plans()


def measure(runner: Runner, case: Case, turn: int) -> dict[str, Any]:
    """Seconds of the backward pass to the image alone, by zoom and way; those that are wrong have words instead."""
    zooms = {}
    for zoom in ZOOMS:
        steps, wrong = _steps(runner, case, zoom, turn)
        calls = 1
        if runner.device.type == "cuda":
            calls = calls_in_a_graph(min(device_times(runner.clock, captured(steps["pytorch"], 1), 3)))
            steps = {name: captured(step, calls) for name, step in steps.items()}
        times = interleaved(runner.clock, steps, runner.seconds, runner.flush)
        seconds = {name: [float(f"{t / calls:.4g}") for t in each] for name, each in times.items()}
        zooms[str(zoom)] = {"seconds": seconds, "wrong": wrong}
    return {"zooms": zooms, "most_candidates": configs.MOST_CANDIDATES}


def _steps(runner: Runner, case: Case, zoom: float, turn: int) -> tuple[dict[str, Step], dict[str, str]]:
    """By name, of those that compute what the exact sums do; and what is wrong with the others."""
    draw, size = torch.Generator().manual_seed(0), case.shape[2:]
    image, d_out = (torch.randn(case.shape, generator=draw) for _ in range(2))
    image, d_out = (t.to(runner.device, case.dtype, memory_format=case.memory_format) for t in (image, d_out))
    image.requires_grad_()
    cos, sin = (f(math.radians(turn)) / zoom for f in (math.cos, math.sin))
    theta = torch.tensor([[cos, -sin, 0.01], [sin, cos, 0.02]], device=runner.device).expand(case.shape[0], 2, 3)
    grid = F.affine_grid(theta, list(case.shape), align_corners=False)

    def ours(way: str) -> Step:
        def backward(out: Tensor) -> Tensor:
            with taken(way):
                return torch.autograd.grad(out, image, d_out, retain_graph=True)[0]

        exactly = way == "in whole numbers"
        return Step(lambda: affine_sample(image, theta, size, mode=case.mode, deterministic=exactly), backward)

    def sample() -> Tensor:
        if case.dtype.itemsize < 4:  # as under autocast
            return F.grid_sample(image.float(), grid, case.mode, align_corners=False).to(case.dtype)
        return F.grid_sample(image, grid, case.mode, align_corners=False)

    steps = {way: ours(way) for way in WAYS}
    steps["pytorch"] = Step(sample, lambda out: torch.autograd.grad(out, image, d_out, retain_graph=True)[0])
    results = {name: step.run(step.prepare()).double() for name, step in steps.items()}
    errors = {name: relative_error(result, results["in whole numbers"]) for name, result in results.items()}
    limit = MOST + torch.finfo(case.dtype).eps
    wrong = {name: f"off by {error:.1e}" for name, error in errors.items() if not error <= limit}
    return {name: step for name, step in steps.items() if name not in wrong or name == "pytorch"}, wrong


def failed(row: dict[str, Any]) -> bool:
    """Whether something is missing or wrong."""
    return "failed" in row or any(zoom["wrong"] for zoom in row["zooms"].values())


def table(rows: list[dict[str, Any]]) -> str:
    """Microseconds of each way, and ratios of medians."""
    text = []
    for row in rows:
        text.append(row["name"])
        if "failed" in row:
            text.append(f"  FAILED: {row['failed']}")
            continue
        cells = [["zoom", *WAYS, "pytorch", "scattered / gathered", "pytorch / gathered"]]
        for zoom, measured in row["zooms"].items():
            medians = {name: median(seconds) for name, seconds in measured["seconds"].items()}
            us = [f"{1e6 * medians[name]:.1f}" if name in medians else "" for name in (*WAYS, "pytorch")]
            gathered = medians.get("gathered", math.nan)
            ratios = [f"{medians.get(name, math.nan) / gathered:.2f}" for name in ("scattered", "pytorch")]
            cells.append([zoom, *us, *ratios])
        text += [f"  {line}" for line in columns(cells)]
        text += [f"  {z}: {name} {words}" for z, m in row["zooms"].items() for name, words in m["wrong"].items()]
    return "\n".join(text)
