"""What ready-made columns tell: copies of the target in any disguise are found, honest columns are not."""

from collections.abc import Callable

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.evaluation.leakage.column_checks import (
    IMPLAUSIBLE,
    Outcome,
    Past,
    Telling,
    joined_ahead,
    near_copy,
)
from ml_workbench_service.market.calendar import HOUR_MS
from studies.injected_leaks import columns, honest_columns
from tests.trained_models import InjectedBars, injected_bars

NUM = 2000
BARS = injected_bars(NUM, seed=5, r2=0.05)
LEAKING = columns(BARS.close, BARS.opened_ms, seed=5)
HONEST = honest_columns(BARS.close, seed=5)
STEPS = {"close_of_the_day"}


def past(bars: InjectedBars = BARS, *, horizon: int = 1, lookback: int = 24) -> Past:
    """Four fifths of the bars, asked for the price change."""
    until = int(0.8 * len(bars.close))
    changes = np.full(len(bars.close), np.nan)
    changes[: until - horizon] = (bars.close[horizon:] / bars.close[:-horizon] - 1)[: until - horizon]
    return Past(bars.close, [Outcome(f"price_change_{horizon}h", changes, horizon)], until, lookback)


def found(column: Floats, asked: Past | None = None) -> Telling | None:
    """By either search."""
    asked = past() if asked is None else asked
    return near_copy(column, asked) or joined_ahead(column, asked)


@pytest.mark.parametrize("name", LEAKING)
def test_a_column_that_knows_the_next_bars_is_found(name: str) -> None:
    telling = found(LEAKING[name])
    assert telling is not None
    assert telling.share > IMPLAUSIBLE


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_column_is_left_alone(name: str) -> None:
    assert found(HONEST[name]) is None


@pytest.mark.parametrize("r2", [0.05, 0.3, 0.45])
def test_a_strong_but_honest_signal_is_left_alone(r2: float) -> None:
    bars = injected_bars(NUM, seed=8, r2=r2)
    assert found(bars.signal, past(bars)) is None


def test_a_signal_that_no_market_leaves_is_found() -> None:
    bars = injected_bars(NUM, seed=8, r2=0.7)
    telling = near_copy(bars.signal, past(bars))
    assert telling is not None
    assert telling.share == pytest.approx(0.7, abs=0.06)


def test_a_copy_of_a_class_is_found_even_where_one_class_is_rare_and_the_codes_mean_nothing() -> None:
    moves = np.append(np.diff(np.log(BARS.close)), 0.0)
    classes = np.digitize(moves, [-0.0022, 0.0022]).astype(np.float64)
    asked = Past(BARS.close, [Outcome("direction_1h", classes, 1)], int(0.8 * NUM), 24)
    recoded = np.array([1.0, 7.0, 2.0])[classes.astype(int)]
    telling = near_copy(recoded, asked)
    assert telling is not None
    assert telling.outcome == "direction_1h"
    assert telling.share > 0.99


def test_a_days_close_is_found_where_it_is_joined_by_date_but_not_the_day_after() -> None:
    closes = LEAKING["close_of_the_day"]
    telling = joined_ahead(closes, past())
    assert telling is not None
    assert telling.outcome == "the move until its next step"
    days = BARS.opened_ms // (24 * HOUR_MS)
    first_of_next = np.searchsorted(days, days, side="left") - 1
    assert joined_ahead(np.where(first_of_next >= 0, closes[first_of_next], closes[0]), past()) is None


def test_holes_do_not_hide_a_copy() -> None:
    column = LEAKING["copy"].copy()
    column[np.random.default_rng(2).random(NUM) < 0.2] = np.nan
    assert near_copy(column, past()) is not None


def test_what_lies_in_the_test_part_is_not_asked() -> None:
    column = HONEST["noise"].copy()
    column[int(0.8 * NUM) :] = LEAKING["copy"][int(0.8 * NUM) :]
    assert found(column) is None


def test_a_price_that_bounces_around_a_level_is_its_own_pasts_doing_not_the_columns() -> None:
    noise = np.random.default_rng(6).standard_normal(NUM)
    close = 1.1 * np.exp(0.001 * noise)
    bars = InjectedBars(BARS.opened_ms, close, noise, 0.5)
    assert found(np.log(close / 1.1), past(bars)) is None


def test_too_few_rows_and_empty_columns_tell_nothing() -> None:
    assert found(np.full(NUM, np.nan)) is None
    short = injected_bars(90, seed=1)
    assert found(np.append(np.diff(short.close), 0.0), past(short)) is None


LAST_OF_DAY = LEAKING["close_of_the_day"]
DAY = BARS.opened_ms // (24 * HOUR_MS)


def later_high() -> Floats:
    """The highest close that is still to come on the bar's day, and at the day's last bar its own."""
    high = BARS.close.copy()
    for row in range(NUM - 2, -1, -1):
        if DAY[row] == DAY[row + 1]:
            high[row] = max(
                BARS.close[row + 1], high[row + 1] if row + 2 < NUM and DAY[row + 1] == DAY[row + 2] else 0.0
            )
    return high


def yesterdays(price: Floats) -> Floats:
    """A day's price at the bars of the day after."""
    first = np.searchsorted(DAY, DAY, side="left") - 1
    return np.where(first >= 0, price[first], price[0])


DISTANCES: dict[str, Callable[[Floats], Floats]] = {
    "over the close": lambda price: price / BARS.close,
    "close over it": lambda price: BARS.close / price,
    "change in percent": lambda price: 100 * (price / BARS.close - 1),
    "log distance": lambda price: np.log(price / BARS.close),
    "pips from the close": lambda price: np.round(1e4 * (price - BARS.close), 2),
    "six digits": lambda price: np.round(price / BARS.close, 6),
}


@pytest.mark.parametrize("how", DISTANCES)
def test_a_later_price_is_found_behind_its_distance_from_the_close_and_a_past_one_is_not(how: str) -> None:
    distance = DISTANCES[how]
    for price in (LAST_OF_DAY, later_high()):
        telling = joined_ahead(distance(price), past())
        assert telling is not None
        assert telling.how == "at its steps"
    running = BARS.close.copy()
    for row in range(1, NUM):
        running[row] = max(running[row - 1], running[row]) if DAY[row] == DAY[row - 1] else running[row]
    for price in (yesterdays(LAST_OF_DAY), running, np.round(BARS.close, 2)):
        assert joined_ahead(distance(price), past()) is None
