"""Tapes for tests: hours of the real FX week with weekends, a roll a day, missing bars, three symbols, own spreads."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Costs, FillRule, Floats, Ints
from ml_workbench_service.market import calendar
from ml_workbench_service.market.costs import pip_size
from ml_workbench_service.market.trading_series import StackedBars, TradingSeries, build_trading_series

HOUR_MS = TIMEFRAMES_MS["1h"]
START_MS = 1_704_067_200_000  # Monday 1 January 2024, 00:00 UTC
LEVELS = {"EUR/USD": 1.1, "USD/JPY": 145.0, "EUR/GBP": 0.86}
COSTS: Mapping[str, Costs] = {
    "EUR/USD": Costs(spread_pips=0.4, commission_bp=0.35, slippage_bp=0.1, swap_long_pips=0.6, swap_short_pips=-0.2),
    "USD/JPY": Costs(spread_pips=0.9, commission_bp=0.3, slippage_bp=0.2, swap_long_pips=-0.8, swap_short_pips=1.9),
    "EUR/GBP": Costs(spread_pips=1.1, commission_bp=0.0, slippage_bp=0.0, swap_long_pips=0.0, swap_short_pips=0.3),
}
LOOKBACK = 4


def stacked(
    price_R: Floats, at_ms_R: Ints, *, spread_R: Floats | None = None, symbol: str = "EUR/USD", **other: Any
) -> StackedBars:
    """Bars of one symbol and run, whose opens and closes are the same prices at the same moments."""
    num = len(price_R)
    spread_R = np.full(num, np.nan) if spread_R is None else spread_R
    zeros = np.zeros(num, dtype=np.int64)
    prices = np.asarray(price_R, dtype=np.float64)
    fields = {
        "rows_RF": np.zeros((num, 1), dtype=np.float32), "open_R": prices, "close_R": prices, "opened_ms_R": at_ms_R,
        "available_at_ms_R": at_ms_R, "runs_R": zeros, "symbol_R": zeros, "symbols": (symbol,), "spread_R": spread_R,
        "spread_open_R": spread_R,
    }  # fmt: skip
    return StackedBars(**(fields | other))


def hours(num: int) -> Ints:
    """Openings of the market's hours."""
    every = START_MS + np.arange(3 * num) * HOUR_MS
    return every[calendar.is_open(every)][:num]


def series_of(
    *, seed: int = 0, fill: FillRule = "next_open", num_bars: int = 300, num_missing: int = 4, num_features: int = 2
) -> TradingSeries:
    """Three symbols stacked; each misses other bars, and one bar in three has spreads of its own."""
    chance = np.random.default_rng(seed)
    close, opens, known, runs, symbols, spread = [], [], [], [], [], []
    for number, level in enumerate(LEVELS.values()):
        opened = np.delete(hours(num_bars), chance.choice(np.arange(20, num_bars - 20), num_missing, replace=False))
        known.append(opened + HOUR_MS)
        runs.append(calendar.runs(opened, HOUR_MS, "fx"))
        close.append(level * np.exp(np.cumsum(chance.normal(0, 2e-3, len(opened)))))
        opens.append(np.concatenate([[level], close[-1][:-1]]) * np.exp(chance.normal(0, 1e-4, len(opened))))
        symbols.append(np.full(len(opened), number))
        spread.append(
            np.where(
                chance.random(len(opened)) < 1 / 3,
                chance.uniform(0, 3, len(opened)) * pip_size(list(LEVELS)[number]),
                np.nan,
            )
        )
    num_rows = sum(map(len, close))
    return build_trading_series(
        StackedBars(
            chance.standard_normal((num_rows, num_features)).astype(np.float32),
            open_R=np.concatenate(opens),
            close_R=np.concatenate(close),
            opened_ms_R=np.concatenate(known) - HOUR_MS,
            available_at_ms_R=np.concatenate(known),
            runs_R=np.concatenate(runs),
            symbol_R=np.concatenate(symbols),
            symbols=tuple(LEVELS),
            spread_R=np.concatenate(spread),
            spread_open_R=np.concatenate(spread),
        ),
        costs=COSTS,
        fill=fill,
    )


def window_ends(series: TradingSeries, lookback: int = LOOKBACK) -> Ints:
    """Rows that end a window of consecutive bars, as `learning.data.windows` finds them."""
    joined = np.concatenate([[False], series.next_ok_R[:-1]])
    rows = np.arange(series.num_rows)
    since = rows - np.maximum.accumulate(np.where(joined, 0, rows))
    return np.flatnonzero(since >= lookback - 1)
