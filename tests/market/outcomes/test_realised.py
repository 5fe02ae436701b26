"""What later prices tell of an answer is what training's own functions say of the same bars."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import Target, parse_target
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.market.class_labels import direction_labels, price_moves, triple_barrier_labels
from ml_workbench_service.market.outcomes.pending import MOST_WAITING, Asked, Found, PendingOutcomes
from ml_workbench_service.market.targets import Labels, label, target_volatility

WEDNESDAY_MS = int(np.datetime64("2024-01-10T00:00", "ms").astype(np.int64))
NOW_MS = 2**45
BREAK_EVEN, BAR_VOLATILITY = 0.0006, 0.001


class Series(NamedTuple):
    """Bars of one symbol."""

    opened_ms: Ints
    close: Floats
    timeframe: str

    @property
    def bar_ms(self) -> int:
        """Length of a bar."""
        return TIMEFRAMES_MS[self.timeframe]

    @property
    def available_at_ms(self) -> Ints:
        """When each is known."""
        return self.opened_ms + self.bar_ms


def hourly(num: int, *, seed: int, missing: Sequence[int] = ()) -> Series:
    """Hours of the FX week from a Wednesday, some of them missing."""
    hours = WEDNESDAY_MS + HOUR_MS * np.arange(2 * num)
    opened = np.delete(hours[calendar.is_open(hours)][:num], list(missing))
    close = 1.1 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, BAR_VOLATILITY, len(opened))))
    return Series(opened, close, "1h")


def labels_of(target: Target, series: Series) -> Labels:
    """As training labels these bars; classes as -1, 0 and 1."""
    opened, known, close = series.opened_ms, series.available_at_ms, series.close
    runs = calendar.runs(opened, series.bar_ms, "fx")
    if not target.classes:
        return label(
            target, close=close, opened_ms=opened, available_at_ms=known, runs=runs, timeframe=series.timeframe
        )
    moves = price_moves(
        target, close=close, opened_ms=opened, available_at_ms=known, runs=runs, timeframe=series.timeframe
    )
    if target.measure == "direction":
        found = direction_labels(moves, break_even_N=np.full(len(close), BREAK_EVEN))
    else:
        volatility = np.full(len(close), BAR_VOLATILITY)
        found = triple_barrier_labels(target, moves, close=close, bar_volatility=volatility)
    return Labels(found.values - 1, found.available_at_ms, 0, 0)


def asked(series: Series, row: int, target: Target | None, *, prediction_id: str = "", price: bool = True) -> Asked:
    """The question about a bar, as the ledger puts it to a series."""
    as_of_ms = int(series.available_at_ms[row])
    barrier = None
    if target is not None and target.measure == "triple_barrier":
        barrier = float(target_volatility(np.array(BAR_VOLATILITY), target))
    horizon = 1 if target is None else target.reach
    return Asked(
        prediction_id or str(row), ("model", series.timeframe, "EUR/USD"), as_of_ms,
        int(calendar.advance(as_of_ms, horizon * series.bar_ms)), series.bar_ms, horizon,
        float(series.close[row]) if price else None, target, BREAK_EVEN, barrier,
    )  # fmt: skip


def told(series: Series, target: Target, pending: PendingOutcomes | None = None) -> dict[int, Found]:
    """Every bar is asked about; what became known, by the bar."""
    pending = pending or PendingOutcomes()
    found: dict[int, Found] = {}
    for row in range(len(series.close)):
        for each in pending.take(asked(series, row, target), now_ms=NOW_MS):
            assert int(each.prediction_id) not in found, "an outcome is told once"
            found[int(each.prediction_id)] = each
    return found


@settings(max_examples=60, deadline=None)
@given(
    measure=st.sampled_from(["price_change", "log_return", "volatility", "direction", "triple_barrier"]),
    horizon=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    missing=st.sets(st.integers(1, 198), max_size=12),
)
def test_where_training_has_a_label_the_stream_tells_the_same(
    measure: str, horizon: int, seed: int, missing: set[int]
) -> None:
    """Over weekends and missing bars. What needs every bar in between has an outcome nowhere else."""
    target, series = parse_target(f"{measure}_{horizon}h"), hourly(200, seed=seed, missing=sorted(missing))
    labels, found = labels_of(target, series), told(series, target)
    known = {row: each for row, each in found.items() if each.realised is not None}
    labelled = np.flatnonzero(np.isfinite(labels.values)).tolist()
    assert set(labelled) <= set(known)
    for row in labelled:
        realised = known[row].realised
        assert realised is not None
        if measure in ("price_change", "direction", "triple_barrier"):
            assert realised == labels.values[row]
        else:
            assert realised == pytest.approx(labels.values[row], abs=1e-12, rel=1e-9)
        assert known[row].at_ms == labels.available_at_ms[row]
    if measure in ("volatility", "triple_barrier"):
        assert set(known) == set(labelled)
    assert {each.missing for each in found.values() if each.realised is None} <= {"closure"}


def test_a_price_at_the_horizons_end_is_enough_for_a_price_change_though_training_wants_every_bar() -> None:
    series = hourly(10, seed=1, missing=[4])
    assert np.isnan(labels_of(parse_target("price_change_2h"), series).values[3])
    realised = told(series, parse_target("price_change_2h"))[3].realised
    assert realised == series.close[4] / series.close[3] - 1


@pytest.mark.parametrize("measure", ["price_change", "log_return", "direction", "triple_barrier"])
def test_a_label_that_begins_at_the_next_fixing_has_its_outcome_there_or_nowhere(measure: str) -> None:
    days = np.arange("2024-01-01", "2024-06-01", dtype="datetime64[D]")
    opened = np.delete(days[np.is_busday(days)].astype("datetime64[ms]").astype(np.int64), [20, 40, 41])
    close = 1.1 * np.exp(np.cumsum(np.random.default_rng(3).normal(0, 0.002, len(opened))))
    series, target = Series(opened, close, "1d"), parse_target(f"{measure}_2d").filled("next_close")
    assert (target.delay, target.reach, target.filled("next_open").delay) == (1, 3, 0)
    labels, found = labels_of(target, series), told(series, target)
    labelled = np.flatnonzero(np.isfinite(labels.values))
    assert set(labelled) <= set(found)
    np.testing.assert_allclose([found[row].realised for row in labelled], labels.values[labelled], atol=1e-14)
    plain = labels_of(parse_target(f"{measure}_2d"), series).values
    if measure != "triple_barrier":
        np.testing.assert_array_equal(labels.values[labelled], plain[labelled + 1])
    assert 19 not in found, "the bar at which it would begin is missing"


def test_daily_bars_have_outcomes_over_the_weekend() -> None:
    days = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]")
    opened = days[np.is_busday(days)].astype("datetime64[ms]").astype(np.int64)
    close = 1.1 * np.exp(np.cumsum(np.random.default_rng(3).normal(0, 0.005, len(opened))))
    series, target = Series(opened, close, "1d"), parse_target("log_return_3d")
    labels, found = labels_of(target, series), told(series, target)
    assert len(found) == len(close) - 3
    for row, each in found.items():
        assert each.realised == pytest.approx(labels.values[row], abs=1e-14)
    assert series.bar_ms == DAY_MS


def test_a_horizon_over_the_weekend_has_no_outcome_and_says_so_at_once() -> None:
    series = hourly(80, seed=1)
    friday = int(np.flatnonzero(np.diff(series.opened_ms) > HOUR_MS)[0])
    found = told(series, parse_target("price_change_2h"))
    assert [(row, each.missing) for row, each in sorted(found.items()) if each.realised is None] == [
        (friday - 1, "closure"),
        (friday, "closure"),
    ]


def num_waiting(pending: PendingOutcomes) -> int:
    """Predictions that a later price may settle."""
    return sum(len(series.waiting) for series in pending._series_by_key.values())


def test_a_caller_who_comes_seconds_after_the_last_bar_but_one_is_left_to_the_feature_store() -> None:
    """By the clock that horizon ends on Sunday; the bar's own ends with the week."""
    series, target, pending = hourly(80, seed=1), parse_target("price_change_1h"), PendingOutcomes()
    before_last = int(np.flatnonzero(np.diff(series.opened_ms) > HOUR_MS)[0]) - 1
    own = asked(series, before_last, target)
    as_of_ms = own.as_of_ms + 90_000
    late = Asked("late", own.series, as_of_ms, int(calendar.advance(as_of_ms, HOUR_MS)), HOUR_MS, 1, own.price, target)
    assert late.due_ms - late.as_of_ms > DAY_MS
    assert pending.take(late, now_ms=NOW_MS) == []
    assert num_waiting(pending) == 0


