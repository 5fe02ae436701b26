"""The FX week: one clock that stops at weekends, runs that only a missing bar breaks, rolls at 17:00 New York."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, WEEK_OPEN_MS

steady = settings(deadline=None, derandomize=True)
NEW_YORK = ZoneInfo("America/New_York")
moments = st.integers(min_value=473_385_600_000, max_value=2_500_000_000_000)  # 1985 to 2049


def utc(text: str) -> int:
    return int(np.datetime64(text, "ms").astype(np.int64))


def is_open_by_the_clock(at_ms: int) -> bool:
    """The definition, word by word."""
    local = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)).astimezone(NEW_YORK)
    day, hour = local.weekday(), local.hour
    return not (day == 5 or (day == 4 and hour >= 17) or (day == 6 and hour < 17))


@pytest.mark.parametrize(
    ("opens", "closes"),
    [
        ("2024-01-07T22:00", "2024-01-12T22:00"),  # winter
        ("2024-07-07T21:00", "2024-07-12T21:00"),  # summer
        ("2024-03-10T21:00", "2024-03-15T21:00"),  # New York is an hour ahead already, Europe is not
        ("2024-11-03T22:00", "2024-11-08T22:00"),
    ],
)
def test_the_week_opens_sunday_and_closes_friday_at_five_in_new_york(opens: str, closes: str) -> None:
    at = np.array([utc(opens) - 1, utc(opens), utc(closes) - 1, utc(closes)])
    assert calendar.is_open(at).tolist() == [False, True, True, False]
    assert int(calendar.market_ms(utc(closes)) - calendar.market_ms(utc(opens))) == WEEK_OPEN_MS


@steady
@given(moments)
def test_open_is_what_the_definition_says(at_ms: int) -> None:
    assert bool(calendar.is_open(at_ms)) == is_open_by_the_clock(at_ms)


@steady
@given(moments, st.integers(min_value=0, max_value=30 * DAY_MS))
def test_market_time_never_runs_back_nor_faster_than_the_clock(at_ms: int, span_ms: int) -> None:
    passed = int(calendar.market_ms(at_ms + span_ms) - calendar.market_ms(at_ms))
    assert 0 <= passed <= span_ms
    assert int(calendar.market_ms(at_ms + 7 * DAY_MS) - calendar.market_ms(at_ms)) in range(
        WEEK_OPEN_MS - HOUR_MS, WEEK_OPEN_MS + HOUR_MS + 1
    )


@steady
@given(moments, st.integers(min_value=-(10**9), max_value=10**10))
def test_advancing_passes_exactly_that_much_market_time(at_ms: int, duration_ms: int) -> None:
    reached = int(calendar.advance(at_ms, duration_ms))
    assert int(calendar.market_ms(reached) - calendar.market_ms(at_ms)) == duration_ms
    assert (reached - at_ms) * duration_ms >= 0
    if duration_ms > 0:
        assert int(calendar.market_ms(reached - 1)) < int(calendar.market_ms(reached))  # the earliest such moment


def test_an_hour_from_friday_afternoon_ends_at_the_close_and_two_after_the_opening() -> None:
    friday = utc("2024-01-12T21:00")
    assert int(calendar.advance(friday, HOUR_MS)) == utc("2024-01-12T22:00")
    assert int(calendar.advance(friday, 2 * HOUR_MS)) == utc("2024-01-14T23:00")
    assert calendar.advance(np.array([friday, friday]), HOUR_MS).tolist() == [utc("2024-01-12T22:00")] * 2


@pytest.mark.parametrize(("spot_lag_days", "nights"), [(2, [1, 1, 3, 1, 1, 0, 0]), (1, [1, 1, 1, 3, 1, 0, 0])])
def test_a_week_charges_seven_nights_three_of_them_on_wednesday_or_thursday(
    spot_lag_days: int, nights: list[int]
) -> None:
    rolls = utc("2024-01-08T22:00") + np.arange(7) * DAY_MS
    assert calendar.swap_days(rolls - DAY_MS, rolls, spot_lag_days=spot_lag_days).tolist() == nights
    assert calendar.swap_days(rolls - 1, rolls, spot_lag_days=spot_lag_days).tolist() == nights
    dear = int(rolls[nights.index(3)])
    assert int(calendar.swap_days(dear - 1, dear, spot_lag_days=spot_lag_days)) == 3
    assert int(calendar.swap_days(dear, dear + HOUR_MS, spot_lag_days=spot_lag_days)) == 0


def test_pairs_side_by_side_are_each_charged_by_their_own_settlement() -> None:
    thursday = np.full(2, utc("2024-01-11T22:00"))
    assert calendar.swap_days(thursday - 1, thursday, spot_lag_days=np.array([1, 2])).tolist() == [3, 1]


@steady
@given(moments, st.lists(st.integers(min_value=1, max_value=5 * DAY_MS), min_size=1, max_size=8), st.integers(1, 2))
def test_nights_add_up_over_any_cutting_of_a_span(at_ms: int, pieces: list[int], days: int) -> None:
    borders = np.cumsum([at_ms, *pieces])
    whole = int(calendar.swap_days(borders[0], borders[-1], spot_lag_days=days))
    assert int(calendar.swap_days(borders[:-1], borders[1:], spot_lag_days=days).sum()) == whole


def grid(timeframe_ms: int, start: str, num_days: int) -> np.ndarray:
    """All bars of the UTC grid that have a moment of open market."""
    opened = np.arange(utc(start), utc(start) + num_days * DAY_MS, timeframe_ms)
    return opened[calendar.market_ms(opened + timeframe_ms) > calendar.market_ms(opened)]


@pytest.mark.parametrize("hours", [0.25, 1, 2, 4])
@steady
@given(drop=st.integers(min_value=1, max_value=10**9))
def test_weekends_and_clock_changes_break_no_run_and_a_missing_bar_breaks_one(hours: float, drop: int) -> None:
    timeframe_ms = int(hours * HOUR_MS)
    opened = grid(timeframe_ms, "2024-02-19", 56)  # over both changes of the clock in spring
    assert calendar.runs(opened, timeframe_ms, "fx").max() == 0
    missing = drop % (len(opened) - 2) + 1
    is_stub = calendar.market_ms(opened + timeframe_ms) - calendar.market_ms(opened) < timeframe_ms
    runs = calendar.runs(np.delete(opened, missing), timeframe_ms, "fx")
    if not is_stub[missing]:
        assert runs.tolist() == [0] * missing + [1] * (len(opened) - missing - 1)


def test_christmas_and_new_year_are_no_gap_but_another_lost_day_is() -> None:
    opened = grid(HOUR_MS, "2023-12-17", 21)
    christmas = (opened >= utc("2023-12-24T22:00")) & (opened < utc("2023-12-25T22:00"))
    new_year = (opened >= utc("2023-12-31T22:00")) & (opened < utc("2024-01-01T22:00"))
    assert calendar.runs(opened[~christmas & ~new_year], HOUR_MS, "fx").max() == 0
    assert calendar.runs(opened, HOUR_MS, "fx").max() == 0
    boxing_day = (opened >= utc("2023-12-25T22:00")) & (opened < utc("2023-12-26T22:00"))
    assert calendar.runs(opened[~boxing_day], HOUR_MS, "fx").max() == 1


def test_daily_bars_run_from_friday_to_monday_with_or_without_a_sunday_bar() -> None:
    days = np.array([utc(f"2024-01-{day:02d}") for day in (11, 12, 15, 16)])
    assert calendar.runs(days, DAY_MS, "fx").tolist() == [0, 0, 0, 0]
    with_sunday = np.sort(np.append(days, utc("2024-01-14")))
    assert calendar.runs(with_sunday, DAY_MS, "fx").max() == 0
    assert calendar.runs(days - 2 * HOUR_MS, DAY_MS, "fx").max() == 0  # stamped at 17:00 New York
    assert calendar.runs(np.delete(days, 1), DAY_MS, "fx").tolist() == [0, 1, 1]


def test_fixings_run_over_easter_but_not_over_a_suspension() -> None:
    days = np.array([utc(day) for day in ("2024-03-28", "2024-04-02", "2024-04-03", "2024-04-11")])
    assert calendar.runs(days, DAY_MS, "fixings").tolist() == [0, 0, 0, 1]


def test_expected_bars_count_a_week_as_its_open_hours() -> None:
    start, end = utc("2024-02-04T22:00"), utc("2024-02-11T22:00")
    assert calendar.num_expected_bars(start, end, "1h") == 120
    assert calendar.num_expected_bars(start, end, "1d") == 5
    assert calendar.num_expected_bars(end, start, "1h") == 0


def test_a_time_in_another_unit_is_refused() -> None:
    with pytest.raises(DataValidationError, match="unit"):
        calendar.market_ms(-1)
    with pytest.raises(DataValidationError, match="unit"):
        calendar.is_open(utc("2024-01-01") * 1000)


def test_no_bars_have_no_runs() -> None:
    assert len(calendar.runs(np.zeros(0, dtype=np.int64), HOUR_MS, "fx")) == 0


def test_a_division_finds_the_week_and_the_day_that_a_search_finds() -> None:
    tables = calendar._tables()
    near = np.array([-HOUR_MS, -1, 0, 1, HOUR_MS - 1, HOUR_MS])
    for borders_ms, found in (
        (tables.opens_ms, calendar.week_opening),
        (tables.rolls_ms, calendar.trading_day_opening),
    ):
        at_ms = (borders_ms[1:-8, None] + near).ravel()
        searched = borders_ms[np.searchsorted(borders_ms, at_ms, side="right") - 1]
        assert np.array_equal(found(at_ms), searched)


@steady
@given(
    at_ms=moments | st.sampled_from([0, 338_400_000, 4_102_400_000_000]),
    duration_ms=st.integers(-40 * DAY_MS, 40 * DAY_MS) | st.just(0),
)
def test_a_single_moment_is_told_what_arrays_are(at_ms: int, duration_ms: int) -> None:
    if at_ms < 338_400_000:  # before the first opening: both refuse
        for ask in (calendar.is_open_at, calendar.market_ms_at, lambda at: calendar.advance_from(at, duration_ms)):
            with pytest.raises(DataValidationError, match="outside 1970"):
                ask(at_ms)
        return
    assert calendar.is_open_at(at_ms) == bool(calendar.is_open(at_ms))
    assert calendar.market_ms_at(at_ms) == int(calendar.market_ms(at_ms))
    try:
        reached = int(calendar.advance(at_ms, duration_ms))
    except DataValidationError:
        with pytest.raises(DataValidationError):
            calendar.advance_from(at_ms, duration_ms)
        return
    assert calendar.advance_from(at_ms, duration_ms) == reached
