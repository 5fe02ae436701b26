"""`SeriesCache`: the most recently used series, bounded by bytes, for several threads."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from ml_workbench_service.contracts.market import Bars

V = TypeVar("V")


class SeriesCache(Generic[V]):
    """Keeps what was used last; the least recently used goes first, a value larger than the bound is not kept."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        """The value, now the most recently used, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Hashable, value: V, *, num_bytes: int) -> None:
        """Keeps the value in place of an older one of the same key."""
        with self._lock:
            self._num_bytes -= self._entries.pop(key, (value, 0))[1]
            if num_bytes > self._max_bytes:
                return
            self._entries[key] = (value, num_bytes)
            self._num_bytes += num_bytes
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= self._entries.popitem(last=False)[1][1]


def bars_bytes(bars: Bars) -> int:
    """What one series weighs in memory."""
    own = (bars.opened_ms, bars.available_at_ms, bars.open, bars.high, bars.low, bars.close)
    return sum(column.nbytes for column in (*own, *bars.extra.values()))
