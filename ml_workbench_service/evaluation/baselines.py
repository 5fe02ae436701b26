"""Baseline forecasts: what somebody without the model would have forecast, which a verdict sets a model against.

    price targets   random_walk   no change (Meese and Rogoff, Journal of International Economics 14, 1983)
                    drift         each symbol's mean over the training part
    volatility      ewma          RiskMetrics' ex-ante volatility, rescaled by least squares: the root of few summed
                                  squares lies below the standard deviation on average
                    har           regression on realised volatility of the last bar, day, week and month (Corsi,
                                  Journal of Financial Econometrics 7, 2009), in bars of the timeframe
                    ewma_har      the same regression with the EWMA beside them. Of a GARCH market each of the two
                                  leaves something that the other knows; who blends them has found nothing new
    both            linear        ridge regression on the very same windows (`evaluation/ridge.py`)
    policies        linear        the sign of such a regression of the next bar's move, where the forecast is worth
                                  the round trip

Everything is fitted on the training part (a penalty chosen on the validation part) and answers for whatever rows it is
asked about. Symbols are pooled in units of their labels' typical size.

Legend: N rows asked about, R rows of all symbols, J regressors.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.evaluation.ridge import Ridge
from ml_workbench_service.learning.data.windows import Part, Windows
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.calendar import DAY_MS
from ml_workbench_service.market.significance import trailing_sums
from ml_workbench_service.market.targets import target_volatility
from ml_workbench_service.market.trading_series import TradingSeries

RANDOM_WALK, DRIFT, EWMA, HAR, EWMA_HAR, LINEAR = "random_walk", "drift", "ewma", "har", "ewma_har", "linear"
FITTED: dict[Part, Part] = {"train": "validation", "validation": "calibration"}
"""Parts that a baseline learns from, and the border that each ends at."""
HAR_DAYS = (1, 5, 22)
"""Trading days of Corsi's day, week and month."""
FAMILY_OF_LINEAR = "linear_forecaster"
"""The network of the family `linear`, which is not compared with itself."""


def left_out(network: Mapping[str, Any]) -> tuple[str, ...]:
    """Baselines that such a network, or an ensemble of such, is not compared with."""
    kinds = {each["kind"] for each in network.get("members", [network]) if "kind" in each}
    return (LINEAR,) if FAMILY_OF_LINEAR in kinds else ()


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
    makers = (
        {RANDOM_WALK: _zeros, DRIFT: _drift, LINEAR: _linear}
        if target.needs_price
        else {EWMA: _ewma, HAR: _har, EWMA_HAR: _ewma_har, LINEAR: _linear}
    )
    units_N = windows.label_scale_RK[ends, number]
    return {name: make(windows, target, number, ends) * units_N for name, make in makers.items() if name not in without}


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
        own = windows.symbol_R == symbol
        found_R[own] = _trailing_rms(windows.close_R[own], bars)
    return found_R


def _zeros(windows: Windows, target: Target, number: int, ends: Ints) -> Floats:
    return np.zeros(len(ends))


def _drift(windows: Windows, target: Target, number: int, ends: Ints) -> Floats:
    return np.asarray(_symbol_means(windows, number)[windows.symbol_R[ends]])


def _linear(windows: Windows, target: Target, number: int, ends: Ints) -> Floats:
    found_N = Ridge.fit(windows, windows.labels_RK[:, number].astype(np.float64)).forecasts(ends)
    return found_N if target.needs_price else np.asarray(np.maximum(found_N, 0.0))


def _ewma(windows: Windows, target: Target, number: int, ends: Ints) -> Floats:
    """The training part's mean stands in where the volatility is unknown."""
    train = windows.parts["train"]
    scales_R = windows.label_scale_RK[:, number]
    ratio_R = target_volatility(windows.bar_volatility_R, target) / scales_R
    known = train[np.isfinite(ratio_R[train])]
    labels_N, square = windows.labels_RK[known, number].astype(np.float64), float(ratio_R[known] @ ratio_R[known])
    factor = float(labels_N @ ratio_R[known]) / square if square > 0 else 1.0
    found_N = factor * ratio_R[ends]
    return np.where(np.isfinite(found_N), found_N, _drift(windows, target, number, ends))


def _har(windows: Windows, target: Target, number: int, ends: Ints) -> Floats:
    return _least_squares(_realised(windows, target), windows, target, number, ends)


def _ewma_har(windows: Windows, target: Target, number: int, ends: Ints) -> Floats:
    x_RJ = np.column_stack([_realised(windows, target), windows.bar_volatility_R])
    return _least_squares(x_RJ, windows, target, number, ends)


def _realised(windows: Windows, target: Target) -> Floats:
    """(R, J) of one bar, over the last bar, the horizon, and the day, week and month."""
    day = bars_per_day(windows)
    spans = sorted({1, target.horizon, *(days * day for days in HAR_DAYS)})
    return np.column_stack([realised_volatility(windows, bars) for bars in spans])


def _least_squares(x_RJ: Floats, windows: Windows, target: Target, number: int, ends: Ints) -> Floats:
    """With an intercept; what is unknown at a row counts as the training part's mean."""
    train = windows.parts["train"]
    x_RJ = x_RJ * (np.sqrt(target.horizon) / windows.label_scale_RK[:, number])[:, None]
    x_RJ = x_RJ[:, np.isfinite(x_RJ[train]).any(axis=0)]
    center_J = np.nanmean(x_RJ[train], axis=0)
    x_RJ = np.where(np.isfinite(x_RJ), x_RJ, center_J) - center_J
    labels_N = windows.labels_RK[train, number].astype(np.float64)
    weights_J = np.linalg.lstsq(x_RJ[train], labels_N - labels_N.mean(), rcond=None)[0]
    return np.asarray(np.maximum(x_RJ[ends] @ weights_J + labels_N.mean(), 0.0))


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


def _trailing_rms(close_N: Floats, bars: int) -> Floats:
    squares_N = np.full(len(close_N), np.nan)
    squares_N[1:] = np.diff(np.log(close_N)) ** 2
    total_N, num_N = trailing_sums(squares_N, bars)
    return np.where(num_N > 0, np.sqrt(np.maximum(total_N, 0.0) / np.maximum(num_N, 1)), np.nan)
