"""Significance tests of forecasts (Diebold-Mariano, Clark-West, HAC): overlap, storms and many symbols do not fool.

Forecasts of h bars overlap in h - 1 of them, volatility comes in storms, and symbols move together. So the symbols at
one moment are averaged first and count as one observation; the variance of the mean over moments is Newey and West's
(Econometrica 55, 1987) with Bartlett weights; and its reference is a t distribution with the few degrees of freedom
that so many lags leave (Kiefer and Vogelsang, Econometric Theory 21, 2005; Lazarus, Lewis, Stock and Watson, Journal of
Business & Economic Statistics 36, 2018): with the normal reference and few lags, overlapping labels made tests of
2.5 % reject far more often. All tests are one-sided: a small p-value speaks for the model.

    Diebold-Mariano   `hac_mean` of the difference of losses by moment (Diebold and Mariano, JBES 13, 1995)
    Clark-West        `hac_mean` of `clark_west_gains` by moment: the same for squared errors, freed of the noise that a
                      larger model adds though its extra parameters are zero in truth (Clark and West, Journal of
                      Econometrics 138, 2007)

When they fail: a mean of heavy tails needs some hundred moments; under 30 nothing here means much. Clark and West ask
whether a forecast knows anything that the baseline does not, which a forecast too loud to be useful can: ask for a
smaller loss as well.

Legend: N rows of all symbols, T moments, C classes, Q points of a distribution or quantiles.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ml_workbench_service.contracts.evaluation import SignificanceTest
from ml_workbench_service.contracts.market import Floats, Ints

NORMAL = NormalDist()
LAG_RATE = 1.3
"""Automatic lag: 1.3 x root of T, of Lazarus et al. (2018), for tests with their reference."""
LAG_HORIZONS = 3
"""Bartlett weighs a lag less the farther it is: over three horizons most of what overlapping labels share is kept."""
MOST_LAG_SHARE = 0.5
"""More lags than half the moments say nothing more; the reference is then a t with three degrees of freedom."""
FEWEST_MOMENTS = 10
"""Under so many moments there is no p-value."""
NORMAL_975 = 1.959963984540054
NORMAL_9995 = 3.2905267314919255
"""The normal's 97.5 % quantile: intervals of proportions hold at 95 %."""
TERCILE_BARS = 48
"""Bars of the trailing mean that sorts moments into calm and storm: two days of hours, two months of days. It is no
EWMA of squares, so that an interval is not judged by its own yardstick."""


def mean_by_moment(values_N: Floats, moments_N: Ints) -> Floats:
    """(T,) the mean over the rows of each moment, moments ascending: symbols at one moment are one observation."""
    moments, place_N = np.unique(moments_N, return_inverse=True)
    totals = np.bincount(place_N, weights=values_N, minlength=len(moments))
    return np.asarray(totals / np.bincount(place_N, minlength=len(moments)))


def lags(num_moments: int, horizon: int) -> int:
    """Lags of the HAC variance: the automatic number or three horizons, at least horizon - 1, less than T."""
    wanted = max(math.ceil(LAG_RATE * math.sqrt(num_moments)), LAG_HORIZONS * horizon if horizon > 1 else 0)
    wanted = max(min(wanted, int(MOST_LAG_SHARE * num_moments)), horizon - 1)
    return max(min(wanted, num_moments - 1), 0)


class MeanError(NamedTuple):
    """Standard error of a mean over moments, and the degrees of freedom of its t distribution."""

    error: float
    freedom: float

    def quantile(self, probability: float) -> float:
        """Of the t distribution."""
        from scipy.special import stdtrit  # the API process, which reads this module, does without scipy

        return float(stdtrit(self.freedom, probability))


def mean_error(values_T: Floats, *, horizon: int = 1) -> MeanError | None:
    """The HAC standard error of the mean; None under `FEWEST_MOMENTS` moments, and where nothing varies.

    The variance is divided by 1 - (lag + 1) / T for the mean that was taken out, and the degrees of freedom are
    1.5 T / (lag + 1), Bartlett's equivalent ones.
    """
    num = len(values_T)
    if num < FEWEST_MOMENTS:
        return None
    lag = lags(num, horizon)
    share = min((lag + 1) / num, 0.9)
    variance = long_run_variance(values_T, lag) / (1 - share)
    if not variance > (1e-9 * float(np.mean(values_T))) ** 2:
        return None
    return MeanError(math.sqrt(variance / num), 1.5 / share)


