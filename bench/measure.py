"""Times of several steps side by side, in turns: what the machine does meanwhile falls on all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any

from .clock import Clock
from .steps import Step

IN_A_ROW = 5  # calls of one step before the next one's turn, as a training loop would
LONGEST_TURN = 0.05  # seconds, from which it is fewer
FEWEST_ROUNDS, MOST_ROUNDS = 5, 60
GRAPH_SECONDS, MOST_IN_A_GRAPH = 2e-4, 100


class Failed(RuntimeError):
    """A step raised, whose name is ``name``."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"{name} raised {type(error).__name__}: {error}")
        self.name = name


@contextmanager
def attributed(name: str) -> Iterator[None]:
    """Raises `Failed`, of that name, from what is raised within."""
    try:
        yield
    except Exception as error:
        raise Failed(name, error) from error


def interleaved(
    clock: Clock, steps: Mapping[str, Step], seconds: float, before: Callable[[], Any] | None = None
) -> dict[str, list[float]]:
    """Seconds of the device for each call of each step, by name.

    Args:
        clock: of the device.
        steps: called at least once before.
        seconds: for each step, about.
        before: called before every call, outside of its time.

    Raises:
        Failed: from what a step raised.
    """

    def times_of(name: str, count: int) -> list[float]:
        with attributed(name):
            return device_times(clock, steps[name], count, before)

    lengths = {name: min(times_of(name, 2)) for name in steps}
    calls = {name: max(1, min(IN_A_ROW, int(LONGEST_TURN / max(length, 1e-9)))) for name, length in lengths.items()}
    round_ = sum(calls[name] * lengths[name] for name in steps)
    rounds = int(max(FEWEST_ROUNDS, min(MOST_ROUNDS, seconds * len(steps) / max(round_, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in steps}
    names, random = list(steps), Random(0)
    for _ in range(rounds):
        random.shuffle(names)  # nobody always runs after the same other
        for name in names:
            times[name] += times_of(name, calls[name])
    return times


def device_times(clock: Clock, step: Step, count: int, before: Callable[[], Any] | None = None) -> list[float]:
    """Seconds from an idle device until each of so many calls is done there."""
    marks = []
    for _ in range(count):
        prepared = step.prepare()
        if before is not None:
            before()
        clock.synchronize()  # work still queued would hide what the host takes, of one call more than of another's
        start = clock.mark()
        done = step.run(prepared)
        marks.append((start, clock.mark()))
        del prepared, done  # before the next call, as in a training loop
    clock.synchronize()
    return [clock.seconds(start, end) for start, end in marks]


def calls_in_a_graph(length: float) -> int:
    """How many calls of so many seconds of the device make a CUDA graph in which its own launch does not show."""
    return max(1, min(MOST_IN_A_GRAPH, int(GRAPH_SECONDS / max(length, 1e-9))))


def host_times(clock: Clock, step: Step, count: int) -> list[float]:
    """Seconds until each of so many calls returns, the device idle before it: what the host has to do for it."""
    times = []
    for _ in range(count):
        prepared = step.prepare()
        clock.synchronize()
        start = clock.now()
        done = step.run(prepared)
        times.append(clock.now() - start)
        del prepared, done
    clock.synchronize()
    return times
