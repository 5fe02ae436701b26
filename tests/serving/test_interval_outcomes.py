"""An interval's outcome is the price where its horizon ends: in its measure, over closures, once, and from one bar."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.prediction import Interval
from ml_workbench_service.learning.decoders.decoder import IntervalScale
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.serving.interval_outcomes import SPARE_WAITING, LiveCoverage
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.serving.model import ServedModel

MONDAY_MS = int(np.datetime64("2020-03-02T10:00", "ms").astype(np.int64))
SCALE = IntervalScale(0.001, is_volatility=True)


def found(intervals: LiveIntervals) -> LiveCoverage:
    """What is known of version 1.0.0."""
    coverage = intervals.coverage("small", "1.0.0")
    assert coverage is not None
    return coverage


def of_target(model: ServedModel, target: str, **changes: Any) -> ServedModel:
    """The same model as if it forecast something else."""
    return replace(model, card=model.card.model_copy(update={"target": target, **changes}))


def told(
    intervals: LiveIntervals,
    model: ServedModel,
    as_of_ms: int,
    price: float | None,
    reach: float = 1.0,
    ok: bool = True,
) -> float | None:
    """A question and its interval, without a network; the widening, or None where the published interval holds."""
    moment = intervals.ask(model, "EUR/USD", as_of_ms=as_of_ms, price=price)
    if moment is None:
        return None
    widening = moment.widening(SCALE)
    interval = Interval(level=0.9, lower=-reach, upper=reach) if ok else None
    due_ms = int(calendar.advance(as_of_ms, model.card.horizon * model.timeframe_ms))
    moment.stated(interval, due_ms=due_ms, bar_ms=model.timeframe_ms, horizon=model.card.horizon)
    return widening


Step = tuple[float, float | None]  # hours after Monday 10:00, price


@pytest.mark.parametrize(
    ("target", "steps", "outcomes", "dropped"),
    [
        ("price_change_1h", [(0, 1.0), (1, 1.1), (2, 1.2)], 2, {}),
        ("price_change_1h", [(0, 1.0), (1, None), (1, 1.1)], 1, {}),
        ("price_change_1h", [(0, None), (1, 1.1)], 0, {}),
        ("price_change_1h", [(0.001, 1.0), (1.003, 1.1), (2.0, 1.2)], 2, {}),
        ("price_change_1h", [(0, 1.0), (0.2, 1.05), (1, 1.1)], 1, {"repeated": 1}),
        ("price_change_1h", [(0, 1.0), (1, 1.1), (0, 1.0), (1, 1.1)], 1, {"late": 1, "repeated": 1}),
        ("price_change_1h", [(0, 1.0), (2, 1.1), (3, 1.2)], 1, {"gap": 1}),
        ("price_change_1h", [(0, 1.0), (0.6, 1.1), (1, 1.2)], 1, {"repeated": 1}),
        ("price_change_4h", [(0, 1.0), (4, 1.1), (8, 1.1), (9, 1.1), (12, 1.1)], 3, {}),
        ("price_change_4h", [(0, 1.0), (1, 1.1), (3, 1.1), (5, 1.1)], 1, {"gap": 1}),
        ("volatility_2h", [(0, 1.0), (1, 1.1), (2, 1.2), (3, 1.2)], 2, {}),
        ("volatility_2h", [(0, 1.0), (2, 1.1), (3, 1.2), (4, 1.2)], 1, {"gap": 1}),
        ("price_change_1h", [(107, 1.0), (108, 1.1), (157, 1.2)], 1, {"closure": 1}),
        ("price_change_4h", [(104, 1.0), (106, 1.1), (108, 1.1)], 1, {"closure": 2}),
        ("direction_1h", [(0, 1.0), (1, 1.1)], None, {}),
    ],
)
def test_an_outcome_is_of_the_bar_where_the_horizon_ends(
    model: ServedModel, target: str, steps: Sequence[Step], outcomes: int | None, dropped: dict[str, int]
) -> None:
    """The market closes 108 hours later, on Friday 22:00."""
    intervals, model = LiveIntervals(), of_target(model, target, horizon=int(target[-2]))
    for hours, price in steps:
        told(intervals, model, MONDAY_MS + round(hours * HOUR_MS), price)
    coverage = intervals.coverage("small", "1.0.0")
    if outcomes is None:
        assert coverage is None
        return
    assert coverage is not None
    assert coverage.num_outcomes == outcomes
    assert {name: num for name, num in coverage.num_dropped.items() if num} == dropped


@pytest.mark.parametrize(
    ("target", "realised"),
    [
        ("price_change_2h", 1.2 / 1.5 - 1),
        ("log_return_2h", np.log(1.2 / 1.5)),
        ("volatility_2h", np.hypot(np.log(1.8 / 1.5), np.log(1.2 / 1.8))),
    ],
)
def test_what_came_true_is_the_targets_own_measure(model: ServedModel, target: str, realised: float) -> None:
    """An interval that ends just before it misses it, one that ends just behind holds it."""
    for factor, is_inside in ((0.999, 0.0), (1.001, 1.0)):
        intervals, of_two = LiveIntervals(), of_target(model, target, horizon=2)
        for hour, price in enumerate((1.4, 1.5, 1.8, 1.2)):
            told(intervals, of_two, MONDAY_MS + hour * HOUR_MS, price, reach=abs(realised) * factor if hour == 1 else 9)
        assert found(intervals).num_outcomes == 2
        assert found(intervals).coverage == (1 + is_inside) / 2


def test_daily_bars_mature_over_weekends_and_over_a_change_of_clocks(model: ServedModel) -> None:
    """Fixings at 16:00 Frankfurt: 15:00 UTC in winter; New York changes three weeks before Frankfurt does."""
    daily = of_target(model, "price_change_1d", timeframe="1d")
    days = np.arange("2020-02-24", "2020-04-18", dtype="datetime64[D]")
    days = days[np.is_busday(days, holidays=["2020-04-10", "2020-04-13"])]
    hours = np.where(days < np.datetime64("2020-03-29"), 15, 14)
    intervals = LiveIntervals()
    for day, hour in zip(days.astype("datetime64[ms]").astype(np.int64), hours, strict=True):
        told(intervals, daily, int(day) + int(hour) * HOUR_MS, 1.1)
    coverage = found(intervals)
    assert coverage.num_dropped["gap"] == 1, "nobody fixes at Easter"
    assert coverage.num_outcomes == len(days) - 2
    assert daily.timeframe_ms == DAY_MS


def test_abstentions_leave_nothing_but_their_price_ends_what_waits(model: ServedModel) -> None:
    intervals = LiveIntervals()
    told(intervals, model, MONDAY_MS, 1.0)
    told(intervals, model, MONDAY_MS + HOUR_MS, 1.1, ok=False)
    told(intervals, model, MONDAY_MS + 2 * HOUR_MS, 1.1)
    assert found(intervals).num_outcomes == 1


def test_a_ledgers_outcome_counts_once_whichever_comes_first(model: ServedModel) -> None:
    intervals = LiveIntervals()
    told(intervals, model, MONDAY_MS, 1.0, reach=0.01)
    assert intervals.mature("small", "1.0.0", "EUR/USD", MONDAY_MS, 0.02)
    assert not intervals.mature("small", "1.0.0", "EUR/USD", MONDAY_MS, 0.02)
    told(intervals, model, MONDAY_MS + HOUR_MS, 1.0)
    assert (found(intervals).num_outcomes, found(intervals).coverage) == (1, 0.0)
    told(intervals, model, MONDAY_MS + 2 * HOUR_MS, 1.0)
    assert not intervals.mature("small", "1.0.0", "EUR/USD", MONDAY_MS + HOUR_MS, 0.0)
    for model_id, version, symbol in (
        ("other", "1.0.0", "EUR/USD"),
        ("small", "1.1.0", "EUR/USD"),
        ("small", "1.0.0", "X"),
    ):
        assert not intervals.mature(model_id, version, symbol, MONDAY_MS + 2 * HOUR_MS, 0.0)


def test_a_bar_without_a_volatility_teaches_the_other_kind_of_interval(model: ServedModel) -> None:
    intervals = LiveIntervals()
    for hour, is_volatility in enumerate((True, False, False, False)):
        moment = intervals.ask(model, "EUR/USD", as_of_ms=MONDAY_MS + hour * HOUR_MS, price=1.0)
        assert moment is not None
        moment.widening(IntervalScale(0.001, is_volatility=is_volatility))
        due_ms = MONDAY_MS + (hour + 1) * HOUR_MS
        moment.stated(Interval(level=0.9, lower=-1, upper=1), due_ms=due_ms, bar_ms=HOUR_MS, horizon=1)
    series = intervals._states["small", "1.0.0"].lanes["EUR/USD"]
    assert (series.by_volatility.num_outcomes, series.by_volatility.num_scales) == (1, 1)
    assert (series.plain.num_outcomes, series.plain.num_scales) == (2, 0)


def test_what_waits_is_bounded_by_the_horizon(model: ServedModel) -> None:
    """Daily bars may come every half day; the horizon's end is not reached."""
    intervals, of_many = LiveIntervals(), of_target(model, "price_change_20d", horizon=20, timeframe="1d")
    for number in range(36):
        told(intervals, of_many, MONDAY_MS + number * DAY_MS // 2, 1.0)
    assert found(intervals).num_dropped["crowded"] == 36 - (20 + SPARE_WAITING)
    assert found(intervals).num_outcomes == 0
