"""Targets: labels and ex-ante volatility at each bar, as finance.md defines them.

At row t (known at t + timeframe): `price_change_h` = close[t+h] / close[t] - 1, `log_return_h` its log, `volatility_h`
the root of the summed squared log returns of the next h bars. A label exists only where the h bars ahead follow
without a missing bar; on intraday bars those that span a scheduled closure are dropped too, and counted. Where a
target has a `delay` (daily fixings, filled at the next one), its label is that of the row so many bars later.

Legend: N bars. Everything is causal except the labels themselves.
"""

from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.training import Target

EWMA_DECAY = 0.94
"""Daily decay of RiskMetrics (J. P. Morgan, Technical Document, 4th ed., 1996, table 5.8)."""
EWMA_BARS = 120
"""Bars in the kernel: 0.94 ** 120 < 0.001, so that any two ranges with as much history agree to the last bit."""

_FACTORS = np.multiply.accumulate(np.append(1.0, np.full(EWMA_BARS - 1, EWMA_DECAY)))


@dataclass(frozen=True)
class Labels:
    """Labels with NaN where there is none, when each is known, and why rows have none."""

    values: Floats  # (N,)
    available_at_ms: Ints  # (N,) when the label is known; -1 where there is none
    num_spanning_closure: int
    num_missing_bar: int
    decided_after_N: Ints | None = None  # (N,) bars from where a label begins to what decides it; None: the horizon


def label(
    target: Target, *, close: Floats, opened_ms: Ints, available_at_ms: Ints, runs: Ints, timeframe: str
) -> Labels:
    """Labels of one symbol's bars; `runs` numbers the runs of consecutive bars (a missing bar starts a new one)."""
    num, h = len(close), target.reach
    values = np.full(num, np.nan)
    label_known = np.full(num, -1, dtype=np.int64)
    if num <= h:
        return Labels(values, label_known, 0, 0)
    same_run = runs[h:] == runs[:-h]
    unbroken = np.ones_like(same_run)
    if TIMEFRAMES_MS[timeframe] < TIMEFRAMES_MS["1d"]:
        unbroken = opened_ms[h:] - opened_ms[:-h] == h * TIMEFRAMES_MS[timeframe]
    usable = same_run & unbroken
    values[:-h] = np.where(usable, _measure(target, close[target.delay :]), np.nan)
    label_known[:-h] = np.where(usable, available_at_ms[h:], -1)
    return Labels(
        values,
        label_known,
        num_spanning_closure=int(np.sum(same_run & ~unbroken)),
        num_missing_bar=int(np.sum(~same_run)),
    )


def _measure(target: Target, close: Floats) -> Floats:
    """The target for the first N - h rows, where each label begins."""
    h = target.horizon
    if target.measure == "price_change":
        return np.asarray(close[h:] / close[:-h] - 1.0)
    if target.measure == "log_return":
        return np.log(close[h:] / close[:-h])
    assert target.measure == "volatility", "class targets are labelled in class_labels"
    squares = np.diff(np.log(close)) ** 2
    return np.asarray(np.sqrt(np.lib.stride_tricks.sliding_window_view(squares, h).sum(axis=1)))


def ewma_volatility(close: Floats) -> Floats:
    """Standard deviation of one bar's log return, known at that bar: `ewma_deviation` of the closes' log returns."""
    return ewma_deviation(log_returns(close))


def log_returns(close: Floats) -> Floats:
    """(N,) of each bar, from the close before; NaN for the first."""
    return np.concatenate([np.full(min(len(close), 1), np.nan), np.diff(np.log(close))])


def ewma_deviation(returns: Floats) -> Floats:
    """Root of the mean square of the last `EWMA_BARS` returns, weighted by `EWMA_DECAY`; missing ones are left out.

    NaN until a quarter of the kernel is filled. The sum runs in a fixed order, element by element, so that a row's
    value does not depend on which other rows are computed with it.
    """
    squares = returns**2
    known = np.isfinite(squares)
    squares[~known] = 0.0
    total, weight = _decayed_sum(squares), _decayed_weight(known)
    volatility = np.sqrt(total / np.maximum(weight, 1e-300))
    volatility[: EWMA_BARS // 4] = np.nan
    volatility[volatility == 0.0] = np.nan
    return volatility


def ewma_of_windows(returns_NW: Floats) -> Floats:
    """(N,) `ewma_deviation` at the end of windows of `EWMA_BARS` known returns each; NaN where nothing moved.

    The same to the bit: the same products, added from the newest on.
    """
    total_N = np.add.accumulate(returns_NW[:, ::-1] ** 2 * _FACTORS, axis=1)[:, -1]
    deviation_N = np.sqrt(total_N / np.cumsum(_FACTORS)[-1])
    deviation_N[deviation_N == 0.0] = np.nan
    return np.asarray(deviation_N)


def _decayed_sum(values: Floats) -> Floats:
    """(N,) the last `EWMA_BARS` values of each row, weighted and added from the newest on."""
    num = len(values)
    total, product = np.zeros(num), np.empty(num)
    for lag, factor in enumerate(_FACTORS[:num]):
        lagged = product[: num - lag]
        np.multiply(values[: num - lag], factor, out=lagged)
        total[lag:] += lagged
    return total


def _decayed_weight(known: Bools) -> Floats:
    """(N,) the weight of the known ones among them; where nothing is missing in between it grows alike everywhere."""
    num = len(known)
    first = int(np.argmax(known)) if num else 0
    if not known[first:].all():
        return _decayed_sum(known.astype(np.float64))
    grown = np.cumsum(_FACTORS)[np.minimum(np.arange(num - first), EWMA_BARS - 1)]
    return np.concatenate([np.zeros(first), grown])


def target_volatility(bar_volatility: Floats, target: Target) -> Floats:
    """Ex-ante standard deviation of the target's price move: one bar's, times the root of the horizon."""
    return np.asarray(bar_volatility * np.sqrt(target.horizon))
