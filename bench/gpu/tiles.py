"""The search for launch shapes: the pinned one of `stn_triton.configs` beside others, timed in turns.

What is found is for a person to look at, and to pin with its reason: nothing is tuned at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

from stn_triton import configs, plan
from stn_triton.configs import LaunchConfig
from stn_triton.spec import WarpSpec

from ..codegen.capture import forget_plans
from ..gate import Gate
from ..inputs import make_inputs, transform_of
from ..measure import calls_in_a_graph, device_times, interleaved
from ..report import columns
from ..rivals import RIVALS
from ..runner import Runner, reason
from ..steps import Step, captured, steps_of
from ..workloads import WORKLOADS, Workload

#: One workload for each kind of launch: few channels or many, small or large, theta's sums, atomics, channels_last.
SEARCHED = (
    "large-c1", "kornia-affine-n8", "features-112", "mnist-affine", "bevformer", "svhn-affine", "stn-tutorial",
    "birds-4-crops", "mnist-tps", "basicvsr", "features-56", "large-c3", "pwc-net-c128",
)  # fmt: skip


def searched() -> list[Workload]:
    """In the order of `SEARCHED`."""
    by_name = {workload.name: workload for workload in WORKLOADS}
    return [by_name[name] for name in SEARCHED]


def passes(workload: Workload) -> list[str]:
    """Those with a kernel of their own; backward is without the gather."""
    transform, options = transform_of(workload), (workload.mode, workload.padding_mode, workload.align_corners)
    gathered = workload.needs_image and plan.gathers(WarpSpec(transform, *options, workload.size))
    return ["forward"] + ["backward"] * (workload.needs != "none") + ["gather"] * gathered


class Shape(NamedTuple):
    """What is searched."""

    config: LaunchConfig
    programs: int  #: `configs.ENOUGH_PROGRAMS`

    @property
    def label(self) -> str:
        """Field by field."""
        fields = {**self.config._asdict(), "programs": self.programs}
        return " ".join(f"{name}={value}" for name, value in fields.items())


def shapes(pinned: LaunchConfig, name: str) -> list[Shape]:
    """The pinned shape, then its neighbours: one field changed; and tiles of as many lanes, twice as many, and half.

    The channels that are written out stay, a kernel of others is a choice of its own; so do a gather's rows of a lane.
    """
    lanes = pinned.tile_h * pinned.tile_w
    tiles = [(h, total // h) for total in (lanes, 2 * lanes, lanes // 2) for h in (1, 2, 4, 8, 16) if total % h == 0]
    configs_ = [pinned._replace(tile_h=h, tile_w=w) for h, w in tiles if w >= 4 and h * w * pinned.lanes_c in LANES]
    configs_ += [pinned._replace(unroll=unroll) for unroll in (1, 2, 4) if name != "gather"]
    configs_ += [pinned._replace(max_steps=steps) for steps in (1, 2, 4, 8, 16, 32)]
    own = configs.ENOUGH_PROGRAMS
    found = [Shape(pinned, own)]
    found += [Shape(pinned, programs) for programs in (own // 4, own // 2, own * 2, own * 4)]
    found += [Shape(config, own) for config in configs_]
    return list(dict.fromkeys(found))


LANES = (32, 64, 128, 256)  #: of a program: one to eight warps


@contextmanager
def launched_as(name: str, shape: Shape | None) -> Iterator[list[LaunchConfig]]:
    """Within, the pass of that name is planned with the shape; the list gets the configs it would have had."""
    own: list[LaunchConfig] = []
    function = "_gather_config" if name == "gather" else "_config"
    choose = getattr(plan, function)

    def chosen(*arguments: Any) -> LaunchConfig:
        config = choose(*arguments)
        if name != "gather" and arguments[0] != (name == "forward"):
            return config
        own.append(config)
        return shape.config if shape else config

    forget_plans()
    try:
        with (
            mock.patch.object(plan, function, chosen),
            mock.patch.object(configs, "ENOUGH_PROGRAMS", shape.programs if shape else configs.ENOUGH_PROGRAMS),
        ):
            yield own
    finally:
        forget_plans()


def search(runner: Runner, workload: Workload, name: str) -> dict[str, Any]:
    """Seconds of a pass by launch shape, of those that pass the gate; and why the others do not."""
    inputs = make_inputs(workload, runner.device)
    job = RIVALS["ours"](workload, inputs)
    gate = Gate(workload, inputs, RIVALS["pytorch"](workload, inputs))
    step = steps_of(job, inputs)["forward" if name == "forward" else "backward"]
    with launched_as(name, None) as own:
        step.run(step.prepare())
    passed: list[Shape] = []
    refused: dict[str, str] = {}
    for shape in shapes(own[0], name):
        try:
            with launched_as(name, shape):
                complaint = gate.judge(job, ours=True).complaint
        except Exception as error:
            complaint = reason(error)
        if complaint:
            refused[shape.label] = complaint
        else:
            passed.append(shape)
    steps, calls = {shape.label: step for shape in passed}, 1
    if runner.device.type == "cuda" and passed:  # graphs keep what they replay: after all that is not replayed

        def replayed(shape: Shape, calls: int) -> Step:
            with launched_as(name, shape):
                return captured(step, calls)

        calls = calls_in_a_graph(min(device_times(runner.clock, replayed(passed[0], 1), 3)))
        steps = {shape.label: replayed(shape, calls) for shape in passed}
    times = interleaved(runner.clock, steps, runner.seconds, runner.flush)
    return {
        "pinned": shapes(own[0], name)[0].label,
        "seconds": {label: [float(f"{t / calls:.4g}") for t in taken] for label, taken in times.items()},
        "refused": refused,
    }


def failed(row: dict[str, Any]) -> bool:
    """Whether the pinned shape has no times, by which others are judged."""
    return "failed" in row or row["pinned"] not in row["seconds"]


def table(rows: list[dict[str, Any]]) -> str:
    """The pinned shape of each launch and the three fastest, with what they take of its time."""
    cells = [["", "us", "of pinned", "shape"]]
    refused = []
    for row in rows:
        if "failed" in row:
            cells.append([row["name"], "", "", f"FAILED: {row['failed']}"])
            continue
        times = {label: median(seconds) for label, seconds in row["seconds"].items()}
        pinned = times.get(row["pinned"], float("nan"))
        fastest = sorted(times, key=times.__getitem__)[:3]
        for label in [row["pinned"], *fastest]:
            if label in times:
                cells.append([row["name"], f"{1e6 * times[label]:.1f}", f"{times[label] / pinned:.2f}", label])
        refused += [f"{row['name']}, {label}: {complaint}" for label, complaint in row["refused"].items()]
    return "\n".join([*columns(cells), *(f"refused: {line}" for line in refused)])