def hac_mean(values_T: Floats, *, horizon: int = 1) -> SignificanceTest:
    """Whether the mean of a time series is above zero, in spite of its autocorrelation.

    Args:
        values_T: one value a moment, in order of time.
        horizon: bars that one value spans.

    Returns:
        statistic and p-value None under `FEWEST_MOMENTS` moments, and where nothing varies.
    """
    num = len(values_T)
    lag = lags(num, horizon) if num else 0
    found = mean_error(values_T, horizon=horizon)
    if found is None:
        return SignificanceTest(statistic=None, p_value=None, num_moments=num, lag=lag)
    from scipy.special import stdtr

    statistic = float(np.mean(values_T)) / found.error
    return SignificanceTest(
        statistic=statistic, p_value=float(stdtr(found.freedom, -statistic)), num_moments=num, lag=lag
    )


def long_run_variance(values_T: Floats, lag: int) -> float:
    """Newey and West's: autocovariances up to `lag`, with weights falling to 0 at lag + 1. Never below zero."""
    centred = values_T - np.mean(values_T)
    num = len(centred)
    total = float(centred @ centred)
    for distance in range(1, lag + 1):
        total += 2 * (1 - distance / (lag + 1)) * float(centred[distance:] @ centred[:-distance])
    return max(total / num, 0.0)


def clark_west_gains(outcomes: Floats, *, baseline: Floats, model: Floats) -> Floats:
    """(N,) each row's (y - b)² - [(y - m)² - (b - m)²] = 2 (y - b)(m - b), summed over classes.

    Their mean is above zero exactly where moving from the baseline towards the model a little would help.
    """
    gains = 2 * (outcomes - baseline) * (model - baseline)
    return np.asarray(gains if gains.ndim == 1 else gains.sum(axis=1))


def qlike(outcomes_N: Floats, forecasts_N: Floats, *, floor: float) -> Floats:
    """(N,) y / m - log(y / m) - 1: the loss of a positive quantity that a noisy outcome cannot turn around.

    Patton, Journal of Econometrics 160 (2011): of all forecasts the mean has the least expected loss, whatever noise
    the outcome carries; and as a ratio it weighs calm and stormy hours alike.

    Args:
        floor: positive; where an outcome lies below, its own logarithm stops there, which no difference between two
            forecasts sees.
    """
    ratios = outcomes_N / forecasts_N
    return np.asarray(ratios - np.log(np.maximum(outcomes_N, floor) / forecasts_N) - 1.0)


def power(num_independent: float, *, alpha: float, r2: float, by_sign: bool = False) -> float:
    """Probability that a one-sided test at level alpha finds a forecast whose true R² is `r2`, before anything is seen.

    For n independent outcomes the statistic is close to normal around root of n r2 / (1 - r2). With `by_sign` only
    positions of -1 and 1 follow the forecast, which keeps root of 2 / pi of it (normal forecasts). What was observed
    tells more: `power_of`.
    """
    if num_independent <= 0:
        return 0.0
    away = math.sqrt(num_independent * r2 / (1 - r2)) * (math.sqrt(2 / math.pi) if by_sign else 1.0)
    return power_at(away, alpha=alpha)


def power_at(away: float, *, alpha: float) -> float:
    """Probability that a one-sided test at level alpha rejects where its statistic is normal around `away`."""
    return NORMAL.cdf(away - NORMAL.inv_cdf(1 - alpha))


def power_of(expected_gain: float, found: MeanError, *, alpha: float) -> float:
    """Probability that a one-sided test at level alpha finds a mean of `expected_gain`, by the observed standard error.

    Heavy tails, storms and what forecast and volatility share stand in that error. The few degrees of freedom that
    many lags leave raise the bar, as they do in the test.
    """
    from scipy.special import ndtr

    return float(ndtr(expected_gain / found.error - found.quantile(1 - alpha)))


