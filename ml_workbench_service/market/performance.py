"""Performance metrics: Sharpe ratios, drawdown, and how much of them is luck: probabilistic, deflated, overfitting.

A day is an FX day, 17:00 to 17:00 New York, named by the date on which it ends: Monday's begins on Sunday. A step
belongs to the day in which it is settled, as its swap does, and a weekday without a step is a day flat. Returns are
logarithms; ratios are of one day, and `annual` makes them a year's. Too little to compute from is None, never 0.

Legend: D days, N trials, M moments, B blocks, C ways to choose half of the blocks.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import ValidationReport
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.multiple_testing import Trial
from ml_workbench_service.market.calendar import DAY_MS, trading_day_opening

DAYS_PER_YEAR = 365.25 * 5 / 7
"""Weekdays: `daily_returns` has every one, holidays as days flat."""
FEWEST_DAYS = 3
"""Under this many days a ratio has no skewness worth the name."""
FEWEST_TRIALS = 10
"""finance.md: under ten trials there is no probability of overfitting."""
BLOCKS = (16, 14, 12, 10)
"""Bailey et al. (2017) take 16 blocks, 12,870 splits; shorter histories have fewer."""
FEWEST_DAYS_PER_BLOCK = 5
SHARED_DAYS = 0.5
"""Trials that read less than this share of the judged trial's days are about another time."""
EULER = 0.5772156649015329
_NORMAL = NormalDist()
_ROUNDING = 1e-12  # what varies less is constant
_CELLS = 4_000_000  # of one matrix at a time


def daily_returns(log_return_M: Floats, settled_ms_M: Ints) -> dict[str, float]:
    """The sum of each FX day, by its date (2024-03-01), oldest first; weekdays in between are there with 0."""
    if not len(log_return_M):
        return {}
    dates, place_M = np.unique(fx_dates(settled_ms_M), return_inverse=True)
    sums = np.bincount(place_M, weights=log_return_M)
    every = np.arange(dates[0], dates[-1] + 1)
    days = np.union1d(every[np.is_busday(every)], dates)
    filled = np.zeros(len(days))
    filled[np.searchsorted(days, dates)] = sums
    return dict(zip(np.datetime_as_string(days).tolist(), filled.tolist(), strict=True))


def fx_dates(settled_ms_M: Ints) -> NDArray[np.datetime64]:
    """(M,) the FX day of each moment: the day that 17:00 New York ends; the week's opening belongs to Monday."""
    ends = trading_day_opening(settled_ms_M - 1) + DAY_MS // 2
    return np.busday_offset(ends.astype("datetime64[ms]").astype("datetime64[D]"), 0, roll="forward")


def annual(ratio: float | None) -> float | None:
    """A day's ratio as a year's, by the square root of time (autocorrelation is not looked at; Lo 2002 shows how)."""
    return None if ratio is None else ratio * math.sqrt(DAYS_PER_YEAR)


def sharpe(daily_D: Floats) -> float | None:
    """Mean over standard deviation, of one day; None where nothing varies (Sharpe 1994)."""
    if len(daily_D) < 2:
        return None
    deviation = float(daily_D.std(ddof=1))
    return float(daily_D.mean()) / deviation if deviation > _ROUNDING * float(np.abs(daily_D).max()) else None


def sortino(daily_D: Floats) -> float | None:
    """Mean over the root mean square of the losses, all days counted (Sortino and van der Meer 1991); None without."""
    if not len(daily_D):
        return None
    downside = math.sqrt(float(np.mean(np.minimum(daily_D, 0.0) ** 2)))
    return float(daily_D.mean()) / downside if downside > 0 else None


def max_drawdown(log_return_M: Floats) -> float:
    """The largest loss from a peak, a fraction; the start is a peak."""
    equity = np.concatenate([[0.0], np.cumsum(log_return_M)])
    return float(-np.expm1((equity - np.maximum.accumulate(equity)).min()))


def calmar(daily_D: Floats) -> float | None:
    """A year's mean log return over the maximum drawdown (Young 1991); None without a drawdown."""
    drawdown = max_drawdown(daily_D) if len(daily_D) else 0.0
    return float(daily_D.mean()) * DAYS_PER_YEAR / drawdown if drawdown > 0 else None


def probabilistic_sharpe(daily_D: Floats, *, benchmark: float = 0.0) -> float | None:
    """Probability that the true ratio exceeds the benchmark's, both of one day.

    Skewness and kurtosis widen the ratio's error: a strategy that wins often and loses rarely but much looks better
    than it is. Fails where days depend on each other. Bailey and López de Prado, "The Sharpe ratio efficient frontier",
    Journal of Risk 15 (2012).
    """
    ratio = sharpe(daily_D)
    if ratio is None or len(daily_D) < FEWEST_DAYS:
        return None
    standard = (daily_D - daily_D.mean()) / daily_D.std()
    skewness, kurtosis = float(np.mean(standard**3)), float(np.mean(standard**4))
    spread = 1.0 - skewness * ratio + (kurtosis - 1.0) / 4.0 * ratio**2
    if not spread > 0:  # all days but one alike: no error can be told
        return None
    return _NORMAL.cdf((ratio - benchmark) * math.sqrt(len(daily_D) - 1) / math.sqrt(spread))


def expected_maximum_sharpe(num_trials: int, *, variance: float) -> float:
    """The best ratio to expect of so many trials without skill whose ratios vary so much; 0 for a single one.

    Bailey and López de Prado, "The deflated Sharpe ratio", Journal of Portfolio Management 40 (2014), equation 1.
    """
    if num_trials < 2:
        return 0.0
    common, rare = (_NORMAL.inv_cdf(1.0 - 1.0 / (num_trials * each)) for each in (1.0, math.e))
    return math.sqrt(variance) * ((1.0 - EULER) * common + EULER * rare)


