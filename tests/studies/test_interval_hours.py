"""Intervals cover as promised at each time of the day: real hours and simulated ones, in a short form of the study."""

from dataclasses import replace

import numpy as np
import pytest

from studies.interval_hours import (
    FEWEST_REAL_ROWS,
    MOST_APART,
    NUM_BLOCKS,
    SIMULATED_STEPS,
    Steps,
    real_hours,
    simulated_centres,
    walked,
)

pytestmark = pytest.mark.more


@pytest.mark.parametrize("horizon", [1, 4])
def test_five_thousand_real_hours_are_covered_as_promised_in_each_three_hours_of_the_day(horizon: int) -> None:
    series = real_hours()
    tested = walked(series, horizon=horizon)
    assert len(tested.covered) >= FEWEST_REAL_ROWS
    assert tested.by_block.shape == (NUM_BLOCKS,)
    assert tested.most_apart <= MOST_APART, tested.by_block.round(3)
    assert tested.failed_hours == 0
    assert walked(series, horizon=horizon, has_season=False).most_apart > 1.5 * MOST_APART, "the season is what does it"


def test_simulated_centres_are_covered_as_promised_in_every_hour() -> None:
    """A seed that the study's own table does not use."""
    series = simulated_centres(17, 0, SIMULATED_STEPS.first + 3 * SIMULATED_STEPS.test)
    tested = walked(series, horizon=1)
    assert tested.failed_hours == 0
    assert tested.most_apart <= MOST_APART
    hours = tested.moments_ms // 3_600_000 % 24
    shares = np.array([tested.covered[hours == hour].mean() for hour in range(24)])
    assert np.abs(shares - 0.9).max() < 0.09
    assert walked(series, horizon=1, has_season=False).failed_hours > 0


def test_a_step_is_tested_once_and_learns_nothing_of_itself() -> None:
    series = replace(simulated_centres(3, 1, 3000), steps=Steps(1500, 500, 500))
    tested = walked(series, horizon=2)
    assert len(np.unique(tested.moments_ms)) == len(tested.moments_ms) > 1300
    close = np.where(np.arange(3000) >= 2500, series.close * 3.0 ** (np.arange(3000) % 3), series.close)
    wild = walked(replace(series, close=close), horizon=2)
    early = tested.moments_ms <= series.opened_ms[2490]
    assert np.array_equal(wild.covered[: early.sum()], tested.covered[early])
    assert not np.array_equal(wild.covered, tested.covered)
