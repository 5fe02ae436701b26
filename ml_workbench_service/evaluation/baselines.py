"""Baseline forecasts: what somebody without the model would have forecast, which a verdict sets a model against.

    price targets   random_walk   no change (Meese and Rogoff, Journal of International Economics 14, 1983)
                    drift         each symbol's mean over the training part
    volatility      seasonal_ewma    the EWMA of deseasonalised returns times the season of the coming bars
                                     (`market/seasonal_volatility.py`): what an hour table and RiskMetrics know together
                    seasonal_har     regression on the deseasonalised volatility of the last bar, day, week and month
                                     (Corsi, Journal of Financial Econometrics 7, 2009), in bars of the timeframe, times
                                     the season; outside what the training part saw it counts as its border (the
                                     insanity filter of Bollerslev, Patton and Quaedvlieg, Journal of Econometrics 192,
                                     2016)
                    seasonal_blend   their mean. Of a GARCH market each of the two leaves something that the other
                                     knows; who blends them has found nothing new
    both            linear        ridge regression on the very same windows (`evaluation/ridge.py`)
    policies        linear        the sign of such a regression of the next bar's move, where the forecast is worth
                                  the round trip

Everything is fitted on the training part (a penalty chosen on the validation part) and answers for whatever rows it is
asked about. Symbols are pooled in units of their labels' typical size.

Legend: N rows asked about, R rows of all symbols, J regressors.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.evaluation.ridge import Ridge
from ml_workbench_service.learning.data.windows import Part, Windows
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.calendar import DAY_MS
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile, deseasonalised, seasonal_volatility
from ml_workbench_service.market.significance import trailing_sums
from ml_workbench_service.market.trading_series import TradingSeries

RANDOM_WALK, DRIFT, LINEAR = "random_walk", "drift", "linear"
SEASONAL_EWMA, SEASONAL_HAR, SEASONAL_BLEND = "seasonal_ewma", "seasonal_har", "seasonal_blend"
NESTED = frozenset({RANDOM_WALK, DRIFT})
"""The model without what it learnt: Clark and West's test is for these."""
SANE_SHARE = 0.001
"""Of the training part's deseasonalised volatilities that lie below the least that a regression may say."""
FITTED: dict[Part, Part] = {"train": "validation", "validation": "calibration"}
"""Parts that a baseline learns from, and the border that each ends at."""
HAR_DAYS = (1, 5, 22)
"""Trading days of Corsi's day, week and month."""
LINEAR_NETWORKS = frozenset({"linear_forecaster", "linear_policy"})
"""Of the families `linear`, `linear_classifier` and `linear_policy`, which are not compared with themselves."""


def left_out(network: Mapping[str, Any]) -> tuple[str, ...]:
    """Baselines that such a network, or an ensemble of such, is not compared with."""
    kinds = {each["kind"] for each in network.get("members", [network]) if "kind" in each}
    return (LINEAR,) if kinds & LINEAR_NETWORKS else ()


def forecasts(
    problem: TrainingProblem, ends: Ints, *, number: int = 0, without: Collection[str] = ()
) -> dict[str, Floats]:
    """Each baseline's forecasts (N,) of one target, in the target's own unit.

    Args:
        problem: data and targets.
        ends: the rows asked about.
        number: which of the targets.
        without: baselines that are not asked for.
    """
    windows, target = problem.windows, problem.targets[number]
    units_N = windows.label_scale_RK[ends, number]
    if not target.needs_price:
        found = _volatilities(problem, ends, number=number, without=without)
    else:
        makers = {RANDOM_WALK: _zeros, DRIFT: _drift}
        found = {name: make(windows, number, ends) for name, make in makers.items() if name not in without}
    if LINEAR not in without:
        found[LINEAR] = _linear(windows, target, number, ends)
    return {name: each * units_N for name, each in found.items()}


def naive_errors(problem: TrainingProblem, ends: Ints, *, number: int = 0) -> tuple[Floats, Floats]:
    """Mean absolute and root mean squared error (N,) of the naive forecast over the training part of each row's symbol.

    Naive is the last known value: of a price no change, of a volatility that of as many bars before.
    """
    windows, target = problem.windows, problem.targets[number]
    train = windows.parts["train"]
    errors_N = windows.own_labels_RK[train, number]
    if not target.needs_price:
        errors_N = errors_N - realised_volatility(windows, target.horizon)[train] * np.sqrt(target.horizon)
    known_N = np.isfinite(errors_N)
    mae_S, rmse_S = np.zeros(len(windows.symbols)), np.zeros(len(windows.symbols))
    for symbol in range(len(windows.symbols)):
        own = errors_N[known_N & (windows.symbol_R[train] == symbol)]
        if len(own):
            mae_S[symbol], rmse_S[symbol] = np.mean(np.abs(own)), np.sqrt(np.mean(own**2))
    return mae_S[windows.symbol_R[ends]], rmse_S[windows.symbol_R[ends]]


