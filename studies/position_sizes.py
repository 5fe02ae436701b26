"""Position rules on injected forecasts: what each of them changes, where the truth about the forecast is known.

An hourly market whose volatility comes in storms, and a slow column that moves the mean of each next hour. The forecast
is the known conditional mean of the next three hours, made twice too bold, as forecasts usually are. It is sized and
paid by the product's own functions at EUR/USD's default costs: on the first half of the hours Kelly's slope is fitted,
the second half is counted. With R² 0 the column moves nothing, and what is left is the price of trading on it.

Legend: N hours, D days, W weeks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.evaluation.signal_backtest import Account
from ml_workbench_service.market import performance
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, runs
from ml_workbench_service.market.costs import resolved_costs, round_trip_cost
from ml_workbench_service.market.sizing import Sizing, calibration_slope
from ml_workbench_service.market.targets import ewma_volatility
from ml_workbench_service.market.trading_series import StackedBars, TradingSeries, build_trading_series
from studies.series import DEVIATION, SYMBOL, open_hours
from studies.tables import Goal, Run, Table
from studies.workers import in_workers

HORIZON = 3
NUM_BARS = 24_000
NUM_SERIES = 40
BOLDNESS = 2.0
"""The forecast over the true conditional mean: its slope is one half."""
PERSISTENCE = 0.9
"""Of the column, from hour to hour."""
R2 = (0.0, 0.002)
"""Of the next hour's move, where the forecast looks as if it were the last."""
SIGN, REVERSAL, HORIZON_HELD = "`sign_after_costs`", "… `decide: reversal`", "… `decide: horizon`"
PROPORTIONAL, BAND, TARGET = "`proportional`, `full_ratio: 0.3`", "… `band: 0.3`", "`volatility_target`"
RULES: dict[str, PositionRule] = {
    SIGN: PositionRule(),
    REVERSAL: PositionRule(decide="reversal"),
    HORIZON_HELD: PositionRule(decide="horizon"),
    PROPORTIONAL: PositionRule(rule="proportional", full_ratio=0.3),
    BAND: PositionRule(rule="proportional", full_ratio=0.3, band=0.3),
    TARGET: PositionRule(rule="volatility_target"),
    "`kelly`": PositionRule(rule="kelly"),
    "`kelly`, `max_leverage: 5`": PositionRule(rule="kelly", max_leverage=5.0),
}
PLAIN = {"flat": 0.0, "buy and hold": 1.0}
WEEK_MS = 7 * DAY_MS


@dataclass(frozen=True)
class InjectedForecast:
    """One series to trade on."""

    number: int
    seed: int
    num_bars: int
    r2: float


@dataclass(frozen=True)
class Figures:
    """What one rule came to on one series."""

    net: float  # log return of a year
    sharpe: float  # of a year
    free_sharpe: float  # the cost-free twin's
    drawdown: float
    turnover: float  # of a day
    mean_size: float
    unevenness: float  # standard deviation of the gross return of stormy weeks over that of calm ones


def trade(injection: InjectedForecast) -> dict[str, Figures]:
    """Every rule on one series, and what needs no forecast."""
    chance = np.random.default_rng([injection.seed, injection.number, 3])
    opened_ms, signal = open_hours(injection.num_bars), slow(chance, injection.num_bars, PERSISTENCE)
    storm = np.exp(0.5 * slow(chance, injection.num_bars, 0.995))
    storm /= np.sqrt(np.mean(storm**2))
    moves = DEVIATION * storm * chance.standard_normal(injection.num_bars)
    moves[1:] += np.sqrt(injection.r2) * DEVIATION * signal[:-1]
    close = 1.1 * np.cumprod(1 + moves)
    ahead = 1 + PERSISTENCE + PERSISTENCE**2
    forecast = BOLDNESS * np.sqrt(max(R2)) * DEVIATION * ahead * signal
    volatility = ewma_volatility(close) * np.sqrt(HORIZON)

    series = series_of_closes(opened_ms, {SYMBOL: close})
    half = injection.num_bars // 2
    usable = np.arange(np.flatnonzero(np.isfinite(volatility))[0], half - HORIZON)
    slope = calibration_slope(forecast[usable], close[usable + HORIZON] / close[usable] - 1)
    rows = series.payable(np.arange(half, injection.num_bars))
    cost = np.full(len(rows), round_trip_cost(series.costs[SYMBOL], SYMBOL, 1.1))
    found = {}
    for name, rule in RULES.items():
        sizing = Sizing.of(rule, horizon=HORIZON, timeframe="1h", slope=slope)
        taken, free = (
            signal_backtest.taken_in_rows(
                sizing, sizing.wanted(forecast[rows], volatility=volatility[rows], dead_zone=each), rows, series
            )
            for each in (cost, np.zeros(len(rows)))
        )
        found[name] = _figures(
            signal_backtest.pay(series, rows, taken), signal_backtest.pay(series, rows, free), storm[rows]
        )
    for name, size in PLAIN.items():
        account = signal_backtest.pay(series, rows, np.full(len(rows), size))
        found[name] = _figures(account, account, storm[rows])
    return found


def slow(chance: np.random.Generator, num: int, persistence: float) -> Floats:
    """(N,) a standard normal AR(1)."""
    shocks, value, path = chance.standard_normal(num).tolist(), 0.0, []
    for shock in shocks:
        value = persistence * value + (1 - persistence**2) ** 0.5 * shock
        path.append(value)
    return np.array(path)


