"""Return fingerprint: by which a series of prices is known again, whatever it is called.

Two series are one where their log returns over shared times correlate beyond 0.95, up or down: renaming a pair, turning
it round, scaling its price or reading other bars of it change nothing, so that nobody begins a new count of evaluations
by doing so.

Kept are the last closes of equal steps of time: days, or hours and minutes of series too short for days. Two series are
compared in the coarser of their steps, at times that both have.

Legend: B steps that have a close.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS

SAME = 0.95
"""finance.md: |correlation| beyond which two series are one: EUR/USD and DKK/USD are, EUR/USD and GBP/USD are not."""
STEPS_MS = (DAY_MS, HOUR_MS, 60_000)
ENOUGH = 100
"""Steps under which a finer one is taken."""
FEWEST_SHARED = 20
"""Returns under which two series cannot be compared."""


@dataclass(frozen=True)
class ReturnFingerprint:
    """Log closes of one series by step."""

    symbol: str
    step_ms: int
    steps_B: Ints  # ascending numbers of steps since the epoch
    log_close_B: Floats

    @classmethod
    def of(cls, symbol: str, available_at_ms: Ints, close: Floats) -> Self:
        """From bars; closes that are missing are left out."""
        known = np.isfinite(close) & (close > 0)
        times, logs = available_at_ms[known], np.log(close[known])
        for step_ms in STEPS_MS:
            steps_B, log_close_B = _last_of_each((times - 1) // step_ms, logs)
            if len(steps_B) >= ENOUGH:
                break
        return cls(symbol, step_ms, steps_B, log_close_B - (log_close_B[0] if len(log_close_B) else 0.0))

    @property
    def digest(self) -> str:
        """Of all that it holds."""
        found = hashlib.sha256(f"{self.symbol} {self.step_ms} ".encode())
        found.update(self.steps_B.tobytes())
        found.update(self.log_close_B.tobytes())
        return found.hexdigest()

    def correlation(self, other: "ReturnFingerprint") -> float | None:
        """Of log returns over shared times; None where too few are shared, or nothing moves."""
        step_ms = max(self.step_ms, other.step_ms)
        own, theirs = _shared(self._coarse(step_ms), other._coarse(step_ms))
        moves, other_moves = np.diff(own), np.diff(theirs)
        if len(moves) < FEWEST_SHARED:
            return None
        moves, other_moves = moves - moves.mean(), other_moves - other_moves.mean()
        spread = math.sqrt(float(moves @ moves) * float(other_moves @ other_moves))
        return float(moves @ other_moves) / spread if spread > 0 else None

    def is_same(self, other: "ReturnFingerprint") -> bool | None:
        """Whether both are one series; None where that cannot be told."""
        found = self.correlation(other)
        return None if found is None else abs(found) > SAME

    def _coarse(self, step_ms: int) -> tuple[Ints, Floats]:
        if step_ms == self.step_ms:
            return self.steps_B, self.log_close_B
        return _last_of_each(self.steps_B // (step_ms // self.step_ms), self.log_close_B)


def _shared(one: tuple[Ints, Floats], other: tuple[Ints, Floats]) -> tuple[Floats, Floats]:
    """Both series' values at the steps that both have; one calendar's steps are equal where they overlap."""
    (steps, values), (other_steps, other_values) = one, other
    if not len(steps) or not len(other_steps):
        return values[:0], other_values[:0]
    first, last = max(steps[0], other_steps[0]), min(steps[-1], other_steps[-1])
    here = slice(*np.searchsorted(steps, (first, last + 1)))
    there = slice(*np.searchsorted(other_steps, (first, last + 1)))
    if np.array_equal(steps[here], other_steps[there]):
        return values[here], other_values[there]
    _, mine, theirs = np.intersect1d(steps, other_steps, assume_unique=True, return_indices=True)
    return values[mine], other_values[theirs]


def _last_of_each(steps_N: Ints, values_N: Floats) -> tuple[Ints, Floats]:
    """Each step once, with its last value; steps ascend."""
    if not len(steps_N):
        return steps_N, values_N
    is_last = np.append(steps_N[1:] != steps_N[:-1], True)
    return steps_N[is_last], values_N[is_last]
