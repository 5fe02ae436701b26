"""Scores are quantiles that go on beyond what was seen, alarms are as rare as asked, and the figures add up."""

import json

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.calibration.anomaly_score import AnomalyScale, detection

pytestmark = pytest.mark.processor

FEATURES = ("calm", "loud", "odd")


def errors(num: int, seed: int) -> Floats:
    """Fat-tailed errors (N, F)."""
    return np.random.default_rng(seed).lognormal(0.0, 1.0, (num, 3)) * np.array([0.1, 5.0, 1.0])


def fitted(*, rate: float = 0.01, num: int = 5000, num_calibration: int = 4000, seed: int = 0) -> AnomalyScale:
    train, calibration = errors(num, seed), errors(num_calibration, seed + 1000)
    return AnomalyScale.fit(
        train.mean(axis=1),
        train,
        features=FEATURES,
        calibration_errors_N=calibration.mean(axis=1),
        expected_alarm_rate=rate,
    )


def test_a_score_is_the_share_of_training_windows_whose_error_is_no_larger() -> None:
    scale, train = fitted(), errors(5000, 0).mean(axis=1)
    for share in (0.05, 0.3, 0.5, 0.9, 0.97, 0.995, 0.999):
        error = float(np.quantile(train, share))
        assert scale.score(error) == pytest.approx(np.mean(train < error), abs=0.002 if share < 0.95 else 0.0005)
    assert scale.score(0.0) == 0.0
    assert scale.score(float(train.min()) / 2) == 0.0


def test_an_error_that_many_windows_share_counts_all_of_them() -> None:
    train = np.concatenate([np.full(500, 1.0), np.linspace(2.0, 3.0, 500)])
    scale = AnomalyScale.fit(
        train, train[:, None], features=("x",), calibration_errors_N=train, expected_alarm_rate=0.05
    )
    assert scale.score(1.0) == pytest.approx(0.5, abs=0.005)
    assert scale.score(0.99) < 0.01
    assert scale.score(2.5) == pytest.approx(0.75, abs=0.005)


def test_scores_rise_with_the_error_also_beyond_everything_seen_and_end_at_one() -> None:
    scale, worst = fitted(), float(errors(5000, 0).mean(axis=1).max())
    ladder = np.concatenate([np.geomspace(1e-3, worst, 300), worst * np.geomspace(1.01, 1000, 50)])
    scores = scale.scores(ladder)
    assert (np.diff(scores) >= 0).all()
    assert (np.diff(scores[ladder > errors(5000, 0).mean(axis=1).min()]) > 0).all()
    assert scale.score(worst) == pytest.approx(5000 / 5001)
    assert scale.score(worst * 1.000001) == pytest.approx(5000 / 5001)
    assert scale.score(2 * worst) < scale.score(4 * worst) < 1.0
    assert scale.score(1e30) == 1.0


def test_the_tail_beyond_the_largest_error_falls_as_the_errors_did() -> None:
    """Pareto errors of exponent 3: twice as large is eight times as rare."""
    train = np.random.default_rng(0).pareto(3.0, 20_000) + 1
    scale = AnomalyScale.fit(
        train, train[:, None], features=("x",), calibration_errors_N=train, expected_alarm_rate=0.01
    )
    worst = float(train.max())
    assert (1 - scale.score(worst)) / (1 - scale.score(2 * worst)) == pytest.approx(8.0, rel=0.25)


@pytest.mark.parametrize("rate", [0.2, 0.05, 0.01])
def test_ordinary_windows_alarm_as_often_as_expected(rate: float) -> None:
    realised = [
        fitted(rate=rate, num=400, num_calibration=200, seed=seed).alarm_rate(errors(2000, 77_000 + seed).mean(axis=1))
        for seed in range(40)
    ]
    assert np.mean(realised) == pytest.approx(rate, rel=0.2)


def test_the_threshold_is_the_conformal_rank_of_the_calibration_part() -> None:
    """Of 99 calibration windows and a rate of 2 %, the 98th: two in a hundred new ones lie above, one has to spare."""
    train, calibration = np.arange(1.0, 1001.0), np.arange(10.0, 1000.0, 10.0)
    scale = AnomalyScale.fit(
        train, train[:, None], features=("x",), calibration_errors_N=calibration, expected_alarm_rate=0.02
    )
    assert not scale.is_extrapolated
    assert scale.threshold == scale.score(980.0)
    assert scale.alarm_rate(np.array([979.0, 980.0, 980.5, 990.0])) == 0.5


