"""The three ways to the image's gradient beside PyTorch's, for affine maps of many scales.

`stn_triton.configs.MOST_CANDIDATES` says up to where an image is gathered; from this a person may set it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from stn_triton import affine_sample, configs, launch, plan

from ..codegen.capture import forget_plans
from ..gate import Gate
from ..inputs import Inputs, make_inputs
from ..measure import calls_in_a_graph, device_times, interleaved
from ..report import columns
from ..rivals import RIVALS
from ..runner import Runner
from ..steps import Step, captured, steps_of
from ..workloads import Workload

WAYS = ("gathered", "scattered", "in whole numbers")
#: By which images are made larger (above 1) or smaller; and the degrees that they are turned by.
ZOOMS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
TURNS = (0, 30)
#: Images as large as what they are warped to.
IMAGES = (
    Workload("c1", "", (8, 1, 512, 512), (512, 512), needs="image"),
    Workload("c3", "", (8, 3, 512, 512), (512, 512), needs="image"),
    Workload("c16", "", (8, 16, 256, 256), (256, 256), needs="image"),
    Workload("c64", "", (8, 64, 112, 112), (112, 112), needs="image", dtype="bfloat16", layout="channels_last"),
    Workload("c3-bicubic", "", (8, 3, 512, 512), (512, 512), needs="image", mode="bicubic"),
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


def measure(runner: Runner, workload: Workload, turn: int) -> dict[str, Any]:
    """Seconds of the backward pass to the image alone, by zoom and way; of those that the gate refuses, why."""
    inputs, zooms = make_inputs(workload, runner.device), {}
    for zoom in ZOOMS:
        steps, wrong = _steps(workload, inputs._replace(theta=_theta(zoom, turn, inputs.theta)))
        calls = 1
        if runner.device.type == "cuda":
            calls = calls_in_a_graph(min(device_times(runner.clock, captured(steps["pytorch"], 1), 3)))
            steps = {name: captured(step, calls) for name, step in steps.items()}
        times = interleaved(runner.clock, steps, runner.seconds, runner.flush)
        seconds = {name: [float(f"{t / calls:.4g}") for t in each] for name, each in times.items()}
        zooms[str(zoom)] = {"seconds": seconds, "wrong": wrong}
    return {"description": workload.description, "zooms": zooms, "most_candidates": configs.MOST_CANDIDATES}


def _theta(zoom: float, turn: int, like: Tensor) -> Tensor:
    cos, sin = (f(math.radians(turn)) / zoom for f in (math.cos, math.sin))
    return torch.tensor([[cos, -sin, 0.01], [sin, cos, 0.02]], device=like.device).repeat(like.shape[0], 1, 1)


def _steps(workload: Workload, inputs: Inputs) -> tuple[dict[str, Step], dict[str, str]]:
    """Backward passes by name, PyTorch's among them; and why others may not pass the gate."""
    ours, pytorch = (RIVALS[name](workload, inputs) for name in ("ours", "pytorch"))
    gate = Gate(workload, inputs, pytorch)
    steps, wrong = {"pytorch": steps_of(pytorch, inputs)["backward"]}, {}
    for way in WAYS:

        def call(image: Tensor, theta: Tensor, exact: bool = way == "in whole numbers") -> Tensor:
            return affine_sample(image, theta, workload.size, mode=workload.mode, deterministic=exact)

        job = ours._replace(call=call)
        with taken(way):
            complaint = gate.judge(job, ours=True).complaint
        if complaint:
            wrong[way] = complaint
        else:
            steps[way] = _by_way(way, steps_of(job, inputs)["backward"])
    return steps, wrong


def _by_way(way: str, step: Step) -> Step:
    def run(out: Tensor) -> Any:
        with taken(way):
            return (step.run_again or step.run)(out)

    return Step(step.prepare, run)


def failed(row: dict[str, Any]) -> bool:
    """Whether something is missing or wrong."""
    return "failed" in row or any(zoom["wrong"] for zoom in row["zooms"].values())


def table(rows: list[dict[str, Any]]) -> str:
    """Microseconds of each way, and ratios of medians."""
    text = []
    for row in rows:
        if "failed" in row:
            text.append(f"{row['name']}\n  FAILED: {row['failed']}")
            continue
        text.append(f"{row['name']}: {row['description']}")
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
