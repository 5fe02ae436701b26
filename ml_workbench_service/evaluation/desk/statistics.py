"""Return statistics as pyfolio (empyrical) and quantstats define them, so that their users find their numbers here.

Each is the published definition, on simple returns of one day with 252 days a year; a test recomputes them with pandas
and compares with vectorbt's port of empyrical. Drawdowns count from the start's capital.

Legend: D days.
"""

import math

import numpy as np

from ml_workbench_service.contracts.desk_report import ReturnStatistics
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.market.performance import max_drawdown

DAYS_PER_YEAR = 252
"""pyfolio's and quantstats' convention; the card's own figures use 261 weekdays."""
TAIL = 5.0
"""Per cent, of the value at risk and of the tail ratio."""
FEWEST_DAYS = 30
"""Under so many days a yearly growth rate is an extrapolation of luck."""
_ROUNDING = 1e-15


def return_statistics(log_return_D: Floats) -> ReturnStatistics | None:
    """Of daily log returns; None under two days."""
    num = len(log_return_D)
    if num < 2:
        return None
    simple_D = np.expm1(log_return_D)
    mean, deviation = float(simple_D.mean()), float(simple_D.std(ddof=1))
    downside = math.sqrt(float(np.mean(np.minimum(simple_D, 0.0) ** 2)))
    deepest = max_drawdown(log_return_D)
    total = float(log_return_D.sum())
    cagr = math.expm1(total * DAYS_PER_YEAR / num) if num >= FEWEST_DAYS else None
    losses = -float(simple_D[simple_D < 0].sum())
    low, high = (float(each) for each in np.percentile(simple_D, [TAIL, 100 - TAIL]))
    moved_D = simple_D[simple_D != 0]
    year = math.sqrt(DAYS_PER_YEAR)
    return ReturnStatistics(
        num_days=num,
        cumulative_return=math.expm1(total),
        cagr=cagr,
        volatility=deviation * year,
        sharpe=mean / deviation * year if deviation > _ROUNDING else None,
        sortino=mean / downside * year if downside > _ROUNDING else None,
        calmar=cagr / deepest if cagr is not None and deepest > 0 else None,
        omega=float(simple_D[simple_D > 0].sum()) / losses if losses > 0 else None,
        max_drawdown=deepest,
        skewness=_skewness(simple_D),
        excess_kurtosis=_excess_kurtosis(simple_D),
        value_at_risk=low,
        conditional_value_at_risk=float(np.sort(simple_D)[: int((num - 1) * TAIL / 100) + 1].mean()),
        tail_ratio=abs(high) / abs(low) if low else None,
        stability=_stability(log_return_D),
        best_day=float(simple_D.max()),
        worst_day=float(simple_D.min()),
        share_of_days_up=float(np.mean(moved_D > 0)) if len(moved_D) else None,
    )


def _skewness(simple_D: Floats) -> float | None:
    """The sample's, without bias (Fisher's g1 times √(n (n - 1)) / (n - 2)), as pandas."""
    num, variance = len(simple_D), float(simple_D.var())
    if num < 3 or not variance > _ROUNDING**2:
        return None
    third = float(np.mean((simple_D - simple_D.mean()) ** 3))
    return third / math.pow(variance, 1.5) * math.sqrt(num * (num - 1)) / (num - 2)


def _excess_kurtosis(simple_D: Floats) -> float | None:
    """The sample's above a normal's, without bias, as pandas."""
    num, variance = len(simple_D), float(simple_D.var())
    if num < 4 or not variance > _ROUNDING**2:
        return None
    plain = float(np.mean((simple_D - simple_D.mean()) ** 4)) / variance**2 - 3
    return ((num + 1) * plain + 6) * (num - 1) / ((num - 2) * (num - 3))


def _stability(log_return_D: Floats) -> float | None:
    running_D = np.cumsum(log_return_D)
    if not float(running_D.var()) > _ROUNDING**2:
        return None
    correlation = float(np.corrcoef(np.arange(len(running_D)), running_D)[0, 1])
    return correlation * correlation