def test_prices_of_answers_nobody_sampled_settle_those_that_are() -> None:
    series, target, pending = hourly(6, seed=2), parse_target("price_change_1h"), PendingOutcomes()
    assert pending.take(asked(series, 0, target), now_ms=NOW_MS) == []
    found = pending.take(asked(series, 1, None), now_ms=NOW_MS)
    assert [each.realised for each in found] == [series.close[1] / series.close[0] - 1]
    assert num_waiting(pending) == 0


def test_a_second_answer_about_the_same_bar_waits_for_the_same_end() -> None:
    series, target, pending = hourly(6, seed=2), parse_target("price_change_1h"), PendingOutcomes()
    pending.take(asked(series, 0, target, prediction_id="first"), now_ms=NOW_MS)
    pending.take(asked(series, 0, target, prediction_id="again", price=False), now_ms=NOW_MS)
    found = pending.take(asked(series, 1, target), now_ms=NOW_MS)
    assert {each.prediction_id: each.realised for each in found} == dict.fromkeys(
        ("first", "again"), series.close[1] / series.close[0] - 1
    )


@pytest.mark.parametrize("minutes", [12, 30, 50])
def test_an_answer_within_a_bar_is_left_to_the_feature_store(minutes: int) -> None:
    series, target, pending = hourly(6, seed=2), parse_target("price_change_1h"), PendingOutcomes()
    pending.take(asked(series, 0, None), now_ms=NOW_MS)
    late = asked(series, 0, target, prediction_id="late")
    shifted = late.as_of_ms + minutes * 60_000
    within = Asked("late", late.series, shifted, shifted + HOUR_MS, HOUR_MS, 1, late.price, target)
    assert pending.take(within, now_ms=NOW_MS) == []
    assert num_waiting(pending) == 0


