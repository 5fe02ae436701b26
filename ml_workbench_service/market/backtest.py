"""Backtest of positions: bar by bar, with the scalar functions of `market/costs.py` and nothing else.

The decoder of the environment: it takes prices, times and costs from the series and none of its arithmetic, yet pays
the rule that stands in `series.py`. It is slow on purpose (some microseconds a bar).

Legend: N decisions, ascending rows.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Costs, Floats, Ints
from ml_workbench_service.market.costs import step_log_return, swap_cost, unit_cost
from ml_workbench_service.market.trading_series import Positions, TradingSeries


@dataclass(frozen=True)
class BacktestSummary:
    """One account with equal weights on the symbols, rebalanced at each moment; returns are logarithms.

    Attributes:
        mean_cost: trading and swap per decision, a fraction.
        turnover: sum of |change of position| over all decisions, closings included.
        num_trades: changes of position, closings included.
        max_drawdown: the largest loss from a peak, a fraction.
        sharpe: mean over standard deviation of the account's returns, per year; None where nothing varies.
    """

    net_log_return: float
    gross_log_return: float
    mean_cost: float
    turnover: float
    num_trades: int
    max_drawdown: float
    sharpe: float | None


@dataclass(frozen=True)
class Backtest:
    """Each decision's net and gross log return, its cost as a fraction, and its turnover; and what they come to."""

    net_N: Floats
    gross_N: Floats
    cost_N: Floats
    turnover_N: Floats
    summary: BacktestSummary


def backtest(series: TradingSeries, rows_N: Ints, positions_N: Positions, *, bars_per_year: float) -> Backtest:
    """Runs the positions over the series' prices.

    Args:
        series: prices, times, costs and the fill rule.
        rows_N: decision rows, ascending; all of them payable (`TradingSeries.payable`).
        positions_N: signed sizes.
        bars_per_year: scales the Sharpe ratio.

    Raises:
        DataValidationError: a row cannot be paid, or a step lost the whole capital.
    """
    if len(rows_N) == 0 or len(series.payable(rows_N)) != len(rows_N) or np.any(np.diff(rows_N) <= 0):
        raise DataValidationError.at(
            "rows",
            "A backtest needs rows in ascending order that can be paid; pass them through `TradingSeries.payable`.",
        )
    paid: list[_Paid] = []
    account = _Account(series)
    for number, row in enumerate(map(int, rows_N)):
        if number == 0 or row != rows_N[number - 1] + 1:
            account.held = 0.0
        is_last = number + 1 == len(rows_N) or rows_N[number + 1] != row + 1
        paid.append(account.decide(row, float(positions_N[number]), closes=is_last))
    net_N, gross_N, cost_N, turnover_N, trades_N = np.array(paid, dtype=np.float64).T.copy()
    entries = rows_N + series.delay
    num_symbols = len(np.unique(series.symbol_R[rows_N]))
    account_net, account_gross = _account_returns(
        net_N, gross_N, times=series.priced_at_ms_R[entries], num_symbols=num_symbols
    )
    equity = np.concatenate([[0.0], np.cumsum(np.log1p(account_net))])
    deviation = float(account_net.std(ddof=1)) if len(account_net) > 1 else 0.0
    summary = BacktestSummary(
        net_log_return=float(equity[-1]),
        gross_log_return=float(np.log1p(account_gross).sum()),
        mean_cost=float(cost_N.mean()),
        turnover=float(turnover_N.sum()),
        num_trades=int(trades_N.sum()),
        max_drawdown=float(-np.expm1((equity - np.maximum.accumulate(equity)).min())),
        sharpe=float(account_net.mean()) / deviation * math.sqrt(bars_per_year) if deviation > 0 else None,
    )
    return Backtest(net_N=net_N, gross_N=gross_N, cost_N=cost_N, turnover_N=turnover_N, summary=summary)


class _Paid(NamedTuple):
    net: float
    gross: float
    cost: float
    turnover: float
    num_trades: int


class _Account:
    """Holds a position and pays for it."""

    def __init__(self, series: TradingSeries) -> None:
        self._series = series
        self._with_spread: dict[tuple[int, float], Costs] = {}
        self.held = 0.0

    def decide(self, row: int, position: float, *, closes: bool) -> _Paid:
        series = self._series
        symbol = series.symbols[int(series.symbol_R[row])]
        entry = row + series.delay
        price, next_price = float(series.price_R[entry]), float(series.price_R[entry + 1])
        costs = self._costs(entry)
        change = abs(position - self.held)
        cost = unit_cost(costs, symbol, price) * change
        swap = swap_cost(
            costs,
            symbol,
            price,
            position,
            int(series.priced_at_ms_R[entry]),
            int(series.priced_at_ms_R[entry + 1]),
        )
        net = step_log_return(position, price, next_price, cost=cost, swap=swap)
        gross = step_log_return(position, price, next_price, cost=0.0)
        self.held = position
        closing, closed = 0.0, 0.0
        if closes and position != 0:
            closed = abs(position)
            closing = unit_cost(self._costs(entry + 1), symbol, next_price) * closed
            net += step_log_return(0.0, next_price, next_price, cost=closing)
            self.held = 0.0
        return _Paid(net, gross, cost + swap + closing, change + closed, (change > 0) + (closed > 0))

    def _costs(self, row: int) -> Costs:
        """The symbol's, with the bar's own spread where there is one."""
        number, spread = int(self._series.symbol_R[row]), float(self._series.spread_R[row])
        costs = self._series.costs[self._series.symbols[number]]
        if not math.isfinite(spread):
            return costs
        if (number, spread) not in self._with_spread:
            self._with_spread[number, spread] = costs.model_copy(update={"spread_pips": spread})
        return self._with_spread[number, spread]


def _account_returns(net_N: Floats, gross_N: Floats, *, times: Ints, num_symbols: int) -> tuple[Floats, Floats]:
    """Net and gross relative returns of the account at each moment; a symbol without a decision then counts as flat."""
    moments, place_N = np.unique(times, return_inverse=True)
    net, gross = (
        np.bincount(place_N, weights=np.expm1(each), minlength=len(moments)) / num_symbols for each in (net_N, gross_N)
    )
    return net, gross
