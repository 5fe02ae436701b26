"""Trading series: prices, costs and features of all symbols in rows, and the one rule of what a step on them earns.

A decision at row t (bar t is known) sets the position a, a signed size; the one before it is `held`. It is filled at
bar e = t + 1: at its open, over a weekend at Sunday's, or, where nobody trades but at the fixing, at its close. With
p the price of each bar at which fills happen it earns

    log(1 + a * (p[e+1] / p[e] - 1) - unit_cost[e] * |a - held| - swap[e])

A *segment* is a series of consecutive rows in which decisions are allowed, in one run of one symbol; it begins flat.
After its last decision the position is closed at row e + 1 and pays log(1 - unit_cost[e+1] * |a|) in the same reward.
So no position is carried over a gap or out of a part. A weekend is no gap: it is held over, earns the jump, pays swap.
Environment, walk, Q-learning and backtest all keep this rule; `agents/positions.py` pays the same step live.

Legend: R rows of all symbols, F features, N decision rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bools, Costs, FillRule, Floats, Floats32, Ints
from ml_workbench_service.market.calendar import swap_days
from ml_workbench_service.market.costs import BASIS_POINT, pip_size, spot_lag_days

Positions = Ints | Floats
"""Signed sizes: -1, 0, 1 of whoever chooses among these, any of a sizing rule."""
POSITIONS = (-1, 0, 1)
"""Of the actions 0, 1, 2: short, flat, long."""
RUIN = 1e-6
"""A step that leaves less than this share of the capital has lost it; its reward is the logarithm of this."""
RUIN_LOG_RETURN = math.log(RUIN)
FILL_DELAY = 1
"""Rows from a decision to its fill."""
FILL_PRICES: Mapping[FillRule, str] = {"next_open": "open_R", "next_close": "close_R"}
"""The column of `StackedBars` that decisions are filled at."""


@dataclass(frozen=True)
class StackedBars:
    """Bars of all symbols, one after the other.

    Attributes:
        rows_RF: what a policy may look at, scaled.
        open_R: the first price of each bar.
        close_R: the last one.
        opened_ms_R: when each bar begins.
        available_at_ms_R: when it is known.
        runs_R: consecutive bars of one symbol share a number, which no other symbol has.
        symbol_R: position in `symbols`.
        spread_R: at the close, in price units; NaN where the symbol's costs say it.
        spread_open_R: at the open, likewise.
    """

    rows_RF: Floats32
    open_R: Floats
    close_R: Floats
    opened_ms_R: Ints
    available_at_ms_R: Ints
    runs_R: Ints
    symbol_R: Ints
    spread_R: Floats
    spread_open_R: Floats
    symbols: tuple[str, ...]


@dataclass(frozen=True)
class TradingSeries:
    """Contiguous arrays, one row a bar; costs are fractions of the price, positive where paid.

    Attributes:
        rows_RF: what a policy may look at, scaled.
        price_R: at which decisions are filled at this row: the bar's open, or its close (fixings).
        priced_at_ms_R: when that price holds.
        move_R: relative change of the price to the next row; 0 where there is no next one.
        unit_cost_R: of a change of position by one at this row's price.
        swap_long_R: of holding one unit long to the next row; `swap_short_R` likewise.
        nights_R: of swap, from this row's price to the next.
        next_ok_R: whether the next row is the next bar of the same symbol and run, both with a price.
        available_at_ms_R: when each bar is known, and decided on.
        spread_R: pips; NaN where the symbol's own spread holds.
    """

    rows_RF: Floats32
    price_R: Floats
    priced_at_ms_R: Ints
    move_R: Floats
    unit_cost_R: Floats
    swap_long_R: Floats
    swap_short_R: Floats
    nights_R: Floats
    next_ok_R: Bools
    available_at_ms_R: Ints
    symbol_R: Ints  # position in `symbols`
    spread_R: Floats
    symbols: tuple[str, ...]
    costs: Mapping[str, Costs]
    fill: FillRule

    @property
    def num_rows(self) -> int:
        """Rows (R)."""
        return len(self.price_R)

    @property
    def num_features(self) -> int:
        """Features (F)."""
        return int(self.rows_RF.shape[1])

    @property
    def delay(self) -> int:
        """Rows from a decision to its fill."""
        return FILL_DELAY

    def swap(self, entry: Ints, position_N: Positions) -> Floats:
        """(N,) what holding each position from its entry row to the next costs."""
        short = np.where(position_N < 0, self.swap_short_R[entry], 0.0)
        return np.abs(position_N) * np.where(position_N > 0, self.swap_long_R[entry], short)

    def payable(self, rows: Ints, *, until_ms: int | None = None) -> Ints:
        """Those of the rows whose decision can be paid: every bar up to its settling is there.

        Args:
            rows: decision rows, in any order.
            until_ms: the settling price is known by then; give the border of a part, so that nothing looks over it.
        """
        rows = np.asarray(rows, dtype=np.int64)
        entries = np.minimum(rows + self.delay, self.num_rows - 1)
        possible = self.next_ok_R[rows] & self.next_ok_R[entries]
        if until_ms is not None:
            possible &= self.priced_at_ms_R[np.minimum(entries + 1, self.num_rows - 1)] <= until_ms
        return rows[possible]


def build_trading_series(bars: StackedBars, *, costs: Mapping[str, Costs], fill: FillRule) -> TradingSeries:
    """A series of stacked symbols; equal, row by row, to the scalar functions of `market/costs.py`.

    Raises:
        DataValidationError: a symbol has no costs, or some are not resolved; the next step is `resolved_costs`.
    """
    at_open = fill == "next_open"
    price_R = np.ascontiguousarray(getattr(bars, FILL_PRICES[fill]), dtype=np.float64)
    priced_at_ms_R = np.asarray(bars.opened_ms_R if at_open else bars.available_at_ms_R, dtype=np.int64)
    table_SC = np.array([_five(symbol, costs) for symbol in bars.symbols], dtype=np.float64)
    spread, commission, slippage, long, short = table_SC[bars.symbol_R].T
    pip = np.array([pip_size(symbol) for symbol in bars.symbols])[bars.symbol_R]
    own_spread = np.asarray(bars.spread_open_R if at_open else bars.spread_R, dtype=np.float64) / pip
    spread = np.where(np.isfinite(own_spread), own_spread, spread)
    next_ok = _has_next(bars, price_R)
    nights = np.zeros(len(price_R))
    settling = np.array([spot_lag_days(symbol) for symbol in bars.symbols])[bars.symbol_R[:-1]]
    held = swap_days(priced_at_ms_R[:-1], priced_at_ms_R[1:], spot_lag_days=settling)
    nights[:-1] = np.where(next_ok[:-1], held, 0)
    move = np.zeros(len(price_R))
    here = np.flatnonzero(next_ok)
    move[here] = price_R[here + 1] / price_R[here] - 1.0
    return TradingSeries(
        rows_RF=np.ascontiguousarray(bars.rows_RF, dtype=np.float32),
        price_R=price_R,
        priced_at_ms_R=priced_at_ms_R,
        move_R=move,
        unit_cost_R=spread * pip / 2 / price_R + (commission + slippage) * BASIS_POINT,
        swap_long_R=np.where(nights > 0, nights * long * pip / price_R, 0.0),
        swap_short_R=np.where(nights > 0, nights * short * pip / price_R, 0.0),
        nights_R=nights,
        next_ok_R=next_ok,
        available_at_ms_R=np.asarray(bars.available_at_ms_R, dtype=np.int64),
        symbol_R=np.asarray(bars.symbol_R, dtype=np.int64),
        spread_R=own_spread,
        symbols=tuple(bars.symbols),
        costs=dict(costs),
        fill=fill,
    )


def segment_starts(rows_N: Ints) -> Bools:
    """Where a segment begins: rows that do not follow the one before; rows ascending."""
    starts: Bools = np.ones(len(rows_N), dtype=np.bool_)
    starts[1:] = np.diff(rows_N) != 1
    return starts


def held_rewards(series: TradingSeries, rows_N: Ints, *, held_N: Positions, position_N: Positions) -> Floats:
    """The log return of each decision, no closing included; `RUIN_LOG_RETURN` where it loses everything."""
    entry = rows_N + series.delay
    swap = series.swap(entry, position_N)
    growth = 1.0 + position_N * series.move_R[entry] - series.unit_cost_R[entry] * np.abs(position_N - held_N) - swap
    return _log(growth)


def closing_rewards(series: TradingSeries, rows_N: Ints, sizes_N: Positions | float = 1.0) -> Floats:
    """The log return of closing so much, long or short, after each decision."""
    return _log(1.0 - series.unit_cost_R[rows_N + series.delay + 1] * np.abs(sizes_N))


def step_rewards(series: TradingSeries, rows_N: Ints, *, held_N: Positions, position_N: Positions) -> Floats:
    """The log return of each decision, with the closing where a segment ends; rows payable and ascending."""
    rewards = held_rewards(series, rows_N, held_N=held_N, position_N=position_N)
    ends = np.flatnonzero(np.append(segment_starts(rows_N)[1:], True) & (position_N != 0))
    rewards[ends] = np.maximum(rewards[ends] + closing_rewards(series, rows_N[ends], position_N[ends]), RUIN_LOG_RETURN)
    return rewards


def step_table(series: TradingSeries, rows_N: Ints) -> Floats:
    """(N, 3, 3) every `step_rewards` of each decision, by held position and chosen position, both plus one."""
    return _table(step_rewards, series, rows_N)


def held_table(series: TradingSeries, rows_N: Ints) -> Floats:
    """(N, 3, 3) every `held_rewards` of each decision, likewise."""
    return _table(held_rewards, series, rows_N)


def _table(rewards: Callable[..., Floats], series: TradingSeries, rows_N: Ints) -> Floats:
    table = np.empty((len(rows_N), len(POSITIONS), len(POSITIONS)))
    for held, position in product(POSITIONS, POSITIONS):
        helds, positions = (np.full(len(rows_N), each) for each in (held, position))
        table[:, held + 1, position + 1] = rewards(series, rows_N, held_N=helds, position_N=positions)
    return table


def _log(growth: Floats) -> Floats:
    ruined = ~((growth > RUIN) & (growth < np.inf))
    rewards: Floats = np.log(np.where(ruined, 1.0, growth))
    rewards[ruined] = RUIN_LOG_RETURN
    return rewards


def _has_next(bars: StackedBars, price_R: Floats) -> Bools:
    runs_R, symbol_R = bars.runs_R, bars.symbol_R
    priced = np.isfinite(price_R) & (price_R > 0)
    has_next: Bools = np.zeros(len(price_R), dtype=np.bool_)
    has_next[:-1] = (runs_R[1:] == runs_R[:-1]) & (symbol_R[1:] == symbol_R[:-1]) & priced[1:] & priced[:-1]
    return has_next


def _five(symbol: str, costs: Mapping[str, Costs]) -> tuple[float, ...]:
    found = costs.get(symbol)
    if found is None:
        raise DataValidationError.at(
            "costs", f"There are no costs for {symbol}; pass `resolved_costs` of every symbol of the series."
        )
    ordered = [getattr(found, name) for name in Costs.model_fields]
    if None in ordered:
        raise DataValidationError.at(
            "costs", f"A cost of {symbol} is not set; pass the costs through `resolved_costs` first."
        )
    return tuple(ordered)
