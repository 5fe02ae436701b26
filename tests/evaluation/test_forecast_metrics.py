"""Figures of the test part beside the baseline's on the same rows, against plain arithmetic."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.evaluation.forecast_metrics import (
    ForecastRows,
    direction_accuracy,
    errors,
    evaluate,
    forecast_differentials,
    headline,
    information_coefficient,
    interval_report,
)
from ml_workbench_service.learning.interfaces.differentials import Differentials, pooled
from ml_workbench_service.market.significance import hac_mean
from tests.market.paired_tests import clark_west, diebold_mariano

pytestmark = pytest.mark.processor

LABELS = np.array([0.002, -0.001, 0.0, 0.003, -0.004])
FORECASTS = np.array([0.001, 0.001, 0.001, 0.002, -0.001])
SIZE = 0.002


def rows_of(
    name: str = "price_change_1h",
    *,
    labels: Floats = LABELS,
    forecasts: Floats = FORECASTS,
    baselines: Mapping[str, Floats] | None = None,
    moments: Ints | None = None,
    units: Floats | None = None,
) -> ForecastRows:
    num = len(labels)
    return ForecastRows(
        target=parse_target(name),
        labels_N=labels,
        predictions_N=forecasts,
        baselines={"random_walk": np.zeros(num)} if baselines is None else baselines,
        moments_N=np.arange(num) if moments is None else moments,
        units_N=np.full(num, SIZE) if units is None else units,
        naive_mae_N=np.full(num, SIZE),
        naive_rmse_N=np.full(num, 2 * SIZE),
    )


def evaluated(name: str = "price_change_1h", *, is_simulated: bool = False, **rows: Any) -> Evaluation:
    return evaluate(rows_of(name, **rows), is_simulated=is_simulated)


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


def test_every_baseline_stands_beside_the_model_on_the_same_rows() -> None:
    drift = np.full(5, 0.0005)
    found = evaluated(baselines={"random_walk": np.zeros(5), "drift": drift})
    walk = errors(LABELS, np.zeros(5))
    assert found.baselines == {"random_walk": walk, "drift": errors(LABELS, drift)}
    assert found.skill["mse_against_random_walk"] == pytest.approx(1 - found.test["mse"] / walk["mse"])
    assert found.skill["mse_against_drift"] == pytest.approx(1 - found.test["mse"] / errors(LABELS, drift)["mse"])
    assert [each.baseline for each in found.comparisons] == ["random_walk", "drift"]
    assert found.test["num_windows"] == 5
    assert found.test["majority_direction"] == 0.5
    assert found.test["mase"] == pytest.approx(errors(LABELS, FORECASTS)["mae"] / SIZE)
    assert found.test["rmsse"] == pytest.approx(errors(LABELS, FORECASTS)["rmse"] / (2 * SIZE))
    assert found.verdict == "not_judged"


def test_forecasting_nothing_has_no_skill_and_the_truth_all_of_it() -> None:
    assert evaluated(forecasts=np.zeros(5)).skill == {"mse_against_random_walk": 0.0}
    assert evaluated(forecasts=LABELS).skill == {"mse_against_random_walk": 1.0}
    assert evaluated(labels=np.zeros(5)).skill == {"mse_against_random_walk": None}


def test_a_volatility_has_no_direction() -> None:
    labels = np.array([0.001, 0.002, 0.003, 0.002, 0.001])
    found = evaluated("volatility_1h", labels=labels, forecasts=labels, baselines={"seasonal_ewma": np.full(5, 0.002)})
    assert found.skill == {"mse_against_seasonal_ewma": 1.0}
    assert not [name for name in found.test if "direction" in name]


def test_the_directions_interval_counts_moments_not_rows_nor_overlapping_labels() -> None:
    chance = np.random.default_rng(0)
    labels, forecasts = chance.standard_normal((2, 400))
    pairs = np.repeat(np.arange(200), 2)
    widths = {}
    for name, moments in (("price_change_1h", np.arange(400)), ("price_change_1h", pairs), ("price_change_4h", pairs)):
        test = evaluated(name, labels=labels, forecasts=forecasts, moments=moments).test
        low, high = test["direction_accuracy_low"], test["direction_accuracy_high"]
        assert low is not None
        assert high is not None
        assert low < test["direction_accuracy"] < high  # type: ignore[operator]
        widths[name, len(np.unique(moments))] = high - low
    one, two, eight = widths.values()
    assert two / one == pytest.approx(math.sqrt(2), rel=0.02)
    assert eight / one == pytest.approx(math.sqrt(8), rel=0.05)


def test_a_comparison_holds_both_tests_of_the_losses_in_units_of_the_labels() -> None:
    chance = np.random.default_rng(1)
    units = np.tile([1.0, 100.0], 300)
    known, noise = chance.standard_normal((2, 600))
    labels, forecasts, moments = units * (known + noise), units * known, np.repeat(np.arange(300), 2)
    (found,) = evaluated(labels=labels, forecasts=forecasts, moments=moments, units=units).comparisons
    own = labels / units
    assert found.loss == "squared_error"
    assert found.model_loss == pytest.approx(np.mean(noise**2))
    assert found.baseline_loss == pytest.approx(np.mean(own**2))
    assert found.skill == pytest.approx(1 - np.mean(noise**2) / np.mean(own**2))
    plain = diebold_mariano(own**2, noise**2, moments_N=moments, horizon=1)
    nested = clark_west(own, baseline=np.zeros(600), model=known, moments_N=moments, horizon=1)
    assert found.clark_west is not None
    assert found.diebold_mariano.p_value == pytest.approx(plain.p_value)
    assert found.clark_west.p_value == pytest.approx(nested.p_value)
    assert found.decisive == found.clark_west
    assert nested.num_moments == 300


def test_class_probabilities_are_compared_by_their_brier_score() -> None:
    chance = np.random.default_rng(2)
    said = chance.dirichlet(np.ones(3), size=500)
    outcomes = np.eye(3)[[chance.choice(3, p=row) for row in said]]
    plain = np.full((500, 3), 1 / 3)
    found = Differentials.of_squares(
        "majority_class", outcomes, model=said, baseline=plain, moments_N=np.arange(500), horizon=1, is_nested=True
    ).comparison()
    assert found.model_loss == pytest.approx(np.mean(np.sum((outcomes - said) ** 2, axis=1)))
    assert found.baseline_loss == pytest.approx(2 / 3)
    assert found.clark_west is not None
    assert found.clark_west.p_value is not None
    assert found.clark_west.p_value < 1e-6


def test_returns_are_compared_by_their_difference_and_more_is_better() -> None:
    chance = np.random.default_rng(3)
    flat, good = np.zeros(500), 0.001 + 0.003 * chance.standard_normal(500)
    days = np.arange(500) * 86_400_000
    found = Differentials.of_returns("flat", good, flat, moments_T=days).comparison()
    assert found.skill == pytest.approx(good.mean())
    assert found.clark_west is None
    assert found.decisive == hac_mean(good)
    bad = Differentials.of_returns("flat", -good, flat, moments_T=days).comparison()
    assert bad.skill == pytest.approx(-good.mean())
    assert found.diebold_mariano.p_value is not None
    assert bad.diebold_mariano.p_value is not None
    assert found.diebold_mariano.p_value < 0.025 < 0.9 < bad.diebold_mariano.p_value


def test_folds_are_pooled_row_by_row() -> None:
    chance = np.random.default_rng(4)
    labels, forecasts = chance.standard_normal((2, 600))
    moments = np.arange(600)
    whole = forecast_differentials(rows_of(labels=labels, forecasts=forecasts, moments=moments))
    parts = [
        forecast_differentials(rows_of(labels=labels[each], forecasts=forecasts[each], moments=moments[each]))
        for each in (slice(0, 200), slice(200, 350), slice(350, 600))
    ]
    assert [each.comparison() for each in pooled(parts)] == [each.comparison() for each in whole]
    assert pooled([]) == []
    assert whole[0].between(200, 350).comparison() == parts[1][0].comparison()


def test_an_intervals_report_counts_calm_and_storm_apart() -> None:
    labels = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    found = interval_report(
        labels, labels - [1, 1, 1, 1, -1], labels + 1, level=0.9, terciles_N=np.array([0, 0, 2, -1, 2])
    )
    assert found.coverage == 0.8
    assert found.coverage_by_tercile == {"low": 1.0, "middle": None, "high": 0.5}
    assert found.mean_width == pytest.approx(np.mean([2, 2, 2, 2, 0]))


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
