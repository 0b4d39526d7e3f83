"""Time on a device: points in its queue of work, and the host's own clock beside them."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Marks are put into the device's queue; seconds between two can be read once the device has been waited for."""

    def mark(self) -> Any:
        """A point in time, when the work queued before it is done."""

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks that the device has passed."""

    def synchronize(self) -> None:
        """Waits until all queued work is done."""

    def now(self) -> float:
        """Seconds of the host."""


class HostClock:
    """Of a CPU, where a call has done its work when it returns."""

    now = mark = staticmethod(time.perf_counter)

    def seconds(self, start: float, end: float) -> float:
        """Their difference."""
        return end - start

    def synchronize(self) -> None:
        """Nothing to wait for."""


class CudaClock:
    """Of a GPU: marks are events in the current stream."""

    now = staticmethod(time.perf_counter)

    def mark(self) -> torch.cuda.Event:
        """A recorded event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Of milliseconds, to a resolution of about half a microsecond."""
        return start.elapsed_time(end) / 1e3

    def synchronize(self) -> None:
        """The whole device."""
        torch.cuda.synchronize()


def clock_of(device: torch.device) -> Clock:
    """The clock that fits."""
    return CudaClock() if device.type == "cuda" else HostClock()