def wilson(share: float, num_independent: float, *, z: float = NORMAL_975) -> tuple[float, float]:
    """The 95 % interval of a probability that came true in this share of so many independent trials.

    `z` is the normal quantile of another level: `NORMAL_9995` for 99.9 %.

    Wilson, Journal of the American Statistical Association 22 (1927): it stays inside [0, 1] and holds for few trials.
    """
    if num_independent <= 0:
        return 0.0, 1.0
    middle = (share + z**2 / (2 * num_independent)) / (1 + z**2 / num_independent)
    half = z * math.sqrt(share * (1 - share) / num_independent + z**2 / (4 * num_independent**2))
    half /= 1 + z**2 / num_independent
    return max(middle - half, 0.0), min(middle + half, 1.0)


def crps(labels_N: Floats, centers_N: Floats, *, scales_N: Floats, grid_Q: Floats) -> Floats:
    """(N,) continuous ranked probability score of the forecast distribution center + scale x grid, in the label's unit.

    E|X - y| - E|X - X'| / 2 over the grid's points, each equally probable: the energy form of Gneiting and Raftery
    (Journal of the American Statistical Association 102, 2007). Of a single point it is the absolute error.

    Args:
        scales_N: positive.
        grid_Q: sorted.
    """
    num = len(grid_Q)
    sums = np.concatenate([[0.0], np.cumsum(grid_Q)])
    z_N = (labels_N - centers_N) / scales_N
    below_N = np.searchsorted(grid_Q, z_N)
    distance_N = (z_N * (2 * below_N - num) + sums[-1] - 2 * sums[below_N]) / num
    spread = float(np.sum((2 * np.arange(num) - num + 1) * grid_Q)) / num**2
    return np.asarray(scales_N * (distance_N - spread))


def pinball(labels_N: Floats, forecasts_NQ: Floats, *, quantiles: Sequence[float]) -> Floats:
    """(N,) mean over the quantiles of the pinball loss (Koenker and Bassett, Econometrica 46, 1978), in their unit."""
    beyond_NQ = labels_N[:, None] - forecasts_NQ
    share_Q = np.array(quantiles)
    return np.asarray(np.maximum(share_Q * beyond_NQ, (share_Q - 1) * beyond_NQ).mean(axis=1))


def scaled_errors(residuals_N: Floats, *, naive_mae_N: Floats, naive_rmse_N: Floats) -> dict[str, float | None]:
    """`mase` and `rmsse`: errors in units of the naive forecast's on the TRAINING part, of each row's symbol.

    Hyndman and Koehler, International Journal of Forecasting 22 (2006): comparable over symbols, targets and spans of
    time. None where a naive forecast never erred.
    """
    if not len(residuals_N) or not (naive_mae_N > 0).all():
        return {"mase": None, "rmsse": None}
    return {
        "mase": float(np.mean(np.abs(residuals_N) / naive_mae_N)),
        "rmsse": float(np.sqrt(np.mean((residuals_N / naive_rmse_N) ** 2))),
    }


def trailing_move(close_N: Floats, *, bars: int = TERCILE_BARS) -> Floats:
    """(N,) mean |log return| of the last `bars` bars of one symbol, known at each bar; NaN until half are there."""
    moves_N = np.full(len(close_N), np.nan)
    moves_N[1:] = np.abs(np.diff(np.log(close_N)))
    total_N, num_N = trailing_sums(moves_N, bars)
    return np.where(num_N >= bars / 2, total_N / np.maximum(num_N, 1), np.nan)


def trailing_sums(values_N: Floats, bars: int) -> tuple[Floats, Ints]:
    """(N,) sum and number of those of the last `bars` values that are known."""
    known_N = np.isfinite(values_N)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known_N, values_N, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known_N)])
    begin_N = np.maximum(np.arange(1, len(values_N) + 1) - bars, 0)
    return sums[1:] - sums[begin_N], counts[1:] - counts[begin_N]


def terciles(volatility_N: Floats) -> Ints:
    """(N,) 0, 1 or 2 by the rows' own terciles; -1 where the volatility is unknown. Give one symbol's rows."""
    known_N = np.isfinite(volatility_N)
    classes_N = np.full(len(volatility_N), -1, dtype=np.int64)
    if known_N.any():
        inner = np.quantile(volatility_N[known_N], [1 / 3, 2 / 3])
        classes_N[known_N] = np.searchsorted(inner, volatility_N[known_N], side="left")
    return classes_N
