"""Fills of bars: which price and which spread a decision meets, and what bars of one side can be turned into a mid.

    side   spread taken at    close    open    a fill pays
    mid    open               mid      mid     the bar's own spread
    bid    open               bid      mid     the bar's own spread
    bid    close              mid      bid     the larger of the bar's own spread and the session's
    bid    another moment     bid      bid     the same

Bid plus half a spread of another moment leaves a pattern at the roll, where spreads widen, that tests as skill. So such
prices keep their side, and labels that begin or end within an hour of the roll are left out of tests
(`is_near_roll`): a bid falls when the spread widens, and comes back, whatever the market does.

Legend: N bars.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bars, Bools, Costs, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.reading_reports import SpreadTime
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, trading_day_opening
from ml_workbench_service.market.costs import pip_size, session_spread

OPEN: Literal["open"] = "open"
CLOSE: Literal["close"] = "close"
SPREAD, SPREAD_OPEN, SPREAD_CLOSE = "spread", "spread_open", "spread_close"
"""Columns of a table, in price units: taken when the table's `spread_time` says, at the open, at the close."""
ROLL_MS = HOUR_MS
"""Closer to 17:00 New York than this a one-sided price says more of the spread than of the market."""
_SIGNS = {"bid": 1.0, "ask": -1.0, "mid": 0.0}


def at_mid(bars: Bars) -> Bars:
    """The same bars with those prices at the middle whose spread is known: the close's, or the open's."""
    sign, spreads = _SIGNS[bars.price_side], (_spread_at(bars, OPEN), _spread_at(bars, CLOSE))
    if not sign or all(each is None for each in spreads):
        return bars
    open_N, close_N = (
        price_N if spread_N is None else price_N + sign * spread_N / 2
        for price_N, spread_N in zip((bars.open, bars.close), spreads, strict=True)
    )
    high_N, low_N = (
        np.maximum(bars.high, np.maximum(open_N, close_N)),
        np.minimum(bars.low, np.minimum(open_N, close_N)),
    )
    return replace(bars, open=open_N, close=close_N, high=high_N, low=low_N)


def _spread_at(bars: Bars, moment: SpreadTime) -> Floats | None:
    """The bars' spread at that end of each; None where a single one is missing, which would mix middle and side."""
    spread_N = bars.extra.get(f"{SPREAD}_{moment}")
    if spread_N is None and bars.spread_time == moment:
        spread_N = bars.extra.get(SPREAD)
    return spread_N if spread_N is not None and np.isfinite(spread_N).all() else None


def open_prices(columns: Mapping[str, Floats]) -> Floats:
    """(N,) the bars' opens; where a store has none, the close before stands for each."""
    opens_N = columns.get(OPEN)
    if opens_N is not None:
        return np.asarray(opens_N, dtype=np.float64)
    close_N = np.asarray(columns[CLOSE], dtype=np.float64)
    return np.concatenate([close_N[:1], close_N[:-1]])


def open_spreads(table: FeatureTable, costs: Costs) -> Floats:
    """(N,) the spread that a fill at each open meets, in price units; NaN where `spread_pips` holds as it is.

    The bar's own where it was taken at the open; of another moment, the larger of it and the costs' own.

    Raises:
        DataValidationError: the costs are not resolved.
    """
    session_N = session_spread(costs, table.symbol, table.opened_ms, calendar=table.calendar)
    at_open_N = table.columns.get(SPREAD_OPEN)
    own_N = table.columns.get(SPREAD)
    if at_open_N is None and table.spread_time == OPEN:
        at_open_N = own_N
    if at_open_N is not None:
        return np.where(np.isfinite(at_open_N), at_open_N, session_N)
    if own_N is None:
        return session_N
    usual_N = np.where(np.isfinite(session_N), session_N, (costs.spread_pips or 0.0) * pip_size(table.symbol))
    return np.where(np.isfinite(own_N), np.maximum(own_N, usual_N), session_N)


def keeps_side(table: FeatureTable) -> bool:
    """Whether the table's closes are of one side: there was no spread of their moment to find the middle."""
    if table.price_side == "mid":
        return False
    name = SPREAD_CLOSE if SPREAD_CLOSE in table.columns or table.spread_time != CLOSE else SPREAD
    return name not in table.columns or not bool(np.isfinite(table.columns[name]).all())


def is_near_roll(table: FeatureTable, at_ms: Ints) -> Bools:
    """(N,) whether closes of one side at these moments (-1: there is none) say more of the spread than of the market.

    Only bars under a day are asked: those of a day begin and end at the same hour, so that what the roll does to one
    end it does to the other.
    """
    if not keeps_side(table) or TIMEFRAMES_MS[table.timeframe] >= DAY_MS:
        return np.zeros(len(at_ms), dtype=np.bool_)
    known = np.where(at_ms > 0, at_ms, table.opened_ms[:1])
    since_ms = known - trading_day_opening(known)
    return np.asarray((at_ms > 0) & ((since_ms <= ROLL_MS) | (since_ms >= DAY_MS - ROLL_MS)))