def test_a_calibration_part_too_short_for_so_rare_an_alarm_says_so() -> None:
    scale = fitted(rate=0.001, num_calibration=200)
    assert scale.is_extrapolated
    assert scale.threshold >= 0.999
    assert scale.threshold >= scale.scores(errors(200, 1000).mean(axis=1)).max()
    assert not fitted(rate=0.001, num_calibration=4000).is_extrapolated


def test_drivers_are_the_features_above_their_own_ordinary_error() -> None:
    scale = fitted()
    median = np.median(errors(5000, 0), axis=0)
    first, second = scale.drivers(median + np.array([3.0, -1.0, 1.0]))
    assert (first.feature, second.feature) == ("calm", "odd")
    assert (first.share, second.share) == (pytest.approx(0.75), pytest.approx(0.25))
    assert [each.feature for each in scale.drivers(median * np.array([1.0, 1.1, 1.0]))] == ["loud"]
    assert scale.drivers(median) == ()


def test_a_scale_survives_json_to_the_bit() -> None:
    scale = fitted(rate=0.03)
    again = AnomalyScale.from_json(json.loads(json.dumps(scale.to_json())))
    fresh = errors(3000, 5)
    assert again.scores(fresh.mean(axis=1)).tobytes() == scale.scores(fresh.mean(axis=1)).tobytes()
    assert (again.threshold, again.expected_alarm_rate, again.is_extrapolated) == (scale.threshold, 0.03, False)
    assert again.drivers(fresh[0]) == scale.drivers(fresh[0])
    assert len(json.dumps(scale.to_json())) < 40_000


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_equal_errors_alarm_for_anything_larger_and_for_nothing_else(value: float) -> None:
    same = np.full(200, value)
    scale = AnomalyScale.fit(same, same[:, None], features=("x",), calibration_errors_N=same, expected_alarm_rate=0.05)
    assert scale.alarm_rate(same) == 0.0
    assert scale.alarm_rate(np.array([value * 1.01 + 1e-6])) == 1.0


def test_the_figures_of_a_detection_by_hand() -> None:
    """Ten clean windows, one alarms; of two kinds one is found, the other by half; one window in five is injected."""
    clean = np.array([0.95] + [0.1] * 9)
    found = detection(
        clean, {"spike": np.array([0.99, 0.97]), "stale": np.array([0.98, 0.2])}, threshold=0.9, share=0.2
    )
    assert (found["recall_spike"], found["recall_stale"], found["recall"]) == (1.0, 0.5, 0.75)
    assert found["alarm_rate"] == pytest.approx(0.1)
    assert found["precision"] == pytest.approx(0.2 * 0.75 / (0.2 * 0.75 + 0.8 * 0.1))
    # three injected of weight 0.05 lead, then a false alarm of weight 0.08, then the last injected one
    assert found["average_precision"] == pytest.approx(0.75 + 0.25 * 0.2 / 0.28)


def test_average_precision_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    chance = np.random.default_rng(0)
    clean, a, b = (np.round(chance.normal(mean, 1, num), 1) for mean, num in ((0, 500), (1, 40), (2, 90)))
    found = detection(clean, {"a": a, "b": b}, threshold=1.0, share=0.1)["average_precision"]
    truth = np.concatenate([np.zeros(500), np.ones(130)])
    weights = np.concatenate([np.full(500, 0.9 / 500), np.full(40, 0.05 / 40), np.full(90, 0.05 / 90)])
    wanted = average_precision_score(truth, np.concatenate([clean, a, b]), sample_weight=weights)
    assert found == pytest.approx(wanted, rel=1e-9)


def test_a_detector_that_never_alarms_has_no_precision_and_no_recall() -> None:
    found = detection(np.zeros(5), {"spike": np.zeros(5)}, threshold=0.5, share=0.05)
    assert (found["precision"], found["recall"], found["alarm_rate"]) == (0.0, 0.0, 0.0)
    assert found["average_precision"] == pytest.approx(0.05)  # chance