def linear_positions(series: TradingSeries, rows: Ints, *, windows: Windows) -> Ints:
    """The sign of a ridge forecast of the move that each decision is paid by, 0 where it is not worth a round trip.

    Args:
        series: prices and costs.
        rows: decision rows (N,), all payable.
        windows: rows and parts the regression is fitted on.
    """
    moves_R, train = np.full(series.num_rows, np.nan), windows.parts["train"]
    for part, border in FITTED.items():
        paid = series.payable(windows.parts[part], until_ms=windows.borders_ms[border])
        moves_R[paid] = series.move_R[paid + series.delay]
    units_S = np.ones(len(series.symbols))
    for symbol in range(len(series.symbols)):
        own = moves_R[train[series.symbol_R[train] == symbol]]
        size = float(np.sqrt(np.nanmean(own**2))) if np.isfinite(own).any() else 0.0
        units_S[symbol] = size or 1.0
    units_R = units_S[series.symbol_R]
    found_N = Ridge.fit(windows, moves_R / units_R).forecasts(rows) * units_R[rows]
    worth_N = np.abs(found_N) > 2 * series.unit_cost_R[rows + series.delay]
    return np.where(worth_N, np.sign(found_N), 0).astype(np.int64)


def realised_volatility(windows: Windows, bars: int) -> Floats:
    """(R,) root mean squared log return of each symbol's last `bars` bars, of those that are there; NaN without any."""
    found_R = np.full(len(windows.close_R), np.nan)
    for symbol in range(len(windows.symbols)):
        own = np.flatnonzero(windows.symbol_R == symbol)
        found_R[own] = _trailing_rms(_log_returns(windows, own), bars)
    return found_R


def _zeros(windows: Windows, number: int, ends: Ints) -> Floats:
    return np.zeros(len(ends))


def _drift(windows: Windows, number: int, ends: Ints) -> Floats:
    return np.asarray(_symbol_means(windows, number)[windows.symbol_R[ends]])


def _linear(windows: Windows, target: Target, number: int, ends: Ints) -> Floats:
    found_N = Ridge.fit(windows, windows.labels_RK[:, number].astype(np.float64)).forecasts(ends)
    return found_N if target.needs_price else np.asarray(np.maximum(found_N, 0.0))


def _volatilities(problem: TrainingProblem, ends: Ints, *, number: int, without: Collection[str]) -> dict[str, Floats]:
    """In units of the labels."""
    season, windows = _Season.of(problem, number), problem.windows
    makers = {SEASONAL_EWMA: season.ewma, SEASONAL_HAR: season.har}
    needed = [name for name in makers if name not in without or SEASONAL_BLEND not in without]
    made = {name: _scaled(makers[name](), windows, number, ends) for name in needed}
    found = {name: each for name, each in made.items() if name not in without}
    if SEASONAL_BLEND not in without:
        found[SEASONAL_BLEND] = np.mean(list(made.values()), axis=0)
    return found


def _scaled(forecast_R: Floats, windows: Windows, number: int, ends: Ints) -> Floats:
    """Times what the training part asks for; where a row knows no volatility, the training part's mean.

    The root of few summed squares lies below the standard deviation on average. The mean ratio is the factor that has
    the least QLIKE.
    """
    train = windows.parts["train"]
    known = train[np.isfinite(forecast_R[train]) & (forecast_R[train] > 0)]
    factor = float(np.mean(windows.labels_RK[known, number] / forecast_R[known])) if len(known) else 1.0
    found_N = factor * forecast_R[ends]
    return np.where(np.isfinite(found_N) & (found_N > 0), found_N, _drift(windows, number, ends))


