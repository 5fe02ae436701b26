"""Splits: which windows learn, stop, calibrate and test, purged wherever one part borders on another.

    Borders          train | validation | calibration | test       one after the other, as a version is trained
    ScatteredParts   train | test | train | test | train | …       spans that lie apart: combinatorial cross-validation

A window belongs to the part in which its last row becomes known, and to none where its label is known only after that
part's end. Parts that come **after** a test are kept away from it on that side too (López de Prado, "Advances in
financial machine learning", 2018, sections 7.4.1 and 7.4.2): the first window behind it has its first row there, so
that nothing that is learnt from holds a bar of the test; `embargo` bars more are left out for features that remember
longer.

Legend: N rows of one symbol.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ml_workbench_service.contracts.market import Bools, Ints

Part = Literal["train", "validation", "calibration", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "calibration", "test")
BEGINNING_MS = int(np.iinfo(np.int64).min)
END_MS = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class Borders:
    """Borders of the parts given one by one, with an embargo: the first bars of each symbol after one are left out."""

    at_ms: Mapping[Part, int]
    embargo_bars: int = 0

    def learnt(self, available_at_ms_N: Ints) -> Bools:
        """(N,) bars that what is fitted may know: those of the training part."""
        return np.asarray(available_at_ms_N <= self.at_ms["validation"])

    def end_after(self, moment_ms: int) -> int | None:
        """The border that comes next, or now; None in the test part, where the data end."""
        return min((border for border in self.at_ms.values() if border >= moment_ms), default=None)

    def barred(self, available_at_ms_N: Ints, lookback: int) -> Bools:
        """(N,) rows that belong to no part, wherever they lie."""
        return _first_after(available_at_ms_N, list(self.at_ms.values()), self.embargo_bars)

    def masks(self, available_at_ms_N: Ints, label_available_at_ms_N: Ints, barred_N: Bools) -> dict[Part, Bools]:
        """(N,) of windows: which belong to which part."""
        edges = [BEGINNING_MS, *(self.at_ms[part] for part in PARTS[1:]), END_MS]
        return {
            part: ~barred_N & (available_at_ms_N > edges[number]) & (label_available_at_ms_N <= edges[number + 1])
            for number, part in enumerate(PARTS)
        }


class PartSpan(NamedTuple):
    """What becomes known after `start_ms`, up to and with `end_ms`."""

    part: Part
    start_ms: int
    end_ms: int


@dataclass(frozen=True)
class ScatteredParts:
    """Parts in any order, each of one span of time or several.

    Attributes:
        in_time: one begins where the one before it ends. Spans of the same part are kept apart as others are, so
            whoever wants labels to reach from one into the next makes one of the two.
        embargo_bars: of each symbol, further bars left out after a test.
    """

    in_time: tuple[PartSpan, ...]
    embargo_bars: int = 0

    @property
    def at_ms(self) -> dict[Part, int]:
        """When each part but the first begins, for the first time."""
        found: dict[Part, int] = {}
        for part in PARTS[1:]:
            found[part] = min(each.start_ms for each in self.in_time if each.part == part)
        return found

    def end_after(self, moment_ms: int) -> int | None:
        """Where the span ends in which the moment lies; None behind all of them."""
        return min((each.end_ms for each in self.in_time if each.end_ms >= moment_ms), default=None)

    def of(self, part: Part) -> list[PartSpan]:
        """The part's."""
        return [each for each in self.in_time if each.part == part]

    def learnt(self, available_at_ms_N: Ints) -> Bools:
        """(N,) bars that what is fitted may know: those of the training part outside of every embargo."""
        known_N = self._within("train", available_at_ms_N, available_at_ms_N)
        return known_N & ~self.barred(available_at_ms_N, lookback=1)

    def barred(self, available_at_ms_N: Ints, lookback: int) -> Bools:
        """(N,) rows after a test whose window would hold bars of it, or that the embargo covers.

        A test that follows at once is whole: its rows are predicted, not learnt from.
        """
        ends = [each.end_ms for each in self.of("test")]
        barred_N = _first_after(available_at_ms_N, ends, lookback - 1 + self.embargo_bars)
        return barred_N & ~self._within("test", available_at_ms_N, available_at_ms_N)

    def masks(self, available_at_ms_N: Ints, label_available_at_ms_N: Ints, barred_N: Bools) -> dict[Part, Bools]:
        """(N,) of windows: which belong to which part."""
        return {part: ~barred_N & self._within(part, available_at_ms_N, label_available_at_ms_N) for part in PARTS}

    def _within(self, part: Part, available_at_ms_N: Ints, label_available_at_ms_N: Ints) -> Bools:
        """(N,) what lies in a span of the part, from its row to the moment that its label is known."""
        found_N = np.zeros(len(available_at_ms_N), dtype=bool)
        for each in self.of(part):
            found_N |= (available_at_ms_N > each.start_ms) & (label_available_at_ms_N <= each.end_ms)
        return found_N


Split = Borders | ScatteredParts


def _first_after(available_at_ms_N: Ints, moments_ms: list[int], num_bars: int) -> Bools:
    """(N,) rows of one symbol that are among its first bars after one of these moments."""
    found_N = np.zeros(len(available_at_ms_N), dtype=bool)
    for moment_ms in moments_ms:
        found_N[np.flatnonzero(available_at_ms_N > moment_ms)[:num_bars]] = True
    return found_N
