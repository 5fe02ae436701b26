"""Class labels against plain loops, with the gaps and closures of every other label."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Costs, Floats, Ints
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.market import calendar
from ml_workbench_service.market.class_labels import (
    break_even,
    direction_labels,
    price_moves,
    regime_labels,
    triple_barrier_labels,
)
from ml_workbench_service.market.costs import resolved_costs, round_trip_cost
from ml_workbench_service.market.targets import Labels, ewma_volatility

HOUR_MS = TIMEFRAMES_MS["1h"]
MONDAY_MS = int(np.datetime64("2024-01-08T00:00", "ms").astype(np.int64))
SELL, HOLD, BUY = 0, 1, 2
LOWER, NEITHER, UPPER = 0, 1, 2
CLASS_TARGETS = ("direction", "triple_barrier", "market_regime")


def prices(num: int, seed: int = 0, level: float = 1.1) -> Floats:
    return np.asarray(level * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.001, num))))


def hours(num: int, *, missing: tuple[int, ...] = ()) -> Ints:
    return np.delete(MONDAY_MS + HOUR_MS * np.arange(num + len(missing)), list(missing))


def moves_of(target: Target, close: Floats, opened_ms: Ints | None = None) -> Labels:
    opened = hours(len(close)) if opened_ms is None else opened_ms
    runs = calendar.runs(opened, HOUR_MS, "fx")
    return price_moves(
        target, close=close, opened_ms=opened, available_at_ms=opened + HOUR_MS, runs=runs, timeframe="1h"
    )


def labelled(measure: str, h: int, close: Floats, opened_ms: Ints | None = None) -> Labels:
    """Labels of each kind, with everything known that they need."""
    target = parse_target(f"{measure}_{h}")
    moves = moves_of(target, close, opened_ms)
    if measure == "direction":
        return direction_labels(moves, break_even_N=np.full(len(close), 0.0005))
    if measure == "triple_barrier":
        return triple_barrier_labels(target, moves, close=close, bar_volatility=np.full(len(close), 0.001))
    return regime_labels(target, moves, classes_N=np.arange(len(close)) % 4.0)


@pytest.mark.parametrize(("symbol", "level"), [("EUR/USD", 1.1), ("USD/JPY", 150.0)])
def test_break_even_is_the_round_trip_cost_at_each_bars_price(symbol: str, level: float) -> None:
    costs, close = resolved_costs(symbol), prices(50, level=level)
    wanted = [round_trip_cost(costs, symbol, float(price)) for price in close]
    np.testing.assert_allclose(break_even(costs, symbol, close), wanted, rtol=1e-12)


def test_the_bars_own_spread_wins_where_it_is_known() -> None:
    costs, close = resolved_costs("USD/JPY"), np.array([150.0, 150.0])
    spread = np.array([0.02, np.nan])  # two pips, in price units
    two_pips = costs.model_copy(update={"spread_pips": 2.0})
    wanted = [round_trip_cost(two_pips, "USD/JPY", 150.0), round_trip_cost(costs, "USD/JPY", 150.0)]
    np.testing.assert_allclose(break_even(costs, "USD/JPY", close, spread), wanted, rtol=1e-12)


def test_break_even_needs_resolved_costs_and_positive_prices() -> None:
    with pytest.raises(DataValidationError, match="resolved_costs"):
        break_even(Costs(spread_pips=0.2), "EUR/USD", np.array([1.1]))
    with pytest.raises(DataValidationError, match="positive"):
        break_even(resolved_costs("EUR/USD"), "EUR/USD", np.array([1.1, 0.0]))


@pytest.mark.parametrize("h", [1, 3])
def test_a_direction_is_the_moves_sign_outside_the_cost(h: int) -> None:
    close = prices(200)
    target = parse_target(f"direction_{h}h")
    cost = break_even(resolved_costs("EUR/GBP"), "EUR/GBP", close)
    labels = direction_labels(moves_of(target, close), break_even_N=cost)
    for t in range(200 - h):
        move = close[t + h] / close[t] - 1
        wanted = BUY if move > cost[t] else SELL if move < -cost[t] else HOLD
        assert labels.values[t] == wanted
    assert set(labels.values[:-h]) == {SELL, HOLD, BUY}


def test_a_move_of_just_the_cost_is_a_hold() -> None:
    close = np.array([1.0, 1.25, 1.0])
    moves = moves_of(parse_target("direction_1"), close)
    labels = direction_labels(moves, break_even_N=np.array([0.25, 0.2, 0.1]))
    np.testing.assert_array_equal(labels.values, [HOLD, HOLD, np.nan])


def first_touch(close: Floats, t: int, h: int, barrier: float) -> int:
    for ahead in range(1, h + 1):
        path = math.log(close[t + ahead]) - math.log(close[t])
        if path >= barrier:
            return UPPER
        if path <= -barrier:
            return LOWER
    return NEITHER


@pytest.mark.parametrize("h", [1, 4, 9])
@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_a_triple_barrier_is_the_first_touch_of_a_plain_loop(h: int, width: float) -> None:
    close, target = prices(300, seed=3), parse_target(f"triple_barrier_{h}")
    volatility = ewma_volatility(close)
    labels = triple_barrier_labels(target, moves_of(target, close), close=close, bar_volatility=volatility, width=width)
    for t in range(300 - h):
        if np.isnan(volatility[t]):
            assert np.isnan(labels.values[t])
            assert labels.available_at_ms[t] == -1
            continue
        assert labels.values[t] == first_touch(close, t, h, width * volatility[t] * math.sqrt(h))
    assert set(labels.values[np.isfinite(labels.values)]) == {LOWER, NEITHER, UPPER}


def test_the_first_barrier_counts_whatever_comes_after() -> None:
    close = np.exp(np.array([0.0, 0.03, -0.5, 0.0, 0.0]))
    target = parse_target("triple_barrier_4")
    labels = triple_barrier_labels(
        target, moves_of(target, close), close=close, bar_volatility=np.full(5, 0.01)
    )  # barriers at ± 0.02
    assert labels.values[0] == UPPER


def test_wider_barriers_are_touched_less_often() -> None:
    close, target = prices(3000, seed=5), parse_target("triple_barrier_8")
    moves, volatility = moves_of(target, close), np.full(3000, 0.001)
    shares = [
        float(np.nanmean(triple_barrier_labels(
            target, moves, close=close, bar_volatility=volatility, width=width
        ).values == NEITHER))
        for width in (0.5, 1.0, 2.0)
    ]  # fmt: skip
    assert shares == sorted(shares)
    # Reflection: a Brownian path leaves ± 1 deviation of its horizon in 63 % of cases, seen at 8 points in fewer.
    assert 0.37 < shares[1] < 0.60


def test_a_flat_price_has_no_barrier_to_touch() -> None:
    close, target = np.full(200, 1.25), parse_target("triple_barrier_3")
    moves = moves_of(target, close)
    for volatility in (ewma_volatility(close), np.zeros(200)):
        labels = triple_barrier_labels(target, moves, close=close, bar_volatility=volatility)
        assert np.isnan(labels.values).all()


@pytest.mark.parametrize("measure", CLASS_TARGETS)
@pytest.mark.parametrize("h", [1, 3])
def test_no_class_looks_over_a_missing_bar(measure: str, h: int) -> None:
    opened = hours(28, missing=(11, 12))
    labels = labelled(measure, h, prices(28), opened)
    unbroken = opened[h:] - opened[:-h] == h * HOUR_MS
    assert np.isfinite(labels.values[:-h]).tolist() == unbroken.tolist()
    assert np.isnan(labels.values[-h:]).all()
    assert labels.available_at_ms[:-h].tolist() == np.where(unbroken, opened[h:] + HOUR_MS, -1).tolist()
    assert (labels.num_missing_bar, labels.num_spanning_closure) == (h, 0)


@pytest.mark.parametrize("measure", CLASS_TARGETS)
def test_hourly_classes_over_the_weekend_are_dropped_and_counted(measure: str) -> None:
    friday = MONDAY_MS + HOUR_MS * (4 * 24 + 10 + np.arange(12))  # the week closes at 22:00
    sunday = friday[-1] + HOUR_MS * (49 + np.arange(12))
    labels = labelled(measure, 3, prices(24), np.concatenate([friday, sunday]))
    assert (labels.num_missing_bar, labels.num_spanning_closure) == (0, 3)
    assert np.flatnonzero(np.isnan(labels.values)).tolist() == [9, 10, 11, 21, 22, 23]


def test_a_barrier_touched_before_a_gap_is_no_label_either() -> None:
    close = np.exp(np.array([0.0, 0.5, 0.5, 0.5, 0.5, 0.5]))
    opened = hours(6, missing=(3,))
    target = parse_target("triple_barrier_4")
    labels = triple_barrier_labels(
        target, moves_of(target, close, opened), close=close, bar_volatility=np.full(6, 0.01)
    )
    assert np.isnan(labels.values).all()
    assert labels.num_missing_bar == 2


def test_what_happened_before_a_bar_without_a_close_is_known_and_after_it_is_not() -> None:
    close = np.exp(np.array([0.0, 0.05, 0.05, np.nan, 0.05, 0.05, 0.05]))
    target = parse_target("triple_barrier_4")
    labels = triple_barrier_labels(target, moves_of(target, close), close=close, bar_volatility=np.full(7, 0.01))
    np.testing.assert_array_equal(labels.values[:3], [UPPER, np.nan, np.nan])


def test_a_regimes_label_is_the_class_that_many_bars_on() -> None:
    classes = np.array([3.0, 1.0, np.nan, 2.0, 0.0, 1.0])
    target = parse_target("market_regime_2")
    labels = regime_labels(target, moves_of(target, prices(6)), classes_N=classes)
    np.testing.assert_array_equal(labels.values, [np.nan, 2.0, 0.0, 1.0, np.nan, np.nan])
    assert (labels.available_at_ms >= 0).tolist() == np.isfinite(labels.values).tolist()


def test_market_regime_alone_means_the_next_bars() -> None:
    target = parse_target("market_regime")
    labels = regime_labels(target, moves_of(target, prices(3)), classes_N=np.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(labels.values, [1.0, 2.0, np.nan])


@pytest.mark.parametrize("measure", CLASS_TARGETS)
@pytest.mark.parametrize("num", [0, 1, 3])
def test_too_few_bars_have_no_class(measure: str, num: int) -> None:
    labels = labelled(measure, 3, prices(num))
    assert len(labels.values) == num
    assert np.isnan(labels.values).all()
    assert labels.available_at_ms.tolist() == [-1] * num


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.sampled_from(("direction", "triple_barrier")), st.integers(min_value=1, max_value=8), st.integers(10, 99))
def test_a_class_knows_nothing_beyond_its_horizon(measure: str, h: int, cut: int) -> None:
    close = prices(100, seed=7)
    changed = close.copy()
    changed[cut:] *= np.exp(np.random.default_rng(cut).normal(0, 0.5, 100 - cut))
    before, after = labelled(measure, h, close), labelled(measure, h, changed)
    assert before.values[: cut - h].tobytes() == after.values[: cut - h].tobytes()
