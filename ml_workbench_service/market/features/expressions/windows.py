"""Window statistics of a column: the same to the bit whatever range is evaluated.

Running sums do not have that property (what left the window stays in the rounding), so windows are folded by doubling,
always the same tree over the same bars: windows of 1, 2, 4, … bars each merge two of the half, and the wanted one is
put together from those that the binary digits of its length name, the smallest nearest to the row. Moments merge as in
Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance", co-moments with time and with another
column by the same rule. That takes log2(bars) steps and loses no digits on prices. What asks for the order of a
window's values (rank, quantile, place of an extreme) looks at each window whole.

No function here knows gaps: a window that holds one has a value, and who asks masks it. Missing is NaN, and a window
that holds one is missing.

Legend: N bars, C windows at a time.
"""

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ml_workbench_service.contracts.market import Bools, Floats

ROUNDING = 1e-13
"""A deviation smaller than this share of the mean is a constant's rounding error, as in `learning.data.scaling`."""
CELLS = 1_000_000
"""Values that are looked at together: 8 MB."""

Piece = tuple[Floats, ...]


Merge = Callable[[Piece, int, Piece, int], Piece]
"""A newer window's moments and its bars, those of the older one right before it: of both."""


class Moments:
    """Moments of a column over windows of any length; halves that several lengths share are merged once.

    Args:
        first: of windows of one bar.
        merge: of two windows that follow one another.
    """

    def __init__(self, first: Piece, merge: Merge) -> None:
        self._merge = merge
        self._pieces = [first]
        self._wholes: dict[int, Piece] = {}

    @classmethod
    def plain(cls, values_N: Floats) -> "Moments":
        """(N,) each: mean, sum of squared deviations."""
        return cls((values_N, values_N * 0.0), _merged)

    @classmethod
    def with_time(cls, values_N: Floats) -> "Moments":
        """And the sum of products of deviations with those of time."""
        zero_N = values_N * 0.0
        return cls((values_N, zero_N, zero_N), _merged_with_time)

    @classmethod
    def of_two(cls, values_N: Floats, other_N: Floats) -> "Moments":
        """And of another column, and the sum of products of both's deviations."""
        zero_N, other_zero_N = values_N * 0.0, other_N * 0.0
        return cls((values_N, zero_N, other_N, other_zero_N, zero_N + other_zero_N), _merged_of_two)

    def of(self, bars: int) -> Piece:
        """Over windows of that many bars."""
        if bars not in self._wholes:
            self._wholes[bars] = self._put_together(bars)
        return self._wholes[bars]

    def _put_together(self, bars: int) -> Piece:
        whole: Piece | None = None
        held, power = 0, 0
        while held < bars:
            width = 1 << power
            if power == len(self._pieces):
                half = self._pieces[power - 1]
                self._pieces.append(self._merge(half, width // 2, half, width // 2))
            if bars & width:
                piece = self._pieces[power]
                whole = piece if whole is None else self._merge(whole, held, piece, width)
                held += width
            power += 1
        assert whole is not None
        return whole


def _merged(newer: Piece, num_newer: int, older: Piece, num_older: int) -> Piece:
    """Mean and squared deviations."""
    share = num_older / (num_newer + num_older)
    step = shifted(older[0], num_newer) - newer[0]
    squares = newer[1] + shifted(older[1], num_newer) + step * step * (num_newer * share)
    return newer[0] + step * share, squares


def _merged_with_time(newer: Piece, num_newer: int, older: Piece, num_older: int) -> Piece:
    """The windows' middles lie half of both apart."""
    step = shifted(older[0], num_newer) - newer[0]
    trend = newer[2] + shifted(older[2], num_newer) - step * (num_newer * num_older / 2)
    return *_merged(newer, num_newer, older, num_older), trend


def _merged_of_two(newer: Piece, num_newer: int, older: Piece, num_older: int) -> Piece:
    step, other = (shifted(older[place], num_newer) - newer[place] for place in (0, 2))
    share = num_older / (num_newer + num_older)
    products = newer[4] + shifted(older[4], num_newer) + step * other * (num_newer * share)
    one = _merged(newer[:2], num_newer, older[:2], num_older)
    two = _merged(newer[2:4], num_newer, older[2:4], num_older)
    return *one, *two, products


def shifted(values_N: Floats, bars: int) -> Floats:
    """(N,) the values that many bars ago; missing before the first."""
    past_N = np.full(len(values_N), np.nan)
    if bars < len(values_N):
        past_N[bars:] = values_N[: len(values_N) - bars]
    return past_N


def total(values_N: Floats, bars: int) -> Floats:
    """(N,) sums, folded like the moments; of whole numbers they are exact."""
    return _folded(values_N, bars, np.add)


def largest(values_N: Floats, bars: int) -> Floats:
    """(N,) maxima; a window that holds a missing value has none."""
    return _folded(values_N, bars, np.maximum)


def _folded(values_N: Floats, bars: int, merge: Callable[[Floats, Floats], Floats]) -> Floats:
    piece_N, width = values_N, 1
    whole_N, held = None, 0
    while held < bars:
        if bars & width:
            whole_N = piece_N if whole_N is None else merge(whole_N, shifted(piece_N, held))
            held += width
        if held < bars:
            piece_N = merge(piece_N, shifted(piece_N, width))
            width *= 2
    assert whole_N is not None
    return whole_N


def deviation(squares_N: Floats, bars: int) -> Floats:
    """(N,) sample standard deviations, to the bit as bundles of version 0.1 have them: by a factor, not a divisor."""
    return np.sqrt(squares_N * (1.0 / (bars - 1)))


def varies(mean_N: Floats, squares_N: Floats, bars: int) -> Bools:
    """(N,) whether a window's values differ by more than rounding."""
    return np.asarray(deviation(squares_N, bars) > ROUNDING * np.abs(mean_N))


def rank(values_N: Floats, bars: int) -> Floats:
    """(N,) share of each window that is no larger than its newest value, ties counted by half: (0, 1]."""

    def of(windows_CB: Floats) -> Floats:
        newest_C1 = windows_CB[:, -1:]
        below_C = (windows_CB < newest_C1).view(np.int8).sum(axis=1, dtype=np.int32)
        equal_C = (windows_CB == newest_C1).view(np.int8).sum(axis=1, dtype=np.int32)
        return np.asarray((below_C + (equal_C + 1) / 2) / bars)

    return _looked_at(values_N, bars, of)


def quantile(values_N: Floats, bars: int, share: float) -> Floats:
    """(N,) the value at that share of each window's order, between two of them where it falls between (Hyndman and
    Fan's type 7, the usual of numpy and pandas)."""
    place = share * (bars - 1)
    low = int(place)
    high = min(low + 1, bars - 1)

    def of(windows_CB: Floats) -> Floats:
        ordered_CB = np.sort(windows_CB, axis=1)  # three to six times as fast as numpy's partition into three
        return np.asarray(ordered_CB[:, low] + (ordered_CB[:, high] - ordered_CB[:, low]) * (place - low))

    return _looked_at(values_N, bars, of)


def place_of_largest(values_N: Floats, bars: int) -> Floats:
    """(N,) where in each window its first maximum stands, 1 the oldest."""
    return _looked_at(values_N, bars, lambda windows_CB: np.argmax(windows_CB, axis=1) + 1.0)


def _looked_at(values_N: Floats, bars: int, of: Callable[[Floats], Floats]) -> Floats:
    """(N,) of each whole window, so many at a time; missing where one of its values is, or there are too few bars."""
    found_N = np.full(len(values_N), np.nan)
    if len(values_N) < bars:
        return found_N
    missing = np.concatenate([[0], np.cumsum(np.isnan(values_N))])
    windows_WB = sliding_window_view(values_N, bars)
    whole = np.flatnonzero(missing[bars:] == missing[:-bars])
    step = max(CELLS // bars, 1)
    for begin in range(0, len(whole), step):
        part = whole[begin : begin + step]
        found_N[part + bars - 1] = of(windows_WB[part])
    return found_N
