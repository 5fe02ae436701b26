"""Trading weeks: which weeks of a file lie wrong under a clock, measured against the FX week of New York.

A week is judged whole, whatever the share of its bars: one bar outside is as systematic as twenty. Bars up to an hour
must lie within the week. Longer ones may straddle its borders, so they are judged by the week's ends: where all bars
of a week are there, the first one holds the opening and the last one the close.

Under two clocks a week's ends fall differently, and only the true one leaves no week wrong but those that the feed
itself left odd. So of two clocks the one is ruled out whose wrong weeks hold all those of the other, and more.

Legend: S sessions, which are runs of bars between pauses of over a day: weeks, mostly.
"""

from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.market import Bools, Ints
from ml_workbench_service.integrations.feature_store.bar_time_zones import to_utc
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, WEEK_OPEN_MS, week_opening


@dataclass(frozen=True)
class Clock:
    """How a file's times are read: `to_utc` in the zone, and a bar's length less where they say its end."""

    zone: str
    is_end: bool = False  # whether bars are stamped with their end

    def opened(self, local_ms: Ints, bar_ms: int) -> Ints:
        """(N,) the bars' openings in UTC."""
        return to_utc(local_ms, self.zone) - (bar_ms if self.is_end else 0)

    def __str__(self) -> str:
        return f"{self.zone}, stamped with the bars' ends" if self.is_end else self.zone


@dataclass(frozen=True)
class Sessions:
    """A file's sessions by their first and last bar, as its clock shows them."""

    first_ms: Ints  # (S,)
    last_ms: Ints  # (S,)
    bar_ms: int
    is_fx: bool = True  # whether the market keeps the whole FX week; others only lie within it

    @classmethod
    def of(cls, local_ms: Ints, bar_ms: int, *, is_fx: bool = True) -> "Sessions":
        """From the times of bars, sorted."""
        edges = np.flatnonzero(np.diff(local_ms) > DAY_MS + bar_ms // 2)
        firsts = np.concatenate([[0], edges + 1]) if len(local_ms) else edges
        lasts = np.append(edges, len(local_ms) - 1) if len(local_ms) else edges
        return cls(local_ms[firsts], local_ms[lasts], bar_ms, is_fx)

    def __len__(self) -> int:
        return len(self.first_ms)

    def edges(self, clock: Clock) -> Ints:
        """(2 S,) openings in UTC of the first and last bars: clocks that agree on these agree on the file."""
        return clock.opened(np.concatenate([self.first_ms, self.last_ms]), self.bar_ms)

    def wrong(self, clock: Clock) -> Bools:
        """(S,) whether a session cannot lie as the clock says."""
        first, last = np.split(self.edges(clock), 2)
        opening = week_opening(first + self.bar_ms - 1)
        close = opening + WEEK_OPEN_MS
        end = last + self.bar_ms
        if self.bar_ms <= HOUR_MS:
            return np.asarray((first < opening) | (first >= close) | (end > close))
        outside = (first >= close) | (last >= close)
        # A week without its first or last bar says nothing about the clock, and is as long as some are with both.
        is_whole = (end - first >= WEEK_OPEN_MS) & (self.bar_ms < DAY_MS) & self.is_fx
        return np.asarray(outside | (is_whole & ((first > opening) | (end < close))))
