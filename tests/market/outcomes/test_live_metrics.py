"""Live figures against a truth that is known."""

from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.outcomes.live_metrics import LiveRows, calibration, live_figures, share_of, warnings_of

PRICE = parse_target("price_change_1h")


def rows(num: int, **columns: Any) -> LiveRows:
    """Rows of consecutive hours with known outcomes; keyword arguments are columns."""
    nothing, yes, no = np.full(num, np.nan), np.ones(num, dtype=bool), np.zeros(num, dtype=bool)
    filled: dict[str, Any] = {
        "as_of_ms_N": HOUR_MS * np.arange(num),
        "is_known_N": yes,
        "is_open_N": no,
        "is_unavailable_N": no,
        "abstains_N": no,
        "side_N": np.zeros(num, dtype=np.int64),
        **dict.fromkeys(
            ("prediction_N", "realised_N", "confidence_N", "level_N", "lower_N", "upper_N", "volatility_N"), nothing
        ),
        "break_even_N": np.zeros(num),
        "inputs_MF": np.empty((0, 0), dtype=np.float32),
        "inputs_ms_M": np.empty(0, dtype=np.int64),
    }
    return LiveRows(**{**filled, **columns})


def test_errors_stand_beside_those_of_no_change() -> None:
    found = live_figures(
        rows(3, prediction_N=np.array([1.0, 0.0, -1.0]), realised_N=np.array([2.0, 0.0, 1.0])), PRICE, bar_ms=HOUR_MS
    )
    error = found.error
    assert error is not None
    assert (error.mae, error.rmse, error.bias) == (1.0, pytest.approx(np.sqrt(5 / 3)), -1.0)
    assert (error.baseline, error.baseline_mae, error.mae_ratio) == ("zero", 1.0, 1.0)
    assert error.rmse_ratio == pytest.approx(1.0)


def test_volatilities_stand_beside_the_records_own_ex_ante_volatility() -> None:
    table = rows(3, prediction_N=np.full(3, 2.0), realised_N=np.full(3, 1.0), volatility_N=np.array([3.0, np.nan, 3.0]))
    error = live_figures(table, parse_target("volatility_4h"), bar_ms=HOUR_MS).error
    assert error is not None
    assert (error.baseline, error.mae, error.baseline_mae, error.mae_ratio) == ("ex_ante_volatility", 1.0, 2.0, 0.5)


def test_only_buys_and_sells_are_calls_and_no_change_makes_them_wrong() -> None:
    table = rows(
        5,
        prediction_N=np.zeros(5),
        realised_N=np.array([0.1, -0.1, 0.1, 0.0, 0.5]),
        side_N=np.array([1, 1, -1, 1, 0]),
    )
    found = live_figures(table, PRICE, bar_ms=HOUR_MS).direction_accuracy
    assert found is not None
    assert (found.num, found.value) == (4, 0.25)


def test_of_classes_the_stated_one_must_come_true() -> None:
    table = rows(
        4,
        prediction_N=np.array([1.0, -1.0, 0.0, 1.0]),
        realised_N=np.array([1.0, 0.0, 0.0, -1.0]),
        side_N=np.array([1, -1, 0, 1]),
        confidence_N=np.full(4, 0.5),
    )
    found = live_figures(table, parse_target("direction_1h"), bar_ms=HOUR_MS)
    assert found.error is None
    assert found.accuracy is not None
    assert found.direction_accuracy is not None
    assert (found.accuracy.value, found.direction_accuracy.value, found.direction_accuracy.num) == (0.5, 1 / 3, 3)
    assert found.calibration is not None
    assert found.calibration.bins[0].came_true == 0.5


def test_rows_without_an_outcome_count_nowhere() -> None:
    table = rows(
        3,
        is_known_N=np.array([True, False, False]),
        is_open_N=np.array([False, True, False]),
        prediction_N=np.ones(3),
        realised_N=np.array([1.0, np.nan, np.nan]),
    )
    error = live_figures(table, PRICE, bar_ms=HOUR_MS).error
    assert error is not None
    assert error.mae == 0.0
    assert warnings_of(table, most=100) == ["few_outcomes"]
    assert live_figures(rows(0), PRICE, bar_ms=HOUR_MS).error is None


def test_the_standard_error_of_a_coverage_covers_the_truth() -> None:
    """Over 300 samples of 400 bars, the true share lies within two standard errors about as often as it should."""
    for copies in (1, 2):  # two symbols that always agree tell no more than one
        inside = 0
        for seed in range(300):
            holds = np.repeat(np.random.default_rng(seed).random(400) < 0.9, copies)
            found = share_of(holds, np.repeat(np.arange(400), copies), horizon=1)
            assert found.value is not None
            assert found.standard_error is not None
            inside += abs(found.value - 0.9) < 2 * found.standard_error
        assert 0.91 < inside / 300 < 0.99


def test_overlapping_horizons_make_the_standard_error_wider() -> None:
    """What an hour's miss does to an interval over twelve hours, it does to twelve of them."""
    chance = np.random.default_rng(0)
    moves = np.convolve(chance.standard_normal(2000), np.ones(12), mode="valid")
    holds = np.abs(moves) < 1.645 * np.sqrt(12)
    overlapping = share_of(holds, np.arange(len(holds)), horizon=12)
    shuffled = share_of(chance.permutation(holds), np.arange(len(holds)), horizon=1)
    assert overlapping.standard_error is not None
    assert shuffled.standard_error is not None
    assert overlapping.standard_error > 1.8 * shuffled.standard_error


def test_confidence_that_is_right_shows_no_more_error_than_chance() -> None:
    gaps = []
    for seed in range(200):
        chance = np.random.default_rng(seed)
        confidence = chance.uniform(0.1, 0.9, 500)
        found = calibration(confidence, chance.random(500) < confidence)
        assert found is not None
        gaps.append(found.expected_calibration_error / found.chance_error)
        assert sum(each.num for each in found.bins) == 500
    assert np.mean(gaps) == pytest.approx(1.0, abs=0.1)


def test_confidence_that_boasts_is_found_out() -> None:
    chance = np.random.default_rng(0)
    found = calibration(np.full(2000, 0.8), chance.random(2000) < 0.6)
    assert found is not None
    assert found.expected_calibration_error == pytest.approx(0.2, abs=0.04)
    assert found.expected_calibration_error > 5 * found.chance_error
    assert found.brier == pytest.approx(0.6 * 0.04 + 0.4 * 0.64, abs=0.03)
    assert found.brier_of_base_rate == pytest.approx(0.24, abs=0.01)
    (only,) = found.bins
    assert (only.lower, only.upper, only.num) == (0.8, 0.9, 2000)


def test_what_confidence_speaks_of_is_a_move_beyond_the_costs() -> None:
    table = rows(
        6,
        prediction_N=np.zeros(6),
        realised_N=np.array([0.02, 0.005, -0.02, -0.005, 0.005, 0.02]),
        side_N=np.array([1, 1, -1, -1, 0, 0]),
        break_even_N=np.full(6, 0.01),
        confidence_N=np.array([0.15, 0.25, 0.35, 0.45, 0.55, 0.65]),
    )
    found = live_figures(table, PRICE, bar_ms=HOUR_MS).calibration
    assert found is not None
    assert [each.came_true for each in found.bins] == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
