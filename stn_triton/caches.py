"""Caches with a bound, which keep no object of a user's alive."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Holds the values that were used last: at most ``max_entries``, and ``max_bytes`` of them together, but for one.

    Args:
        bytes_of: the size of a value, which may grow after it was made: it is asked for whenever one is added.
    """

    def __init__(
        self, max_entries: int, max_bytes: float = math.inf, bytes_of: Callable[[Value], int] = lambda value: 0
    ) -> None:
        self.max_entries, self.max_bytes, self._bytes_of = max_entries, max_bytes, bytes_of
        self._lock = Lock()
        self.clear()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, made if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            self.misses += 1
            value = self._values[key] = make()
            while len(self._values) > 1 and (len(self._values) > self.max_entries or self._bytes() > self.max_bytes):
                self._values.popitem(last=False)
            return value

    def clear(self) -> None:
        """Forgets everything."""
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self.misses = 0

    def _bytes(self) -> int:
        return sum(map(self._bytes_of, self._values.values()))
