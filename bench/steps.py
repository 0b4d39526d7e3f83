"""What is timed: a pass of a job, and what has to be there before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .inputs import Inputs
from .rivals import Job

PASSES = ("forward", "backward", "both")


class Step(NamedTuple):
    """One call: what `prepare` returns is given to `run`, and only `run` is timed."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Any]


def steps_of(job: Job, inputs: Inputs) -> dict[str, Step]:
    """The passes of a job by name: forward alone where no gradient is needed."""
    image, parameters = inputs.image, job.parameters
    wanted = [leaf for leaf in (image, parameters) if leaf.requires_grad and not job.forward_only]

    def forward(_: None = None) -> Any:
        return job.call(image, parameters)

    def backward(out: Any) -> Any:
        return torch.autograd.grad(out, wanted, inputs.d_out if isinstance(out, tuple) else inputs.d_out[0])

    steps = {"forward": Step(_nothing, forward)}
    if wanted:
        steps["backward"] = Step(forward, backward)
        steps["both"] = Step(_nothing, lambda _: backward(forward()))
    return steps


def captured(step: Step, calls: int) -> Step:
    """So many calls as one CUDA graph, which `run` replays. Raises RuntimeError where a call cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # backward runs on the stream that its forward ran on
        for _ in range(3):
            step.run(step.prepare())
        prepared = [step.prepare() for _ in range(calls)]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for each in prepared:
            step.run(each)
    return Step(_nothing, lambda _: graph.replay())


def _nothing() -> None:
    return None
