"""What is timed: a pass of a job, and what has to be there before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .gate import as_tuple, relative_error
from .inputs import Inputs
from .rivals import Job

REPLAYED = 1e-3  #: what a result may change by from run to run: sums by atomics, in any order

PASSES = ("forward", "backward", "both")


class Step(NamedTuple):
    """One call: what `prepare` returns is given to `run`, and only `run` is timed."""

    prepare: Callable[[], Any]
    run: Callable[[Any], Any]
    run_again: Callable[[Any], Any] | None = None  #: what can be replayed, if `run` uses up what was prepared


def steps_of(job: Job, inputs: Inputs) -> dict[str, Step]:
    """The passes of a job by name: forward alone where no gradient is needed."""
    image, parameters = inputs.image, job.parameters
    wanted = [leaf for leaf in (image, parameters) if leaf.requires_grad and not job.forward_only]

    def forward(_: None = None) -> Any:
        return job.call(image, parameters)

    def backward(out: Any, keep: bool = False) -> Any:
        d_out = inputs.d_out if isinstance(out, tuple) else inputs.d_out[0]
        return torch.autograd.grad(out, wanted, d_out, retain_graph=keep)

    steps = {"forward": Step(_nothing, forward)}
    if wanted:
        steps["backward"] = Step(forward, backward, partial(backward, keep=True))
        steps["both"] = Step(_nothing, lambda _: backward(forward()))
    return steps


def captured(step: Step, calls: int) -> Step:
    """So many calls as one CUDA graph, which `run` replays.

    The graph reads what was prepared for it: that lives as long as the step does. Raises RuntimeError where a call
    cannot be captured, or its replay does not write what the call does.
    """
    stream, current = capture_stream(), torch.cuda.current_stream()
    run = step.run_again or step.run
    try:
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # backward runs on the stream that its forward ran on
            for _ in range(3):
                expected = [tensor.detach() for tensor in as_tuple(run(step.prepare()))]
            prepared = [step.prepare() for _ in range(calls)]
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for each in prepared:
                result = None  # before the next call, as where it is not replayed
                result = run(each)
    finally:
        torch.cuda.set_stream(current)  # a capture that fails would leave its own
    if not replays(graph.replay, [tensor.detach() for tensor in as_tuple(result)], expected):
        raise RuntimeError("replayed, it computes something else")
    return Step(_nothing, lambda _, kept=prepared: graph.replay())


def replays(replay: Callable[[], Any], results: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether a replay writes over the results what is expected."""
    for result in results:
        result.fill_(torch.nan)
    replay()
    return all(relative_error(a, b.double()) <= REPLAYED for a, b in zip(results, expected, strict=True))


@cache
def capture_stream() -> torch.cuda.Stream:
    """One for all graphs, so that none waits for another's."""
    return torch.cuda.Stream()


def _nothing() -> None:
    return None
