"""Live metrics of a version, from its rows of the ledger: error, direction, coverage, calibration (docs/monitoring.md).

Standard errors count the rows of one bar as one observation and allow for overlapping horizons: Newey and West's
variance with the lags of `market/significance.py`. They know nothing of what was not sampled.

Legend: N rows in the order of their `as_of`, M rows that kept their inputs, F features, T bars.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ml_workbench_service.contracts.market import Bools, Floats, Floats32, Ints
from ml_workbench_service.contracts.outcomes import Calibration, LiveCoverageReport, LiveError, ReliabilityBin, Share
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.market.significance import FEWEST_MOMENTS, lags, long_run_variance, mean_by_moment

NUM_BINS = 10
"""Equal bins of confidence, as in Guo et al., ICML 2017."""
FEWEST_OUTCOMES = 30
"""Under so many no figure means much: the usual rule for a mean to be about normal."""
MEAN_ABSOLUTE_NORMAL = float(np.sqrt(2 / np.pi))


@dataclass(frozen=True)
class LiveRows:
    """Rows of one version by column; NaN where a row has no such number.

    Attributes:
        side_N: 1 buy, -1 sell, 0 hold.
        inputs_MF: the newest rows as the network read them; those that have one.
        inputs_ms_M: their moments.
    """

    as_of_ms_N: Ints
    is_known_N: Bools
    is_open_N: Bools
    is_unavailable_N: Bools
    abstains_N: Bools
    prediction_N: Floats
    realised_N: Floats
    side_N: Ints
    confidence_N: Floats
    level_N: Floats
    lower_N: Floats
    upper_N: Floats
    volatility_N: Floats
    break_even_N: Floats
    inputs_MF: Floats32
    inputs_ms_M: Ints

    def __len__(self) -> int:
        return len(self.as_of_ms_N)


@dataclass(frozen=True)
class LiveFigures:
    """What the known outcomes say."""

    error: LiveError | None
    accuracy: Share | None
    direction_accuracy: Share | None
    coverage: LiveCoverageReport | None
    calibration: Calibration | None


def live_figures(rows: LiveRows, target: Target, *, bar_ms: int) -> LiveFigures:
    """Every figure that this target has, over the rows whose outcome is known."""
    known_N = rows.is_known_N & np.isfinite(rows.realised_N) & np.isfinite(rows.prediction_N)
    bars_N = bar_numbers(rows.as_of_ms_N, bar_ms)

    def share(holds_N: Bools, among_N: Bools) -> Share:
        return share_of(holds_N[among_N], bars_N[among_N], horizon=target.horizon)

    accuracy = None
    if target.classes:
        accuracy = share(rows.prediction_N == rows.realised_N, known_N)
    direction_accuracy = None
    if target.measure not in ("volatility", "market_regime"):
        calls_N = known_N & (rows.side_N != 0)
        direction_accuracy = share(np.sign(rows.realised_N) == rows.side_N, calls_N)
    coverage = None
    stated_N = known_N & np.isfinite(rows.level_N)
    if stated_N.any():
        is_inside_N = (rows.lower_N <= rows.realised_N) & (rows.realised_N <= rows.upper_N)
        level = float(rows.level_N[np.flatnonzero(stated_N)[-1]])
        coverage = LiveCoverageReport(level=level, coverage=share(is_inside_N, stated_N))
    sure_N = known_N & np.isfinite(rows.confidence_N)
    return LiveFigures(
        error=None if target.classes else _error(rows, target, known_N),
        accuracy=accuracy,
        direction_accuracy=direction_accuracy,
        coverage=coverage,
        calibration=calibration(rows.confidence_N[sure_N], came_true(rows, target)[sure_N]),
    )


def bar_numbers(as_of_ms_N: Ints, bar_ms: int) -> Ints:
    """The bar that each moment belongs to: callers come some seconds after it, and several symbols share it."""
    return np.asarray(as_of_ms_N // bar_ms, dtype=np.int64)


def share_of(holds_N: Bools, moments_N: Ints, *, horizon: int) -> Share:
    """The share that holds, with its standard error."""
    num = len(holds_N)
    if not num:
        return Share(value=None, standard_error=None, num=0)
    values_T = mean_by_moment(holds_N.astype(np.float64), moments_N)
    error = None
    if len(values_T) >= FEWEST_MOMENTS:
        lag = lags(len(values_T), horizon)
        taken = min((lag + 1) / len(values_T), 0.9)  # by the mean, as in `skill.hac_mean`
        error = float(np.sqrt(long_run_variance(values_T, lag) / (1 - taken) / len(values_T)))
    return Share(value=float(np.mean(holds_N)), standard_error=error, num=num)


def came_true(rows: LiveRows, target: Target) -> Bools:
    """(N,) whether what `confidence` is the probability of came true: the class, or a move beyond the costs.

    A forecast's `hold` comes true when the move stays within the round-trip cost, as in
    `uncertainty.ResidualDistribution.probability`.
    """
    if target.classes:
        return np.asarray(rows.prediction_N == rows.realised_N)
    above_N, below_N = rows.realised_N > rows.break_even_N, rows.realised_N < -rows.break_even_N
    return np.where(rows.side_N > 0, above_N, np.where(rows.side_N < 0, below_N, ~above_N & ~below_N))


def calibration(confidence_N: Floats, true_N: Bools) -> Calibration | None:
    """Reliability by bins, Brier score and expected calibration error; None without a row."""
    num = len(confidence_N)
    if not num:
        return None
    bins, gap, chance = [], 0.0, 0.0
    place_N = np.clip((confidence_N * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
    for place in range(NUM_BINS):
        inside = place_N == place
        size = int(inside.sum())
        if not size:
            continue
        stated, found = float(confidence_N[inside].mean()), float(true_N[inside].mean())
        bins.append(
            ReliabilityBin(
                lower=place / NUM_BINS, upper=(place + 1) / NUM_BINS, num=size, confidence=stated, came_true=found
            )
        )
        gap += size / num * abs(stated - found)
        chance += size / num * MEAN_ABSOLUTE_NORMAL * float(np.sqrt(max(stated * (1 - stated), 0.0) / size))
    base = float(true_N.mean())
    return Calibration(
        num=num,
        brier=float(np.mean((confidence_N - true_N) ** 2)),
        brier_of_base_rate=base * (1 - base),
        expected_calibration_error=gap,
        chance_error=chance,
        bins=tuple(bins),
    )


def _error(rows: LiveRows, target: Target, known_N: Bools) -> LiveError | None:
    """Beside the naive baseline's on the same rows: no change for prices, the ex-ante volatility for volatilities."""
    name: Literal["zero", "ex_ante_volatility"] = "zero" if target.needs_price else "ex_ante_volatility"
    baseline_N = np.zeros(len(rows)) if target.needs_price else rows.volatility_N
    among = np.flatnonzero(known_N & np.isfinite(baseline_N))
    if not len(among):
        return None
    missed = rows.prediction_N[among] - rows.realised_N[among]
    missed_by_baseline = baseline_N[among] - rows.realised_N[among]
    mae, rmse = _losses(missed)
    baseline_mae, baseline_rmse = _losses(missed_by_baseline)
    return LiveError(
        mae=mae,
        rmse=rmse,
        bias=float(missed.mean()),
        baseline=name,
        baseline_mae=baseline_mae,
        baseline_rmse=baseline_rmse,
        mae_ratio=mae / baseline_mae if baseline_mae > 0 else None,
        rmse_ratio=rmse / baseline_rmse if baseline_rmse > 0 else None,
    )


def _losses(missed: Floats) -> tuple[float, float]:
    return float(np.abs(missed).mean()), float(np.sqrt(np.mean(missed**2)))


def warnings_of(rows: LiveRows, *, most: int) -> Sequence[str]:
    """What to know before reading the figures."""
    few = int(rows.is_known_N.sum()) < FEWEST_OUTCOMES
    return [*(["few_outcomes"] if few else []), *(["newest_rows_only"] if len(rows) >= most else [])]