def series_of_closes(opened_ms: Ints, closes: Mapping[str, Floats]) -> TradingSeries:
    """Hours of these symbols, each opening at the close before, at their default costs without sessions."""
    num, num_symbols = len(opened_ms), len(closes)
    every, own_runs = np.concatenate([*closes.values()]), runs(opened_ms, HOUR_MS, "fx")
    symbol_R = np.repeat(np.arange(num_symbols), num)
    bars = StackedBars(
        rows_RF=np.zeros((len(every), 0), dtype=np.float32),
        open_R=np.concatenate([np.append(close[:1], close[:-1]) for close in closes.values()]),
        close_R=every,
        opened_ms_R=np.tile(opened_ms, num_symbols),
        available_at_ms_R=np.tile(opened_ms + HOUR_MS, num_symbols),
        runs_R=np.tile(own_runs, num_symbols) + symbol_R * (int(own_runs.max()) + 1),
        symbol_R=symbol_R,
        spread_R=np.full(len(every), np.nan),
        spread_open_R=np.full(len(every), np.nan),
        symbols=tuple(closes),
    )
    return build_trading_series(bars, costs={each: resolved_costs(each) for each in closes}, fill="next_open")


def _figures(own: Account, free: Account, storm_N: Floats) -> Figures:
    daily_D, free_D = (
        np.array(list(performance.daily_returns(returns, own.settled_ms_M).values()))
        for returns in (own.net_M, free.gross_M)
    )
    return Figures(
        net=float(daily_D.mean()) * performance.DAYS_PER_YEAR,
        sharpe=performance.annual(performance.sharpe(daily_D)) or 0.0,
        free_sharpe=performance.annual(performance.sharpe(free_D)) or 0.0,
        drawdown=performance.max_drawdown(own.net_M),
        turnover=float(own.turnover_M.sum()) / len(daily_D),
        mean_size=float(np.abs(own.positions_N).mean()),
        unevenness=_unevenness(own, storm_N),
    )


def _unevenness(account: Account, storm_N: Floats) -> float:
    """Root mean square of the weeks' gross returns, stormiest third of weeks over calmest."""
    weeks_N = account.settled_ms_M // WEEK_MS
    _, place_N = np.unique(weeks_N, return_inverse=True)
    gained_W, storm_W = (np.bincount(place_N, weights=each) for each in (account.gross_M, storm_N**2))
    order, third = np.argsort(storm_W), len(storm_W) // 3
    calm, stormy = (float(np.sqrt(np.mean(gained_W[some] ** 2))) for some in (order[:third], order[-third:]))
    return stormy / calm if calm > 0 else 1.0


def tables(run: Run) -> list[Table]:
    """One table: every rule with and without a true signal."""
    num, num_bars = run.size(NUM_SERIES, quick=2), run.size(NUM_BARS, quick=4_000)
    found = {
        r2: in_workers(
            trade,
            [InjectedForecast(number, run.seed, num_bars, r2) for number in range(num)],
            progress=run.progress(f"position sizes, R² {r2:g}"),
            num_workers=run.num_workers,
        )
        for r2 in R2
    }
    rows = [_row(name, found) for name in (*RULES, *PLAIN)]
    return [
        Table(
            name="position_sizes",
            title="Position sizes",
            caption=(
                f"Medians over {num} series of {num_bars // 2:,} counted hours each. Turnover is that of a day; "
                "evenness: the gross deviation of the stormiest third of weeks over the calmest third's; drawdown, "
                "size, turnover and evenness where the column is true, R² 0.2 % of an hour's move."
            ),
            columns=(
                "rule", "Sharpe, true", "cost-free twin", "net a year, true", "net a year, nothing", "drawdown",
                "mean size", "turnover", "evenness",
            ),
            rows=rows,
            goals=_goals(found),
        )
    ]  # fmt: skip


def _row(name: str, found: dict[float, list[dict[str, Figures]]]) -> tuple[str, ...]:
    true, nothing = (lambda field, r2=r2: _median(found[r2], name, field) for r2 in (max(R2), min(R2)))
    return (
        name, f"{true('sharpe'):.2f}", f"{true('free_sharpe'):.2f}", f"{100 * true('net'):.1f} %",
        f"{100 * nothing('net'):.1f} %", f"{100 * true('drawdown'):.1f} %", f"{true('mean_size'):.2f}",
        f"{true('turnover'):.2f}", f"{true('unevenness'):.2f}",
    )  # fmt: skip


def _median(of: list[dict[str, Figures]], name: str, field: str) -> float:
    return float(np.median([getattr(each[name], field) for each in of]))


def _goals(found: dict[float, list[dict[str, Figures]]]) -> list[Goal]:
    """What the rules are for, as shares of the plain rule's figures."""
    true = found[max(R2)]

    def over(name: str, other: str, field: str) -> float:
        return _median(true, name, field) / _median(true, other, field)

    return [
        Goal("position sizes: turnover, `reversal` over each bar", over(REVERSAL, SIGN, "turnover"), 0.8, at_most=True),
        Goal(
            "position sizes: turnover, `horizon` over each bar", over(HORIZON_HELD, SIGN, "turnover"), 0.8, at_most=True
        ),
        Goal("position sizes: turnover, `band` over none", over(BAND, PROPORTIONAL, "turnover"), 0.8, at_most=True),
        Goal("position sizes: unevenness, target over sign", over(TARGET, SIGN, "unevenness"), 0.8, at_most=True),
    ]