@dataclass(frozen=True)
class _Season:
    """Each symbol's deseasonalised returns, and what the season makes of its coming bars; all rows, in label units."""

    windows: Windows
    number: int
    horizon: int
    move_R: Floats  # deseasonalised log returns
    size_R: Floats  # of a label whose bars moved by 1 each, deseasonalised
    ewma_R: Floats

    @classmethod
    def of(cls, problem: TrainingProblem, number: int) -> "_Season":
        """Profiles are fitted on bars known by the end of the training part."""
        windows, horizon = problem.windows, problem.targets[number].horizon
        opened_R, bar_ms = _openings(problem)
        move_R, size_R, ewma_R = (np.full(len(opened_R), np.nan) for _ in range(3))
        unit_R = windows.label_scale_RK[:, number] / np.sqrt(horizon)
        for symbol in range(len(windows.symbols)):
            own = np.flatnonzero(windows.symbol_R == symbol)
            opened_N, returns_N = opened_R[own], _log_returns(windows, own)
            known_N = windows.split.learnt(windows.available_at_ms_R[own])
            profile = SeasonalProfile.fit(opened_N[known_N], returns_N[known_N], bar_ms)
            move_R[own] = deseasonalised(profile, opened_N, returns_N)
            size_R[own] = profile.coming_factor(opened_N, horizon) / unit_R[own]
            ewma_R[own] = seasonal_volatility(profile, opened_N, returns_N, horizon=horizon) / unit_R[own]
        return cls(windows, number, horizon, move_R, size_R, ewma_R)

    def ewma(self) -> Floats:
        """(R,) the EWMA of deseasonalised squares times the coming season."""
        return self.ewma_R

    def har(self) -> Floats:
        """(R,) least squares with an intercept; what is unknown at a row counts as the training part's mean."""
        windows, train = self.windows, self.windows.parts["train"]
        day = bars_per_day(windows)
        spans = sorted({1, self.horizon, *(days * day for days in HAR_DAYS)})
        x_RJ = np.column_stack([self._trailing(bars) for bars in spans])
        x_RJ = x_RJ[:, np.isfinite(x_RJ[train]).any(axis=0)]
        center_J = np.nanmean(x_RJ[train], axis=0)
        x_RJ = np.where(np.isfinite(x_RJ), x_RJ, center_J) - center_J
        labels_N = windows.labels_RK[train, self.number] / self.size_R[train]
        weights_J = np.linalg.lstsq(x_RJ[train], labels_N - labels_N.mean(), rcond=None)[0]
        least, most = np.quantile(labels_N, [SANE_SHARE, 1.0])
        found_R = np.clip(x_RJ @ weights_J + labels_N.mean(), max(float(least), 0.0), float(most))
        return np.asarray(found_R * self.size_R)

    def _trailing(self, bars: int) -> Floats:
        """(R,) root mean squared deseasonalised return of each symbol's last `bars` bars; NaN without any."""
        found_R = np.full(len(self.move_R), np.nan)
        for symbol in range(len(self.windows.symbols)):
            own = self.windows.symbol_R == symbol
            found_R[own] = _trailing_rms(self.move_R[own], bars)
        return found_R


def _openings(problem: TrainingProblem) -> tuple[Ints, int]:
    """(R,) when each row's bar opened, and the length of a bar."""
    windows = problem.windows
    if problem.tables:
        opened_R = np.concatenate([table.opened_ms for table in problem.tables])
        return opened_R, TIMEFRAMES_MS[problem.tables[0].timeframe]
    distances = np.diff(windows.available_at_ms_R)
    bar_ms = int(np.median(distances[distances > 0])) if (distances > 0).any() else DAY_MS
    return windows.available_at_ms_R - bar_ms, bar_ms


def _log_returns(windows: Windows, own: Ints) -> Floats:
    """(N,) of one symbol's bars, each from the close before; NaN where unknown."""
    found_N = np.full(len(own), np.nan)
    found_N[1:] = np.diff(np.log(windows.close_R[own]))
    return found_N


def bars_per_day(windows: Windows) -> int:
    """Bars of a trading day, by the usual distance of two bars; 1 for days and longer."""
    distances = np.diff(windows.available_at_ms_R)
    distances = distances[distances > 0]  # a step back begins another symbol
    return max(1, round(DAY_MS / float(np.median(distances)))) if len(distances) else 1


def _symbol_means(windows: Windows, number: int) -> Floats:
    """(S,) mean label of each symbol's training part, in units of its label scale."""
    train = windows.parts["train"]
    num_symbols = len(windows.symbols)
    counts_S = np.bincount(windows.symbol_R[train], minlength=num_symbols)
    totals_S = np.bincount(windows.symbol_R[train], weights=windows.labels_RK[train, number], minlength=num_symbols)
    return np.asarray(totals_S / np.maximum(counts_S, 1))


def _trailing_rms(moves_N: Floats, bars: int) -> Floats:
    total_N, num_N = trailing_sums(moves_N**2, bars)
    return np.where(num_N > 0, np.sqrt(np.maximum(total_N, 0.0) / np.maximum(num_N, 1)), np.nan)
