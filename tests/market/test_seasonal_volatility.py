"""A profile finds the hours' pattern on each centre's own clock; a volatility built on it knows nothing of later."""

from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, to_ms
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market import calendar
from ml_workbench_service.market.seasonal_volatility import (
    FACTOR_BOUNDS,
    FEWEST_WEEKS,
    SHRINKAGE,
    SeasonalProfile,
    deseasonalised,
    seasonal_volatility,
)
from ml_workbench_service.market.targets import EWMA_BARS, ewma_volatility

HOUR_MS = TIMEFRAMES_MS["1h"]
WEEK_MS = 7 * TIMEFRAMES_MS["1d"]
LONDON, NEW_YORK, TOKYO = ZoneInfo("Europe/London"), ZoneInfo("America/New_York"), ZoneInfo("Asia/Tokyo")
steady = settings(deadline=None, derandomize=True, max_examples=15)


def ms(text: str) -> int:
    return to_ms(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("UTC")))


def openings(first: str, weeks: int, timeframe: str = "1h") -> Ints:
    """Every bar of the open market, on UTC's grid."""
    length = TIMEFRAMES_MS[timeframe]
    every = ms(first) + np.arange(weeks * WEEK_MS // length) * length
    return every[calendar.is_open(every) | calendar.is_open(every + length - 1)]


def hours(opened_ms: Ints, zone: ZoneInfo) -> Ints:
    """Local hours, one bar at a time."""
    return np.array([datetime.fromtimestamp(each / 1000, tz=zone).hour for each in opened_ms.tolist()])


def returns(deviation: Floats, seed: int = 0) -> Floats:
    return 0.001 * deviation * np.random.default_rng(seed).standard_normal(len(deviation))


def london_and_new_york(opened_ms: Ints) -> Floats:
    """Twice the movement in London's morning, three times in New York's, each by its own clock."""
    london, new_york = hours(opened_ms, LONDON), hours(opened_ms, NEW_YORK)
    return np.where((london >= 8) & (london < 11), 2.0, 1.0) * np.where((new_york >= 8) & (new_york < 10), 3.0, 1.0)


def test_each_centre_moves_by_its_own_clock_in_the_weeks_when_only_one_of_them_has_changed_it() -> None:
    opened = openings("2019-01-01T00:00:00", 4 * 52)
    true = london_and_new_york(opened)
    profile = SeasonalProfile.fit(opened, returns(true), HOUR_MS)
    later = openings("2023-03-13T00:00:00", 2)  # New York is an hour ahead, London is not yet
    found, wanted = profile.factor(later), london_and_new_york(later)
    usual = ~profile.is_week_opening(later)
    assert np.corrcoef(np.log(found[usual]), np.log(wanted[usual]))[0, 1] > 0.95
    assert np.abs(np.log(found / wanted) - np.log(found / wanted)[usual].mean())[usual].max() < 0.35


def test_the_mean_square_is_one_on_the_training_part() -> None:
    opened = openings("2021-01-04T00:00:00", 60)
    profile = SeasonalProfile.fit(opened, returns(london_and_new_york(opened)), HOUR_MS)
    taught = ~calendar.is_holiday(opened)
    assert np.mean(profile.factor(opened[taught]) ** 2) == pytest.approx(1.0, abs=0.01)


def test_under_twenty_weeks_there_is_one_profile_of_hours_shrunk_by_its_count() -> None:
    """Every day's other hours move by one, the ninth by four: shrunk by n / (n + 20), and by nothing else."""
    opened = openings("2022-01-02T00:00:00", FEWEST_WEEKS - 2)
    new_york = hours(opened, NEW_YORK)
    sizes = np.where(new_york == 9, 4.0, 1.0) * 0.001
    sizes[0] = np.nan
    profile = SeasonalProfile.fit(opened, sizes, HOUR_MS)
    assert (len(profile.new_york), profile.tokyo, profile.london) == (24, (), ())
    mean, first = (23 + 4) / 24, profile.is_week_opening(opened)
    num = np.sum((new_york == 9) & ~first)
    assert profile.new_york[9] == pytest.approx(np.log(4 / mean) * num / (num + SHRINKAGE), rel=0.02)
    assert profile.factor(opened)[~first].max() == pytest.approx(
        profile.factor(opened)[~first].min() * np.exp(profile.new_york[9] - profile.new_york[3]), rel=0.02
    )


@pytest.mark.parametrize("timeframe", ["5m", "1h", "4h"])
def test_the_weeks_first_bar_has_a_cell_of_its_own(timeframe: str) -> None:
    opened = openings("2022-01-02T00:00:00", 60, timeframe)
    length = TIMEFRAMES_MS[timeframe]
    first = SeasonalProfile(timeframe_ms=length).is_week_opening(opened)
    assert np.sum(first) == 60
    assert np.all(np.diff(opened)[np.flatnonzero(first)[1:] - 1] > 40 * HOUR_MS)
    profile = SeasonalProfile.fit(opened, returns(np.where(first, 4.0, 1.0)), length)
    assert profile.factor(opened[first]).min() > 2.0
    assert profile.factor(opened[~first]).max() < 1.6


def test_a_feed_that_opens_late_has_its_first_bar_where_it_opens() -> None:
    opened = openings("2022-01-02T00:00:00", 40)
    local = calendar.week_opening(opened)
    opened = opened[opened - local >= 2 * HOUR_MS]
    first = np.diff(opened, prepend=0) > 40 * HOUR_MS
    profile = SeasonalProfile.fit(opened, returns(np.where(first, 4.0, 1.0)), HOUR_MS)
    assert profile.week_delay_ms == 2 * HOUR_MS
    assert np.array_equal(profile.is_week_opening(opened), first)
    friday = np.flatnonzero(first)[5] - 1
    assert profile.coming_factor(opened[friday : friday + 1])[0] == pytest.approx(profile.factor(opened[first])[0])


def test_christmas_and_new_year_teach_nothing() -> None:
    opened = openings("2018-11-01T00:00:00", 120)
    sizes = returns(london_and_new_york(opened))
    wild = np.where(calendar.is_holiday(opened), 50 * sizes, sizes)
    assert SeasonalProfile.fit(opened, wild, HOUR_MS) == SeasonalProfile.fit(opened, sizes, HOUR_MS)
    assert np.any(wild != sizes)


def test_factors_stay_within_their_bounds() -> None:
    opened = openings("2022-01-02T00:00:00", 60)
    profile = SeasonalProfile.fit(opened, returns(np.where(hours(opened, NEW_YORK) == 8, 300.0, 1e-6)), HOUR_MS)
    factors = profile.factor(opened)
    assert (factors.min(), factors.max()) == FACTOR_BOUNDS


@pytest.mark.parametrize("first", ["2022-01-02T22:00:00", "2022-01-02T21:00:00"])
@pytest.mark.parametrize("horizon", [1, 5, 200])
def test_the_coming_factor_is_the_root_mean_square_of_the_next_bars_over_the_weekend_too(
    first: str, horizon: int
) -> None:
    opened = openings("2021-01-04T00:00:00", 60)
    profile = SeasonalProfile.fit(opened, returns(london_and_new_york(opened)), HOUR_MS)
    bars = openings(first, 5)
    by_hand = [
        np.sqrt(np.mean(profile.factor(bars[at + 1 : at + 1 + horizon]) ** 2)) for at in range(len(bars) - horizon)
    ]
    np.testing.assert_allclose(profile.coming_factor(bars, horizon)[: len(by_hand)], by_hand, rtol=1e-8)


@given(first=st.integers(0, 600), num=st.integers(2 * EWMA_BARS, 400), horizon=st.sampled_from([1, 4, 24]))
@steady
def test_a_volatility_does_not_depend_on_the_rows_computed_along_with_it(first: int, num: int, horizon: int) -> None:
    opened = openings("2021-01-04T00:00:00", 12)
    moves = returns(london_and_new_york(opened))
    profile = SeasonalProfile.fit(opened, moves, HOUR_MS)
    whole = seasonal_volatility(profile, opened, moves, horizon=horizon)
    last = first + num
    part = seasonal_volatility(profile, opened[first:last], moves[first:last], horizon=horizon)
    assert part[EWMA_BARS:].tobytes() == whole[first + EWMA_BARS : last].tobytes()
    assert (
        profile.coming_factor(opened[last - 1 : last], horizon)[0] == profile.coming_factor(opened, horizon)[last - 1]
    )
    cut = seasonal_volatility(profile, opened, np.where(np.arange(len(opened)) < last, moves, 7.0), horizon=horizon)
    assert cut[:last].tobytes() == whole[:last].tobytes()


def test_daily_bars_have_no_season_and_the_volatility_they_always_had() -> None:
    close = np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, 400)))
    opened = ms("2022-01-03T00:00:00") + np.arange(400) * TIMEFRAMES_MS["1d"]
    moves = np.concatenate([[np.nan], np.diff(np.log(close))])
    profile = SeasonalProfile.fit(opened, moves, TIMEFRAMES_MS["1d"])
    assert profile.is_flat
    assert seasonal_volatility(profile, opened, moves, horizon=5).tobytes() == ewma_volatility(close).tobytes()


