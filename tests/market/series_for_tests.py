"""Tapes for tests: hours of the real FX week with weekends, a roll a day, missing bars, three symbols, own spreads."""

from collections.abc import Mapping

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Costs, FillRule, Ints
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


def hours(num: int) -> Ints:
    """Openings of the market's hours."""
    every = START_MS + np.arange(3 * num) * HOUR_MS
    return every[calendar.is_open(every)][:num]


def series_of(
    *, seed: int = 0, fill: FillRule = "next_open", num_bars: int = 300, num_missing: int = 4, num_features: int = 2
) -> TradingSeries:
    """Three symbols stacked; each misses other bars, and one bar in three has a spread of its own."""
    chance = np.random.default_rng(seed)
    close, known, runs, symbols, spread = [], [], [], [], []
    for number, level in enumerate(LEVELS.values()):
        opened = np.delete(hours(num_bars), chance.choice(np.arange(20, num_bars - 20), num_missing, replace=False))
        known.append(opened + HOUR_MS)
        runs.append(calendar.runs(opened, HOUR_MS, "fx"))
        close.append(level * np.exp(np.cumsum(chance.normal(0, 2e-3, len(opened)))))
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
            close_R=np.concatenate(close),
            available_at_ms_R=np.concatenate(known),
            runs_R=np.concatenate(runs),
            symbol_R=np.concatenate(symbols),
            symbols=tuple(LEVELS),
            spread_R=np.concatenate(spread),
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
