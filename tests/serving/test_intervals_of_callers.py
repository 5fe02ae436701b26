"""Callers that send features with a price: the series of prices tells the volatility; intervals follow the market."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.prediction import Interval
from ml_workbench_service.learning.decoders.decoder import IntervalScale
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.seasonal_volatility import seasonal_volatility
from ml_workbench_service.market.targets import EWMA_BARS, log_returns
from ml_workbench_service.serving.history import SymbolHistory
from ml_workbench_service.serving.live_intervals import _FILE, LiveIntervals
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import answered
from tests.serving.test_interval_outcomes import MONDAY_MS, found
from tests.serving.test_live_intervals import CHAMPION

CALM, STORM = 0.001, 0.003
NORMAL_90 = 1.645
NUM = 700
"""Bars of each of three stretches: calm, three times as volatile, calm again."""
SETTLED = 150
"""Bars after a change of volatility by which coverage is what was promised again."""


def open_hours(num: int) -> Ints:
    """Moments at which hourly bars of the open market end."""
    hours = MONDAY_MS + HOUR_MS * np.arange(2 * num)
    return hours[calendar.is_open(hours - HOUR_MS)][:num]


def prices(model: ServedModel, moments: Ints, deviation: Floats, seed: int) -> Floats:
    """A random walk with the model's own season."""
    factors = model.profiles["EUR/USD"].factor(moments - HOUR_MS)
    return np.exp(np.cumsum(deviation * factors * np.random.default_rng(seed).standard_normal(len(moments))))


@pytest.mark.parametrize("knows_volatility", [True, False])
def test_intervals_follow_a_volatility_of_three_times_the_usual_and_come_back(
    model: ServedModel, knows_volatility: bool
) -> None:
    """By the prices' volatility; and where no decoder states an interval by it, by the level alone."""
    moments, deviation = open_hours(3 * NUM), np.repeat([CALM, STORM, CALM], NUM)
    price, intervals = prices(model, moments, deviation, seed=1), LiveIntervals()
    profile, reaches = model.profiles["EUR/USD"], np.zeros(3 * NUM)
    for number, (as_of_ms, each) in enumerate(zip(moments.tolist(), price.tolist(), strict=True)):
        moment = intervals.ask(model, "EUR/USD", as_of_ms=as_of_ms, price=each)
        assert moment is not None
        volatility = moment.bar_volatility if knows_volatility else None
        scale = IntervalScale(CALM if volatility is None else volatility, is_volatility=volatility is not None)
        reach = NORMAL_90 * scale.value * moment.widening(scale)
        interval = Interval(level=0.9, lower=-reach, upper=reach)
        moment.stated(interval, due_ms=as_of_ms + HOUR_MS, bar_ms=HOUR_MS, horizon=1)
        reaches[number] = reach
    is_covered = np.abs(price[1:] / price[:-1] - 1) <= reaches[:-1]
    storm, calm = slice(NUM + SETTLED, 2 * NUM - 1), slice(2 * NUM + SETTLED, 3 * NUM - 1)
    assert np.mean(is_covered[storm]) == pytest.approx(0.9, abs=0.05)
    ideal = NORMAL_90 * deviation * (profile.coming_factor(moments - HOUR_MS) if knows_volatility else 1.0)
    assert np.mean(reaches[calm] / ideal[calm]) < 1.3
    assert np.mean(is_covered[calm]) == pytest.approx(0.9, abs=0.05)
    assert found(intervals).num_outcomes > 2 * NUM


def test_until_the_prices_tell_a_volatility_the_interval_is_unconditional_and_says_so(
    model: ServedModel, history: SymbolHistory
) -> None:
    """Then it is training's own, of the same bars."""
    moments = open_hours(80)
    price = prices(model, moments, np.full(80, CALM), seed=2)
    intervals, question = LiveIntervals(), replace(history.question(900), bar_volatility=None, clock=False)
    live = replace(model, last_available_at_ms=MONDAY_MS - 1)
    whole = seasonal_volatility(model.profiles["EUR/USD"], moments - HOUR_MS, log_returns(price))
    for number, (as_of_ms, each) in enumerate(zip(moments.tolist(), price.tolist(), strict=True)):
        asked = replace(question, as_of_ms=as_of_ms, newest_available_at_ms=as_of_ms, price=each)
        told = answered(live, asked, CHAMPION, intervals=intervals)
        assert told.record.interval is not None
        is_known = number >= EWMA_BARS // 4
        assert ("unconditional_interval" in told.record.warnings) == (not is_known)
        assert told.bar_volatility == (pytest.approx(whole[number], rel=1e-9) if is_known else None)
        assert not is_known or told.record.metadata.volatility == told.bar_volatility


def test_a_return_over_a_missing_bar_teaches_no_volatility_and_a_long_gap_forgets_it(model: ServedModel) -> None:
    moments, intervals = open_hours(400), LiveIntervals()
    price = prices(model, moments, np.full(400, CALM), seed=3)

    def ask(number: int, factor: float = 1.0) -> float | None:
        moment = intervals.ask(model, "EUR/USD", as_of_ms=int(moments[number]), price=float(price[number] * factor))
        assert moment is not None
        return moment.bar_volatility

    before = [ask(number) for number in range(50)][-1]
    factors = model.profiles["EUR/USD"].coming_factor(moments - HOUR_MS)
    after = ask(52, factor=2.0)
    assert before is not None
    assert after == pytest.approx(before / factors[49] * factors[52])
    assert ask(52 + EWMA_BARS + 1) is None


def test_what_an_earlier_version_wrote_of_live_intervals_is_read(model: ServedModel) -> None:
    intervals = LiveIntervals()
    for hour in range(3):
        intervals.ask(model, "EUR/USD", as_of_ms=MONDAY_MS + hour * HOUR_MS, price=1.0 + hour / 100)
    plain = json.loads(_FILE.dump_json(intervals._states["small", "1.0.0"]))
    for name in ("squares", "weights", "num_returns"):
        assert plain["lanes"]["EUR/USD"].pop(name) > 0
    read = _FILE.validate_json(json.dumps(plain))
    assert read.lanes["EUR/USD"].deviation is None
    assert read.lanes["EUR/USD"].price == 1.02