def test_what_is_left_of_seasonal_returns_has_no_season() -> None:
    opened = openings("2019-01-01T00:00:00", 3 * 52)
    moves = returns(london_and_new_york(opened))
    left = deseasonalised(SeasonalProfile.fit(opened, moves, HOUR_MS), opened, moves)
    new_york = hours(opened, NEW_YORK)
    by_hour = np.array([np.abs(left[new_york == hour]).mean() for hour in range(24)])
    assert by_hour.max() / by_hour.min() < 1.25


def test_a_profile_read_back_says_the_same_to_the_bit() -> None:
    opened = openings("2021-01-04T00:00:00", 60)
    profile = SeasonalProfile.fit(opened, returns(london_and_new_york(opened)), HOUR_MS)
    again = SeasonalProfile.model_validate_json(profile.model_dump_json())
    assert again == profile
    assert again.factor(opened).tobytes() == profile.factor(opened).tobytes()


@pytest.mark.parametrize("num", [0, 1, 2, 30])
def test_too_few_bars_leave_every_factor_near_one(num: int) -> None:
    opened = openings("2021-01-04T00:00:00", 2)[:num]
    profile = SeasonalProfile.fit(opened, returns(np.ones(num)), HOUR_MS)
    assert np.all(np.abs(np.log(profile.factor(opened))) < 0.3)


def test_prices_that_never_move_leave_every_factor_at_one() -> None:
    opened = openings("2021-01-04T00:00:00", 30)
    assert SeasonalProfile.fit(opened, np.zeros(len(opened)), HOUR_MS).is_flat
