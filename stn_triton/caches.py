"""Bounded caches that keep none of the user's objects alive."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Keeps the most recently used values: at most ``max_entries``, of at most ``max_bytes`` in total.

    The newest stays even if it alone is larger.

    Args:
        bytes_of: returns a value's size. It is called whenever a value is added, since values may grow.
    """

    def __init__(
        self, max_entries: int, max_bytes: float = math.inf, bytes_of: Callable[[Value], int] = lambda value: 0
    ) -> None:
        self.max_entries, self.max_bytes, self._bytes_of = max_entries, max_bytes, bytes_of
        self._lock = Lock()
        self.clear()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Returns the value of a key, making it if it is missing."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            self.misses += 1
        value = make()  # without the lock: it may take long, or need this cache
        with self._lock:
            value = self._values.setdefault(key, value)  # another thread's, if that was faster
            while len(self._values) > 1 and (len(self._values) > self.max_entries or self._bytes() > self.max_bytes):
                self._values.popitem(last=False)
            return value

    def clear(self) -> None:
        """Removes all values."""
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self.misses = 0

    def _bytes(self) -> int:
        return sum(map(self._bytes_of, self._values.values()))