def deflated_sharpe(daily_D: Floats, *, num_trials: int, variance: float | None = None) -> float | None:
    """The probabilistic ratio against the best to expect of so many trials (2014, as above).

    Args:
        daily_D: log returns.
        num_trials: how often something was tried, the one at hand included.
        variance: of the trials' ratios of one day; None: of a ratio without skill over so many days, 1 / (D - 1).
    """
    if len(daily_D) < FEWEST_DAYS:
        return None
    spread = 1.0 / (len(daily_D) - 1) if variance is None else variance
    return probabilistic_sharpe(daily_D, benchmark=expected_maximum_sharpe(num_trials, variance=spread))


def probability_of_overfitting(daily_DN: Floats) -> float | None:
    """How often the trial that was best on half of the time is worse than the median trial on the other half.

    Combinatorially symmetric cross-validation: the days are cut into blocks, each half of the blocks chooses, the rest
    decoders. 0.5 is what pure luck gives; a trial at the very median counts half. None under 10 trials or 50 days.
    Bailey, Borwein, López de Prado and Zhu, "The probability of backtest overfitting", Journal of Computational Finance
    20 (2017).
    """
    num_days, num_trials = daily_DN.shape
    num_blocks = next((each for each in BLOCKS if num_days >= each * FEWEST_DAYS_PER_BLOCK), None)
    if num_trials < FEWEST_TRIALS or num_blocks is None:
        return None
    blocks = np.array_split(daily_DN, num_blocks)
    lengths_B = np.array([float(len(block)) for block in blocks])
    sums_BN = np.stack([block.sum(axis=0) for block in blocks])
    squares_BN = np.stack([(block**2).sum(axis=0) for block in blocks])
    halves = np.array(list(combinations(range(num_blocks), num_blocks // 2)))
    chosen_CB = np.zeros((len(halves), num_blocks))
    np.put_along_axis(chosen_CB, halves, 1.0, axis=1)
    worse = 0.0
    for some_CB in np.array_split(chosen_CB, -(-chosen_CB.shape[0] * num_trials // _CELLS)):
        inside_CN, outside_CN = (
            _sharpes(half_CB @ lengths_B, half_CB @ sums_BN, half_CB @ squares_BN) for half_CB in (some_CB, 1 - some_CB)
        )
        found = np.take_along_axis(outside_CN, inside_CN.argmax(axis=1)[:, None], axis=1)
        below = (outside_CN < found).sum(axis=1) - (outside_CN > found).sum(axis=1)  # 0 at the median
        worse += float((below < 0).sum()) + 0.5 * float((below == 0).sum())
    return worse / len(chosen_CB)


def break_even_cost_bp(gain_M: Floats, turnover_M: Floats) -> float | None:
    """The cost of a unit of turnover, in basis points, at which the account ends where it began; None without a trade.

    Args:
        gain_M: relative gain of each moment after swap, before the costs of trading.
        turnover_M: turnover of each moment.
    """
    total = float(turnover_M.sum())
    if total <= 0:
        return None
    cost = float(gain_M.sum()) / total  # right of the root, since log(1 + x) <= x; from there Newton only falls
    for _ in range(50):
        left = 1.0 + gain_M - cost * turnover_M
        if not (left > 0).all():
            break
        step = float(np.log(left).sum()) / float((turnover_M / left).sum())
        cost += step
        if abs(step) <= 1e-15:
            break
    return cost * 1e4


def validation_report(trials: Sequence[Trial], own: str) -> ValidationReport:
    """What a trial's figures on the validation part are worth, once all trials there are counted.

    Args:
        trials: all that the ledger has on parts which overlap the judged trial's, itself among them.
        own: the id of the trial that is judged.

    Raises:
        DataValidationError: it is not among them; note it in the ledger first.
    """
    by_id = {trial.read.id: trial for trial in trials}
    if own not in by_id:
        raise DataValidationError.at(
            "own", f"{own} is not among the trials; note it with `MultipleTestingLog.record_trial` first"
        )
    daily_D = np.array(list(by_id[own].daily_returns.values()))
    ratios = [trial.sharpe for trial in by_id.values() if trial.sharpe is not None]
    return ValidationReport(
        num_trials=len(by_id),
        sharpe=annual(sharpe(daily_D)),
        deflated_sharpe=deflated_sharpe(
            daily_D, num_trials=len(by_id), variance=float(np.var(ratios, ddof=1)) if len(ratios) > 1 else None
        ),
        probability_of_backtest_overfitting=probability_of_overfitting(
            _aligned(by_id[own].daily_returns, [trial.daily_returns for trial in by_id.values()])
        ),
    )


def _aligned(own: Mapping[str, float], trials: Sequence[Mapping[str, float]]) -> Floats:
    """(D, N) the days that all trials share which read enough of the judged one's days."""
    near = [trial for trial in trials if own and len(own.keys() & trial.keys()) >= SHARED_DAYS * len(own)]
    if not near:
        return np.zeros((0, 0))
    days = sorted(set.intersection(*(set(trial) for trial in near)))
    return np.array([[trial[day] for trial in near] for day in days]).reshape(len(days), len(near))


def _sharpes(num_C: Floats, sum_CN: Floats, square_CN: Floats) -> Floats:
    """(C, N) ratios from sums; 0 where nothing varies, as of a trial that never traded."""
    mean_CN = sum_CN / num_C[:, None]
    variance_CN = square_CN / num_C[:, None] - mean_CN**2
    varies = variance_CN > _ROUNDING * mean_CN**2
    return np.where(varies, mean_CN / np.sqrt(np.where(varies, variance_CN, 1.0)), 0.0)
