"""Bad ticks: prices that no market made, told from moves that it did make.

A price is a bad tick where it lies over 20 deviations from both neighbours and four fifths of that are back in the next
bar, or where it is a power of ten away. A deviation is the larger of the hour's usual one and of what the bars around
it moved, so that neither a quiet night nor an announcement makes a tick bad. A move that stays is the market's
(2015-01-15 in the franc, 2016-06-24 in the pound): kept, and listed. Where a series turns into its own inverse, it is
another file's stretch; near parity a jump may do that by chance, so there it is listed with that word.

Legend: N bars, ascending.
"""

from collections.abc import Callable, Mapping

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.integrations.feature_store.bar_columns import PRICES
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS

MOST_DEVIATIONS = 20.0
BACK_SHARE = 0.8
FEWEST_BARS = 30  # for a deviation that means something
FEWEST_OF_AN_HOUR = 30
FACTOR_TOLERANCE = 0.05  # of a power of ten's exponent
LEAST_INVERTED = 0.06  # log of the move; where a price is nearer to one, a market's jump may lead to its inverse too
INVERTED_DEVIATIONS = 4.0  # that a price may lie from the inverse of the one before
_NORMAL_MEDIAN = 0.6745  # of |z|
_NORMAL_RANGE = 1.6  # E[high - low] of a random walk, in its deviations (Feller 1951)
_AROUND = 7  # bars
_MOST_LISTED = 5

Refuse = Callable[[int, str], DataValidationError]
"""Makes the error about a row."""


def checked_moves(opened_ms: Ints, prices: Mapping[str, Floats], bar_ms: int, refuse: Refuse) -> tuple[str, ...]:
    """Sentences about the largest moves that stay.

    Raises:
        DataValidationError: a bad tick, or a stretch of inverse prices; by the first such row.
    """
    logs = {name: np.log(prices[name]) for name in PRICES}
    if len(opened_ms) < 2:
        return ()
    _refuse_factors(logs, prices, refuse)
    if len(opened_ms) < FEWEST_BARS:
        return ()
    deviation = _deviations(opened_ms, logs, bar_ms)
    _refuse_ticks(logs, prices, deviation, refuse)
    return _staying(opened_ms, logs["close"], deviation, refuse)


def _refuse_factors(logs: Mapping[str, Floats], prices: Mapping[str, Floats], refuse: Refuse) -> None:
    for name in PRICES:
        powers = np.diff(logs[name]) / np.log(10)
        jumps = np.flatnonzero((np.round(powers) != 0) & (np.abs(powers - np.round(powers)) < FACTOR_TOLERANCE))
        if len(jumps):
            before, at = int(jumps[0]), int(jumps[0]) + 1
            # The first of two may be the wrong one: it is the odder of both against the bulk of the file.
            middle = float(np.median(logs[name]))
            row = max((before, at), key=lambda each: abs(float(logs[name][each]) - middle))
            power = round(float(powers[before])) * (1 if row == at else -1)
            times = f"{10**power:g} times" if power > 0 else f"a {10**-power:g}th of"
            raise refuse(row, f"`{name}` {prices[name][row]:g} is {times} its neighbour's; correct or delete the row")


def _deviations(opened_ms: Ints, logs: Mapping[str, Floats], bar_ms: int) -> Floats:
    """(N,) of one bar's move, usual at its hour and around it."""
    import polars as pl

    moves = np.abs(np.diff(logs["close"], prepend=logs["open"][0]))
    moving = moves[moves > 0]
    usual = float(np.median(moving)) / _NORMAL_MEDIAN if len(moving) else np.inf
    by_hour = np.full(24, usual)
    if bar_ms < DAY_MS:
        hours = opened_ms // HOUR_MS % 24
        for hour in range(24):
            those = moves[(hours == hour) & (moves > 0)]
            if len(those) >= FEWEST_OF_AN_HOUR:
                by_hour[hour] = max(float(np.median(those)) / _NORMAL_MEDIAN, usual / 5)
        seasonal = by_hour[hours]
    else:
        seasonal = np.full(len(opened_ms), usual)
    ranges = pl.Series(logs["high"] - logs["low"])
    around = ranges.rolling_median(window_size=_AROUND, min_samples=1, center=True).to_numpy()
    return np.asarray(np.maximum(seasonal, around / _NORMAL_RANGE))


def _refuse_ticks(logs: Mapping[str, Floats], prices: Mapping[str, Floats], deviation: Floats, refuse: Refuse) -> None:
    for name in PRICES:
        there, back = np.diff(logs[name])[:-1], np.diff(logs[name])[1:]
        limit = MOST_DEVIATIONS * deviation[1:-1]
        bad = (np.abs(there) > limit) & (np.abs(back) > limit)
        bad &= np.abs(there + back) <= (1 - BACK_SHARE) * np.abs(there)
        if bad.any():
            row = int(np.argmax(bad)) + 1
            size = abs(float(there[row - 1])) / float(deviation[row])
            raise refuse(
                row,
                f"`{name}` {prices[name][row]:g} lies {size:.0f} usual moves from the bars before and after it, a bad "
                "tick; correct or delete the row",
            )


def _staying(opened_ms: Ints, close: Floats, deviation: Floats, refuse: Refuse) -> tuple[str, ...]:
    moves = np.diff(close)
    large = np.flatnonzero(np.abs(moves) > MOST_DEVIATIONS * deviation[1:])
    inverse = large[np.abs(close[large + 1] + close[large]) < INVERTED_DEVIATIONS * deviation[large + 1]]
    certain = inverse[np.abs(moves[inverse]) > LEAST_INVERTED]
    if len(certain):
        raise refuse(int(certain[0]) + 1, "from here on prices are the inverse of those before; turn them over")
    largest = sorted(large[np.argsort(-np.abs(moves[large]), kind="stable")][:_MOST_LISTED].tolist())
    return tuple(
        f"a move of {np.expm1(moves[at]):+.2%} at {iso_of_ms(int(opened_ms[at + 1]))} stays and is kept"
        + ("; it leads to the inverse price: see that one pair is in the file" if at in inverse else "")
        for at in largest
    )
