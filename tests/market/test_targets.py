"""Labels against a plain loop, and an ex-ante volatility that knows nothing of the future."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.market import calendar
from ml_workbench_service.market.targets import (
    EWMA_BARS,
    EWMA_DECAY,
    Labels,
    ewma_volatility,
    label,
    target_volatility,
)

HOUR_MS = TIMEFRAMES_MS["1h"]
DAY_MS = TIMEFRAMES_MS["1d"]
MEASURES = ("price_change", "log_return", "volatility")
steady = settings(deadline=None, derandomize=True, max_examples=30)


def ms(text: str) -> int:
    return int(np.datetime64(text, "ms").astype(np.int64))


def prices(num: int, seed: int = 0) -> Floats:
    return np.asarray(1.1 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.001, num))))


def by_hand(measure: str, close: Floats, t: int, h: int) -> float:
    """The definition of finance.md, one row at a time."""
    if measure == "price_change":
        return float(close[t + h] / close[t] - 1)
    if measure == "log_return":
        return math.log(close[t + h] / close[t])
    return math.sqrt(sum(math.log(close[t + k] / close[t + k - 1]) ** 2 for k in range(1, h + 1)))


def labelled(name: str, close: Floats, opened_ms: Ints, timeframe: str = "1h") -> Labels:
    length_ms = TIMEFRAMES_MS[timeframe]
    runs = calendar.runs(opened_ms, length_ms, "fx")
    return label(
        parse_target(name), close=close, opened_ms=opened_ms, available_at_ms=opened_ms + length_ms, runs=runs,
        timeframe=timeframe,
    )  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("h", [1, 3])
def test_labels_equal_a_plain_loop(measure: str, h: int) -> None:
    opened = ms("2024-01-08T00:00") + HOUR_MS * np.arange(40)
    close = prices(40)
    labels = labelled(f"{measure}_{h}h", close, opened)
    wanted = [by_hand(measure, close, t, h) for t in range(40 - h)] + [math.nan] * h
    np.testing.assert_allclose(labels.values, wanted, rtol=0, atol=1e-15)
    assert labels.available_at_ms[:-h].tolist() == (opened[h:] + HOUR_MS).tolist()
    assert labels.available_at_ms[-h:].tolist() == [-1] * h
    assert (labels.num_missing_bar, labels.num_spanning_closure) == (0, 0)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("h", [1, 3])
def test_no_label_looks_over_a_missing_bar(measure: str, h: int) -> None:
    opened = np.delete(ms("2024-01-08T00:00") + HOUR_MS * np.arange(30), [11, 12])
    close = prices(28)
    labels = labelled(f"{measure}_{h}h", close, opened)
    for t in range(28 - h):
        unbroken = opened[t + h] - opened[t] == h * HOUR_MS
        assert np.isfinite(labels.values[t]) == unbroken
        assert (labels.available_at_ms[t] >= 0) == unbroken
        if unbroken:
            assert labels.values[t] == pytest.approx(by_hand(measure, close, t, h), abs=1e-15)
    assert labels.num_missing_bar == h
    assert labels.num_spanning_closure == 0


@pytest.mark.parametrize("h", [1, 3])
def test_hourly_labels_over_the_weekend_are_dropped_and_counted(h: int) -> None:
    friday = ms("2024-01-12T10:00") + HOUR_MS * np.arange(12)  # the week closes at 22:00
    sunday = ms("2024-01-14T22:00") + HOUR_MS * np.arange(12)
    opened = np.concatenate([friday, sunday])
    labels = labelled(f"price_change_{h}h", prices(24), opened)
    assert labels.num_spanning_closure == h
    assert labels.num_missing_bar == 0
    assert np.flatnonzero(np.isnan(labels.values)).tolist() == [*range(12 - h, 12), *range(24 - h, 24)]


def test_daily_labels_span_the_weekend_but_no_missing_day() -> None:
    days = [ms(f"2024-01-{day:02}") for day in (8, 9, 10, 11, 12, 15, 16, 18, 19)]  # Wednesday 17 is missing
    close = prices(9)
    labels = labelled("price_change_1d", close, np.array(days), "1d")
    assert labels.values[4] == pytest.approx(close[5] / close[4] - 1)
    assert np.flatnonzero(np.isnan(labels.values)).tolist() == [6, 8]
    assert (labels.num_missing_bar, labels.num_spanning_closure) == (1, 0)


@pytest.mark.parametrize("num", [0, 1, 3])
def test_too_few_bars_have_no_label(num: int) -> None:
    opened = ms("2024-01-08T00:00") + HOUR_MS * np.arange(num)
    labels = labelled("price_change_3h", prices(num), opened)
    assert len(labels.values) == num
    assert np.isnan(labels.values).all()
    assert labels.available_at_ms.tolist() == [-1] * num


def test_a_label_is_known_when_its_last_bar_is_even_if_that_is_late() -> None:
    opened = ms("2024-01-08T00:00") + HOUR_MS * np.arange(10)
    known = opened + HOUR_MS
    known[6:] += 1_800_000
    runs = np.zeros(10, dtype=np.int64)
    labels = label(
        parse_target("log_return_2h"),
        close=prices(10),
        opened_ms=opened,
        available_at_ms=known,
        runs=runs,
        timeframe="1h",
    )
    assert labels.available_at_ms[:8].tolist() == known[2:].tolist()


def ewma_by_hand(close: Floats, t: int) -> float:
    total = weight = 0.0
    for lag in range(min(EWMA_BARS, t)):
        total += EWMA_DECAY**lag * math.log(close[t - lag] / close[t - lag - 1]) ** 2
        weight += EWMA_DECAY**lag
    return math.sqrt(total / weight)


def test_the_ewma_is_riskmetrics_over_a_finite_kernel() -> None:
    close = prices(200)
    volatility = ewma_volatility(close)
    assert np.isnan(volatility[: EWMA_BARS // 4]).all()
    for t in (30, 31, 119, 120, 121, 199):
        assert volatility[t] == pytest.approx(ewma_by_hand(close, t), rel=1e-12)


@steady
@given(st.integers(min_value=1, max_value=298), st.integers(min_value=0, max_value=2**31))
def test_the_future_moves_no_volatility_before_it(cut: int, seed: int) -> None:
    close = prices(300, seed=1)
    changed = close.copy()
    changed[cut:] *= np.exp(np.random.default_rng(seed).normal(0, 0.5, 300 - cut))
    before, after = ewma_volatility(close), ewma_volatility(changed)
    assert before[:cut].tobytes() == after[:cut].tobytes()
    assert ewma_volatility(close[:cut]).tobytes() == before[:cut].tobytes()
    assert cut < EWMA_BARS // 4 or before[cut] != after[cut]


@steady
@given(st.integers(min_value=0, max_value=250), st.integers(min_value=0, max_value=60))
def test_a_volatility_does_not_depend_on_the_rows_computed_along_with_it(first: int, rest: int) -> None:
    close = prices(460, seed=2)
    whole = ewma_volatility(close)
    last = first + EWMA_BARS + rest
    part = ewma_volatility(close[first : last + 1])
    assert part[EWMA_BARS:].tobytes() == whole[first + EWMA_BARS : last + 1].tobytes()


def test_a_price_that_never_moves_has_no_volatility() -> None:
    assert np.isnan(ewma_volatility(np.full(200, 1.25))).all()
    assert np.isnan(ewma_volatility(np.array([1.25]))).all()


def test_a_targets_volatility_grows_with_the_root_of_its_horizon() -> None:
    bar = np.array([0.001, np.nan])
    np.testing.assert_allclose(target_volatility(bar, parse_target("price_change_4h")), [0.002, np.nan])
