"""Runs a workload: the gate, then the times of all that passed it, side by side."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from .clock import Clock, clock_of
from .gate import Gate
from .inputs import Inputs, make_inputs
from .measure import Failed, attributed, calls_in_a_graph, device_times, host_times, interleaved
from .memory import peak_bytes
from .rivals import RIVALS, Job, Missing
from .steps import PASSES, Step, captured, steps_of
from .traffic import Flush, compulsory_bytes, touched_pixels
from .workloads import Workload

LONGEST_ON_CPU = 0.05  # seconds that PyTorch may take there, for which a batch is made smaller
FITTING_CALLS = 5  # of which the fastest counts
HOST_TURNS, HOST_CALLS = 5, 10


class Runner(NamedTuple):
    """How to measure."""

    device: torch.device
    clock: Clock
    rivals: tuple[str, ...]  #: names in `RIVALS`, beside ours and PyTorch's
    seconds: float  #: for each pass of each rival
    flush: Flush | None  #: called before each call, if times are to be those of a cold cache

    @classmethod
    def on(
        cls, device: torch.device, rivals: Iterable[str] = RIVALS, seconds: float = 0.2, cold: bool = False
    ) -> Runner:
        """Of a device."""
        chosen = tuple(name for name in RIVALS if name in {"ours", "pytorch", *rivals})
        return cls(device, clock_of(device), chosen, seconds, Flush(device) if cold else None)

    def run(self, workload: Workload) -> dict[str, Any]:
        """Everything about a workload, as JSON has it: times in microseconds, each sample."""
        measured = self.fitted(workload)
        inputs = make_inputs(measured, self.device)
        row: dict[str, Any] = {
            "name": workload.name,
            "source": workload.source,
            "description": measured.description,
            "batch": measured.image[0],
            "batch_of_model": workload.image[0],
            "bytes": compulsory_bytes(measured, touched_pixels(measured, inputs)),
            "cached": False,
            "rivals": {},
        }
        row["cached"] = self.flush is None and list(row["bytes"].values())[-1] <= _cache(self.device)
        jobs, gate = self.passed(measured, inputs, row["rivals"])
        steps = {name: steps_of(job, inputs) for name, job in jobs.items()}
        self.without_those_that_fail(steps, row["rivals"], lambda: self._peaks(steps, row["rivals"]))
        for name in PASSES:
            self.without_those_that_fail(steps, row["rivals"], lambda name=name: self._time(name, steps, row["rivals"]))
        if gate is not None and gate.restored():
            for name in steps:
                row["rivals"][name] = {"red": "somebody changed the inputs while all were timed"}
        elif "ours" in steps and gate is not None:  # what was timed last was right, too
            complaint = self._judged_again(gate, jobs["ours"])
            if complaint:
                row["rivals"]["ours"] = {"red": f"after it was timed: {complaint}"}
        return row

    def _judged_again(self, gate: Gate, ours: Job) -> str:
        try:
            return gate.judge(ours, ours=True).complaint
        except Exception as error:
            return reason(error)

    def without_those_that_fail(
        self, steps: dict[str, dict[str, Step]], rivals: dict[str, Any], measure: Callable[[], None]
    ) -> None:
        """Measures, and again without a rival that raises: it goes out of ``steps``, and why into ``rivals``."""
        while True:
            try:
                return measure()
            except Failed as failed:
                name, why = failed.name, reason(failed.__cause__ or failed)
            del steps[name]
            rivals[name] = {"missing": f"raised {why}"}

    def _peaks(self, steps: dict[str, dict[str, Step]], rivals: dict[str, Any]) -> None:
        """Peak memory of everybody's last pass; on a CPU compiled code hides what it takes."""
        for name, of_job in steps.items():
            hidden = self.device.type == "cpu" and name.startswith("compile")
            with attributed(name):
                rivals[name]["bytes"] = None if hidden else peak_bytes(list(of_job.values())[-1], self.device)

    def _time(self, pass_: str, steps: dict[str, dict[str, Step]], rivals: dict[str, Any]) -> None:
        """Everybody's times of a pass, in microseconds."""
        of_pass = {name: of_job[pass_] for name, of_job in steps.items() if pass_ in of_job}
        for mode, times in self.times(pass_, of_pass, rivals).items():
            for name, seconds in times.items():
                rivals[name].setdefault(mode, {})[pass_] = [round(1e6 * t, 2) for t in seconds]

    def fitted(self, workload: Workload) -> Workload:
        """On a CPU of half the images, and half of these, until PyTorch takes at most `LONGEST_ON_CPU`.

        By halves, so that two runs on a machine measure the same.
        """
        while self.device.type == "cpu" and workload.image[0] > 1:
            inputs = make_inputs(workload, self.device)
            step = list(steps_of(RIVALS["pytorch"](workload, inputs), inputs).values())[-1]
            if min(device_times(self.clock, step, FITTING_CALLS)) <= LONGEST_ON_CPU:
                break
            workload = workload.with_batch(workload.image[0] // 2)
        return workload

    def passed(self, workload: Workload, inputs: Inputs, rivals: dict[str, Any]) -> tuple[dict[str, Job], Gate | None]:
        """The jobs that pass the gate, by name, and the gate; into ``rivals`` goes what it says of each, or why one is
        missing.

        Without ours, or PyTorch's to measure by, there are none.
        """
        torch._dynamo.reset()  # what earlier workloads compiled would count against a limit
        jobs: dict[str, Job] = {}
        gate = None
        for name in sorted(self.rivals, key=lambda name: name != "pytorch"):
            try:
                job = RIVALS[name](workload, inputs)
                gate = gate or Gate(workload, inputs, job)
                verdict = gate.judge(job, ours=name == "ours")
            except Missing as why:
                rivals[name] = {"missing": str(why)}
                continue
            except Exception as error:
                rivals[name] = {"missing": f"raised {reason(error)}"}
                if name == "pytorch":
                    raise
                continue
            rivals[name] = {"errors": verdict.errors}
            if verdict.complaint:
                rivals[name]["red"] = verdict.complaint
            else:
                jobs[name] = job
        if gate is not None and "ours" in jobs:
            gate.forget_all_but(jobs["ours"])
        ordered = {name: rivals[name] for name in self.rivals}
        rivals.clear()
        rivals.update(ordered)
        gc.collect()
        wanted = self.rivals if {"ours", "pytorch"} <= jobs.keys() else ()
        return {name: jobs[name] for name in wanted if name in jobs}, gate

    def times(self, pass_: str, steps: dict[str, Step], rivals: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
        """Seconds by mode and rival: "eager"; on a GPU as a replayed "graph" too, and until the "host" is free."""
        times = {"eager": interleaved(self.clock, steps, self.seconds, self.flush)}
        if self.device.type != "cuda":
            return times
        times["host"] = {name: [] for name in steps}
        for _ in range(HOST_TURNS):
            for name, step in steps.items():
                with attributed(name):
                    times["host"][name] += host_times(self.clock, step, HOST_CALLS)
        times["graph"] = self.replayed(pass_, steps, rivals)
        return times

    def replayed(self, pass_: str, steps: dict[str, Step], rivals: dict[str, Any]) -> dict[str, list[float]]:
        """Seconds of a call in a CUDA graph of many, as many for everybody; into ``rivals`` goes why one has none."""
        lengths = {}
        for name, step in steps.items():
            try:
                lengths[name] = min(device_times(self.clock, captured(step, 1), 3))
            except Exception as error:
                rivals[name].setdefault("no_graph", {})[pass_] = reason(error)
        calls = 1 if self.flush else calls_in_a_graph(min(lengths.values(), default=0.0))
        graphs = {}
        for name in lengths:
            try:
                graphs[name] = captured(steps[name], calls)
            except Exception as error:
                rivals[name].setdefault("no_graph", {})[pass_] = reason(error)
        times = interleaved(self.clock, graphs, self.seconds, self.flush)
        return {name: [t / calls for t in taken] for name, taken in times.items()}


def reason(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _cache(device: torch.device) -> int:
    """Bytes of a GPU's last level of cache; unknown on a CPU: 0."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def ours_is_there(row: dict[str, Any]) -> bool:
    """Whether ours was timed in a row: it is neither missing nor red."""
    return "eager" in row.get("rivals", {}).get("ours", {})
