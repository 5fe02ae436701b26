"""Figures of the test part beside the baseline's on the same rows, against plain arithmetic."""

import math

import numpy as np
import pytest

from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.evaluation import (
    direction_accuracy,
    errors,
    evaluate,
    headline,
    information_coefficient,
)

LABELS = np.array([0.002, -0.001, 0.0, 0.003, -0.004])
FORECASTS = np.array([0.001, 0.001, 0.001, 0.002, -0.001])


def evaluated(
    name: str = "price_change_1h",
    *,
    labels: Floats = LABELS,
    forecasts: Floats = FORECASTS,
    volatility: Floats | None = None,
    is_simulated: bool = False,
) -> Evaluation:
    return evaluate(
        parse_target(name),
        labels_N=labels,
        predictions_N=forecasts,
        volatility_N=np.full(len(labels), 0.002) if volatility is None else volatility,
        covered_N=np.array([True, True, False, True, True]),
        is_simulated=is_simulated,
    )


def test_errors_are_means_over_the_rows() -> None:
    found = errors(LABELS, FORECASTS)
    squares = [(label - forecast) ** 2 for label, forecast in zip(LABELS, FORECASTS, strict=True)]
    assert found["mse"] == pytest.approx(sum(squares) / 5)
    assert found["rmse"] == pytest.approx(math.sqrt(sum(squares) / 5))
    assert found["mae"] == pytest.approx((0.001 + 0.002 + 0.001 + 0.001 + 0.003) / 5)


def test_direction_counts_only_rows_that_moved_and_a_zero_forecast_as_wrong() -> None:
    assert direction_accuracy(LABELS, FORECASTS) == 3 / 4
    assert direction_accuracy(LABELS, np.zeros(5)) == 0.0
    assert direction_accuracy(np.zeros(5), FORECASTS) is None


def test_the_information_coefficient_is_none_where_nothing_varies() -> None:
    assert information_coefficient(LABELS, 3 * LABELS + 1) == pytest.approx(1.0)
    assert information_coefficient(LABELS, -LABELS) == pytest.approx(-1.0)
    assert information_coefficient(LABELS, np.full(5, 0.1)) is None
    assert information_coefficient(np.zeros(5), FORECASTS) is None


def test_a_price_target_stands_against_the_random_walk() -> None:
    found = evaluated()
    walk = errors(LABELS, np.zeros(5))
    assert found.baselines == {"random_walk": walk}
    assert found.skill == {"mse_against_random_walk": pytest.approx(1 - found.test["mse"] / walk["mse"])}
    assert found.test["interval_coverage"] == 0.8
    assert found.test["num_windows"] == 5
    assert found.test["majority_direction"] == 0.5
    assert found.verdict == "not_judged"


def test_forecasting_nothing_has_no_skill_and_the_truth_all_of_it() -> None:
    assert evaluated(forecasts=np.zeros(5)).skill == {"mse_against_random_walk": 0.0}
    assert evaluated(forecasts=LABELS).skill == {"mse_against_random_walk": 1.0}
    assert evaluated(labels=np.zeros(5)).skill == {"mse_against_random_walk": None}


def test_a_volatility_target_stands_against_its_ewma() -> None:
    labels = np.array([0.001, 0.002, 0.003, 0.002, 0.001])
    volatility = np.array([0.002, np.nan, 0.002, 0.004, 0.001])
    found = evaluated("volatility_1h", labels=labels, forecasts=labels, volatility=volatility)
    baseline = errors(labels, np.array([0.002, 0.002, 0.002, 0.004, 0.001]))  # the median where it is unknown
    assert found.baselines == {"ewma": baseline}
    assert found.skill == {"mse_against_ewma": 1.0}
    assert "direction_accuracy" not in found.test
    assert "majority_direction" not in found.test


def test_simulated_prices_are_never_judged() -> None:
    found = evaluated(is_simulated=True)
    assert found.verdict == "not_applicable"
    assert "simulated" in found.reason


def test_the_cards_headline_has_the_baselines_error_beside_the_models() -> None:
    found = evaluated()
    metrics = headline(found)
    assert metrics["mse"] == found.test["mse"]
    assert metrics["accuracy"] == found.test["direction_accuracy"]
    assert metrics["random_walk_mse"] == found.baselines["random_walk"]["mse"]
    assert metrics["random_walk_mae"] == found.baselines["random_walk"]["mae"]
    assert metrics["skill_mse_against_random_walk"] == found.skill["mse_against_random_walk"]
    assert "accuracy" not in found.test
