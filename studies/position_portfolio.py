"""Portfolio on injected forecasts: whose risk an account of three pairs is, with and without a risk budget.

Three pairs whose moves differ fourfold, two of them correlated, each with a slow column that moves its next hour's
mean. All are sized by `proportional`; weights are fitted on the first half of the hours, the second half is counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.evaluation.signal_backtest import Account
from ml_workbench_service.market import performance
from ml_workbench_service.market.sizing import Sizing, equal_risk_weights
from ml_workbench_service.market.targets import ewma_volatility
from ml_workbench_service.training.position_rules import risk_covariance
from studies.position_sizes import PERSISTENCE, series_of_closes, slow
from studies.series import open_hours
from studies.tables import Goal, Run, Table
from studies.workers import in_workers

NUM_BARS = 24_000
NUM_SERIES = 40
R2 = 0.001
"""Of each next hour's move."""
BUDGET = 0.02
DEVIATIONS: Mapping[str, float] = {"EUR/USD": 0.001, "GBP/USD": 0.002, "USD/JPY": 0.0005}
"""Of an hour's move. The first two share half of their variance."""
LEVELS: Mapping[str, float] = {"EUR/USD": 1.1, "GBP/USD": 1.3, "USD/JPY": 150.0}
WITHOUT = PositionRule(rule="proportional", full_ratio=0.3)
WITH = PositionRule(rule="proportional", full_ratio=0.3, risk_budget=BUDGET, max_leverage=10.0)


@dataclass(frozen=True)
class InjectedPortfolio:
    """Three pairs to trade on."""

    number: int
    seed: int
    num_bars: int


@dataclass(frozen=True)
class Risk:
    """What the account was on the counted half.

    Attributes:
        shares: of each symbol in the variance of the account's gross daily return.
        deviation: of that return, a year's.
        sharpe: of the net return, a year's.
    """

    shares: tuple[float, ...]
    deviation: float
    sharpe: float


def trade(portfolio: InjectedPortfolio) -> tuple[Risk, Risk]:
    """Without a budget and with one."""
    chance, num = np.random.default_rng([portfolio.seed, portfolio.number, 4]), portfolio.num_bars
    opened_ms, shared = open_hours(num), chance.standard_normal(num)
    closes: dict[str, Floats] = {}
    said: list[Floats] = []
    for symbol, deviation in DEVIATIONS.items():
        signal, own = slow(chance, num, PERSISTENCE), chance.standard_normal(num)
        moves = deviation * (own if symbol == "USD/JPY" else np.sqrt(0.5) * (own + shared))
        moves[1:] += np.sqrt(R2) * deviation * signal[:-1]
        closes[symbol] = LEVELS[symbol] * np.cumprod(1 + moves)
        said.append(np.sqrt(R2) * deviation * signal)
    series = series_of_closes(opened_ms, closes)
    forecast, volatility = np.concatenate(said), np.concatenate([ewma_volatility(each) for each in closes.values()])
    hour = np.tile(np.arange(num), len(closes))
    fitted, counted = (
        series.payable(np.flatnonzero(here & np.isfinite(volatility))) for here in (hour < num // 2, hour >= num // 2)
    )

    def account(sizing: Sizing, rows: np.ndarray) -> Account:
        weights_R = np.array([sizing.weight(symbol) for symbol in closes])[series.symbol_R]
        wanted = sizing.wanted(
            forecast[rows], volatility=volatility[rows], dead_zone=np.zeros(len(rows)), weight=weights_R[rows]
        )
        return signal_backtest.pay(series, rows, signal_backtest.taken_in_rows(sizing, wanted, rows, series))

    without, budgeted = (Sizing.of(each, horizon=1, timeframe="1h") for each in (WITHOUT, WITH))
    weights_S = equal_risk_weights(risk_covariance(account(budgeted, fitted)), BUDGET)
    budgeted = replace(budgeted, weights=dict(zip(closes, weights_S.tolist(), strict=True)))
    return _risk(account(without, counted)), _risk(account(budgeted, counted))


def _risk(account: Account) -> Risk:
    covariance = risk_covariance(account)
    daily_D = np.array(list(performance.daily_returns(account.net_M, account.settled_ms_M).values()))
    return Risk(
        shares=tuple((covariance.sum(axis=1) / covariance.sum()).tolist()),
        deviation=float(covariance.sum()) ** 0.5,
        sharpe=performance.annual(performance.sharpe(daily_D)) or 0.0,
    )


def tables(run: Run) -> list[Table]:
    """One table: the account without and with a budget."""
    num, num_bars = run.size(NUM_SERIES, quick=2), run.size(NUM_BARS, quick=4_000)
    found = in_workers(
        trade,
        [InjectedPortfolio(number, run.seed, num_bars) for number in range(num)],
        progress=run.progress("position portfolio"),
        num_workers=run.num_workers,
    )
    without, budgeted = ([each[place] for each in found] for place in (0, 1))
    return [
        Table(
            name="position_portfolio",
            title="Portfolio",
            caption=(
                f"Medians over {num} accounts of three pairs, {num_bars // 2:,} counted hours each: shares of the "
                "account's variance, deviation of a year before costs, and the Sharpe ratio after them. The columns' "
                "R² is 0.1 % of an hour's move."
            ),
            columns=("sizes", *DEVIATIONS, "deviation", "Sharpe"),
            rows=[
                _row("`proportional`, `full_ratio: 0.3`", without),
                _row(f"… `risk_budget: {BUDGET}`, `max_leverage: 10`", budgeted),
            ],
            goals=[
                Goal(
                    "portfolio: largest share of a pair in the variance",
                    max(_shares(budgeted)), 0.45, at_most=True,
                ),
                Goal(
                    "portfolio: deviation over its budget, from one",
                    abs(_median([each.deviation for each in budgeted]) / BUDGET - 1), 0.1, at_most=True,
                ),
            ],
        )
    ]  # fmt: skip


def _row(name: str, of: list[Risk]) -> tuple[str, ...]:
    deviation, sharpe = _median([each.deviation for each in of]), _median([each.sharpe for each in of])
    return (name, *(f"{100 * each:.0f} %" for each in _shares(of)), f"{100 * deviation:.2f} %", f"{sharpe:.2f}")


def _shares(of: list[Risk]) -> list[float]:
    return [_median([each.shares[place] for each in of]) for place in range(len(DEVIATIONS))]


def _median(values: list[float]) -> float:
    return float(np.median(values))