def test_late_prices_and_prices_of_the_future_change_nothing() -> None:
    series, target, pending = hourly(6, seed=2), parse_target("price_change_1h"), PendingOutcomes()
    pending.take(asked(series, 2, target), now_ms=NOW_MS)
    assert pending.take(asked(series, 1, None), now_ms=NOW_MS) == []
    assert pending.take(asked(series, 5, None), now_ms=int(series.available_at_ms[3])) == []
    found = pending.take(asked(series, 3, None), now_ms=NOW_MS)
    assert [each.realised for each in found] == [series.close[3] / series.close[2] - 1]


def test_after_a_start_what_needs_two_prices_waits_again_and_what_needs_a_path_does_not() -> None:
    series = hourly(6, seed=2)
    for measure, outcomes in (("price_change", 1), ("direction", 1), ("volatility", 0), ("triple_barrier", 0)):
        target, pending = parse_target(f"{measure}_2h"), PendingOutcomes()
        pending.recall(asked(series, 0, target, prediction_id="before"))
        pending.take(asked(series, 1, None), now_ms=NOW_MS)
        found = pending.take(asked(series, 2, None), now_ms=NOW_MS)
        assert len(found) == outcomes, measure
        if measure == "price_change":
            assert found[0].realised == series.close[2] / series.close[0] - 1


def test_what_waits_is_bounded() -> None:
    series, target, pending = hourly(6, seed=2), parse_target("price_change_1h"), PendingOutcomes()
    for number in range(MOST_WAITING + 50):
        pending.take(asked(series, 0, target, prediction_id=f"{number}"), now_ms=NOW_MS)
    assert num_waiting(pending) == MOST_WAITING
    found = pending.take(asked(series, 1, None), now_ms=NOW_MS)
    assert {each.prediction_id for each in found} == {str(number) for number in range(50, MOST_WAITING + 50)}


@pytest.mark.parametrize("measure", ["price_change", "log_return", "volatility", "direction", "triple_barrier"])
def test_prices_of_no_market_break_nothing_and_are_no_outcome_on_the_wire(measure: str) -> None:
    series = Series(hourly(8, seed=1).opened_ms, np.array([1e308, 1e-300, 5e-324, 1e308, 1.1, 1.2, 1e-308, 1.1]), "1h")
    for each in told(series, parse_target(f"{measure}_1h")).values():
        assert each.realised is not None
        assert np.isfinite(each.realised)
