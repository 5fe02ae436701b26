"""Other series at a bar: which bar of another symbol, or of a coarser timeframe, a row may read.

    same timeframe   the bar of the same opening, if it was known when the row was
    coarser          the newest bar that was known when the row was, until the next one should have ended

Both are decided by what was known when: a row never reads a bar that it could not have seen live, so that there is no
way to write a look-ahead. Nothing is carried over a missing bar: where an expected one is not there the row has no
value, and a scheduled closure is no gap.

Legend: N bars of the asking series, M bars of the other one.
"""

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bools, FeatureTable, Floats, Ints
from ml_workbench_service.market import calendar
from ml_workbench_service.market.features.expressions.nodes import Elsewhere

NONE = -1
"""In the place of a bar's number: there is none to read."""
SPARE_SHARE, SPARE_BARS, SPARE_DAYS = 1.1, 8, 10
"""Asked for beyond a window's length: holidays, and closures that the clock counts and the market does not."""
_CLOCK_PER_MARKET = 7 / 5


def rows_read(table: FeatureTable, other: FeatureTable) -> Ints:
    """(N,) the number of the other series' bar that each row reads; `NONE` where there is none."""
    if other.timeframe == table.timeframe:
        return _same_bar(table, other)
    return _newest_known(table, other)


def aligned(values_M: Floats, rows_N: Ints) -> Floats:
    """(N,) the other series' values at those rows."""
    found_N = np.full(len(rows_N), np.nan)
    if len(values_M):
        found_N = np.where(rows_N == NONE, np.nan, values_M[np.maximum(rows_N, 0)])
    return found_N


def earlier_ms(start_ms: int, bars: int, timeframe: str) -> int:
    """A moment before which no window of that many bars before `start_ms` begins, however many closures lie between."""
    clock_ms = (SPARE_SHARE * bars + SPARE_BARS) * TIMEFRAMES_MS[timeframe] * _CLOCK_PER_MARKET
    return start_ms - int(clock_ms) - SPARE_DAYS * calendar.DAY_MS


def check_timeframe(node: Elsewhere, timeframe: str, *, path: str) -> None:
    """Refuses bars that are finer than those of the asking series.

    Raises:
        DataValidationError: they are.
    """
    if node.timeframe and TIMEFRAMES_MS[node.timeframe] < TIMEFRAMES_MS[timeframe]:
        raise DataValidationError.at(
            path,
            f"at character {node.position}: at() reads bars of {timeframe} or coarser here, and {node.timeframe} is "
            f"finer: train on {node.timeframe} bars instead",
            code="finer_timeframe",
        )


def check_source(table: FeatureTable, other: FeatureTable) -> None:
    """Refuses to set two histories beside each other: simulated hours and real days of the sample are two.

    Raises:
        DataValidationError: the bars come from different sources.
    """
    if table.data_source != other.data_source:
        raise DataValidationError.at(
            "features",
            f"{other.symbol} {other.timeframe} is `{other.data_source}` and {table.symbol} {table.timeframe} is "
            f"`{table.data_source}`, which are two histories of prices; read bars of one source together",
            code="mixed_sources",
        )


def _same_bar(table: FeatureTable, other: FeatureTable) -> Ints:
    if not len(other):
        return np.full(len(table), NONE)
    places_N = np.minimum(np.searchsorted(other.opened_ms, table.opened_ms), len(other) - 1)
    is_same_N = other.opened_ms[places_N] == table.opened_ms
    is_known_N = other.available_at_ms[places_N] <= table.available_at_ms
    return np.where(is_same_N & is_known_N, places_N, NONE)


def _newest_known(table: FeatureTable, other: FeatureTable) -> Ints:
    places_N = np.searchsorted(other.available_at_ms, table.available_at_ms, side="right") - 1
    if not len(other):
        return places_N
    read_N = np.maximum(places_N, 0)
    return np.where((places_N >= 0) & _still_holds(table, other, read_N), places_N, NONE)


def _still_holds(table: FeatureTable, other: FeatureTable, read_N: Ints) -> Bools:
    """(N,) whether the bar after the one that is read need not have been known yet.

    It is due one bar of the market's time later, holidays left out, and half a bar more: feeds differ in whether they
    write the stub bars at the week's ends.
    """
    known_ms, span_ms = other.available_at_ms[read_N], TIMEFRAMES_MS[other.timeframe]
    if other.calendar == "fixings":
        return np.asarray(table.available_at_ms - known_ms <= calendar.MAX_FIXINGS_JUMP_MS)
    passed_ms = calendar.expected_ms(table.available_at_ms) - calendar.expected_ms(known_ms)
    return np.asarray(2 * passed_ms < 3 * span_ms)
