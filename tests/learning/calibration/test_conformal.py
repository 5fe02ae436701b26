"""Intervals that cover what they promise, probabilities that come true, and alarms that are rare until they are due."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.prediction import Direction
from ml_workbench_service.learning.calibration.conformal import (
    INTERVAL_LEVEL,
    NOVELTY_THRESHOLD,
    NoveltyDetector,
    ResidualDistribution,
)

pytestmark = pytest.mark.processor


def heteroscedastic(num: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Forecasts, outcomes and ex-ante deviations: fat tails, and a deviation that varies tenfold."""
    chance = np.random.default_rng(seed)
    deviation = 0.001 * 10 ** chance.uniform(-0.5, 0.5, num)
    forecasts = 0.3 * deviation * chance.standard_normal(num)
    return forecasts, forecasts + deviation * chance.standard_t(4, num), deviation


def fitted(residuals_N: Floats, scales_N: Floats) -> ResidualDistribution:
    distribution = ResidualDistribution.fit(residuals_N, scales_N)
    assert distribution is not None
    return distribution


def test_the_interval_covers_nine_of_ten_in_calm_and_in_storm() -> None:
    forecasts, outcomes, deviation = heteroscedastic(4000, seed=1)
    distribution = fitted(outcomes - forecasts, deviation)
    forecasts, outcomes, deviation = heteroscedastic(9000, seed=2)
    covered = []
    for forecast, outcome, scale in zip(forecasts, outcomes, deviation, strict=True):
        interval = distribution.interval(float(forecast), float(scale))
        assert interval.level == INTERVAL_LEVEL
        covered.append(interval.lower <= outcome <= interval.upper)
    for tercile in np.array_split(np.argsort(deviation), 3):
        assert 0.87 <= np.mean(np.array(covered)[tercile]) <= 0.93


def test_the_radius_is_the_conformal_rank() -> None:
    """With 20 residuals of 1 to 20, rank ceil(21 x 0.9) = 19."""
    chance = np.random.default_rng(0)
    residuals = chance.permutation(np.arange(1.0, 21.0)) * chance.choice([-1, 1], 20)
    assert fitted(residuals, np.ones(20)).radius == 19.0
    assert fitted(2 * residuals, np.full(20, 4.0)).radius == 9.5


def test_coverage_holds_on_average_even_for_few_calibration_rows() -> None:
    chance = np.random.default_rng(3)
    shares = []
    for _ in range(400):
        distribution = fitted(chance.standard_normal(20), np.ones(20))
        shares.append(np.mean(np.abs(chance.standard_normal(200)) <= distribution.radius))
    assert np.mean(shares) == pytest.approx(19 / 21, abs=0.012)


def test_rows_without_a_deviation_are_left_out_and_too_few_make_no_distribution() -> None:
    residuals, scales = np.arange(1.0, 31.0), np.ones(30)
    scales[[0, 1, 2]] = [np.nan, 0.0, -1.0]
    assert fitted(residuals, scales).grid_Q.tolist() == list(range(4, 31))
    scales[:11] = np.nan
    assert ResidualDistribution.fit(residuals, scales) is None


def test_what_cannot_be_negative_has_no_negative_bound() -> None:
    distribution = fitted(np.arange(-12.0, 13.0), np.ones(25))
    interval = distribution.interval(1.0, 0.5, may_be_negative=False)
    assert (interval.lower, interval.upper) == (0.0, 1.0 + 0.5 * distribution.radius)
    absurd = distribution.interval(-100.0, 1.0, may_be_negative=False)
    assert (absurd.lower, absurd.upper) == (0.0, 0.0)
    assert distribution.interval(-100.0, 1.0).upper < 0


def realised(direction: Direction, outcomes: Floats, dead_zone: float) -> "np.ndarray":
    if direction == "buy":
        return outcomes > dead_zone
    if direction == "sell":
        return outcomes < -dead_zone
    return np.abs(outcomes) <= dead_zone


@pytest.mark.parametrize("direction", ["buy", "sell", "hold"])
@pytest.mark.parametrize("num", [300, 5000])
def test_a_stated_probability_comes_true_as_often_as_stated(direction: Direction, num: int) -> None:
    forecasts, outcomes, deviation = heteroscedastic(num, seed=4)
    distribution = fitted(outcomes - forecasts, deviation)
    forecasts, outcomes, deviation = heteroscedastic(12_000, seed=5)
    dead_zone = 0.0005
    stated = np.array(
        [
            distribution.probability(direction, float(forecast), scale=float(scale), dead_zone=dead_zone)
            for forecast, scale in zip(forecasts, deviation, strict=True)
        ]
    )
    came_true = realised(direction, outcomes, dead_zone)
    tolerance = 2.5 * (0.5 / np.sqrt(num) + 0.5 / np.sqrt(3000))
    for part in np.array_split(np.argsort(stated), 4):
        assert stated[part].mean() == pytest.approx(came_true[part].mean(), abs=tolerance)


@pytest.mark.parametrize("num", [25, 4000])
def test_probabilities_sum_to_one_and_are_never_certain(num: int) -> None:
    chance = np.random.default_rng(6)
    distribution = fitted(chance.standard_normal(num), np.ones(num))
    directions: Sequence[Direction] = ("buy", "sell", "hold")
    for forecast in (-50.0, -0.3, 0.0, 0.2, 50.0):
        for dead_zone in (0.0, 0.1, 100.0):
            each = [distribution.probability(name, forecast, scale=1.0, dead_zone=dead_zone) for name in directions]
            assert sum(each) == pytest.approx(1.0)
            assert all(0 < value < 1 for value in each[:2])
            assert 0 <= each[2] < 1


def test_a_probability_counts_the_residuals_that_lead_there() -> None:
    distribution = fitted(np.arange(-12.0, 13.0), np.ones(25))
    # 4 + r > 6 for r = 3 … 12; 4 + r < -6 for r = -12, -11
    assert distribution.probability("buy", 4.0, scale=1.0, dead_zone=6.0) == pytest.approx(10.5 / 26)
    assert distribution.probability("sell", 4.0, scale=1.0, dead_zone=6.0) == pytest.approx(2.5 / 26)
    assert distribution.probability("hold", 4.0, scale=1.0, dead_zone=6.0) == pytest.approx(13 / 26)
    assert distribution.probability("buy", 4.0, scale=2.0, dead_zone=6.0) == pytest.approx(11.5 / 26)


def correlated(num: int, seed: int) -> "np.ndarray":
    chance = np.random.default_rng(seed)
    mixing = np.array([[1.0, 0.0, 0.0, 0.0], [0.8, 0.6, 0.0, 0.0], [0.3, 0.2, 0.9, 0.0], [0.0, 0.0, 0.0, 1.0]])
    return (chance.standard_normal((num, 4)) @ mixing.T).astype(np.float32)


FEATURES = ("one", "two", "three", "four")


def test_one_in_a_thousand_usual_rows_is_an_alarm() -> None:
    detector = NoveltyDetector.fit(correlated(20_000, 1), FEATURES)
    fresh = correlated(20_000, 2)
    alarms = np.mean([detector.novelty(row).score > NOVELTY_THRESHOLD for row in fresh])
    assert 0.0005 <= alarms <= 0.003


def test_a_row_scaled_by_fifty_is_an_alarm_that_names_the_feature() -> None:
    detector = NoveltyDetector.fit(correlated(5000, 1), FEATURES)
    row = correlated(1, 3)[0]
    assert detector.novelty(row).score < NOVELTY_THRESHOLD
    assert detector.novelty(50 * row).score > NOVELTY_THRESHOLD
    row[2] = 60.0
    assert detector.novelty(row).top_features[0] == "three"
    assert len(detector.novelty(row).top_features) == 3


def test_an_unusual_combination_of_usual_values_is_an_alarm() -> None:
    """Features one and two go together (correlation 0.8); each value alone is within its range."""
    detector = NoveltyDetector.fit(correlated(5000, 1), FEATURES)
    assert detector.novelty(np.array([2.5, 2.5, 0, 0], np.float32)).score < NOVELTY_THRESHOLD
    assert detector.novelty(np.array([2.5, -2.5, 0, 0], np.float32)).score > NOVELTY_THRESHOLD


def test_a_constant_feature_that_starts_to_move_is_an_alarm() -> None:
    rows = correlated(5000, 1)
    rows[:, 3] = 0.0
    detector = NoveltyDetector.fit(rows, FEATURES)
    row = rows[17].copy()
    assert detector.novelty(row).score < NOVELTY_THRESHOLD
    row[3] = 1.0
    assert detector.novelty(row).score > NOVELTY_THRESHOLD


def test_rows_that_never_vary_have_a_finite_score() -> None:
    detector = NoveltyDetector.fit(np.zeros((200, 2), np.float32), ("one", "two"))
    assert detector.novelty(np.zeros(2, np.float32)).score == 0.0
    assert detector.novelty(np.full(2, 1e9, np.float32)).score == 1e12
    single = NoveltyDetector.fit(correlated(300, 1)[:, :1], ("one",))
    assert single.novelty(np.array([50.0], np.float32)).top_features == ("one",)


def test_json_gives_back_every_bit() -> None:
    forecasts, outcomes, deviation = heteroscedastic(3000, seed=7)
    residuals = fitted(outcomes - forecasts, deviation)
    again = ResidualDistribution.from_json(json.loads(json.dumps(residuals.to_json())))
    assert again.grid_Q.tobytes() == residuals.grid_Q.tobytes()
    assert again.radius == residuals.radius
    novelty = NoveltyDetector.fit(correlated(500, 1), FEATURES)
    same = NoveltyDetector.from_json(json.loads(json.dumps(novelty.to_json())))
    assert same.precision_FF.tobytes() == novelty.precision_FF.tobytes()
    row = correlated(1, 8)[0]
    assert same.novelty(row) == novelty.novelty(row)
