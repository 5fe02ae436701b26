"""What may be varied, in which types, and that a trial's parameters make a request again."""

from typing import Any

import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.experiments import SearchDimension
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.families.lstm import Lstm
from ml_workbench_service.search.space import (
    Dimension,
    dimensions,
    grid_points,
    grid_size,
    trial_request,
    variants,
    with_horizon,
)

BASE = TrainRequest.model_validate(
    {
        "name": "Base",
        "model_type": "time_series",
        "features": ["rsi_14"],
        "target": "price_change_1h",
        "symbols": ["EUR/USD"],
        "start_date": "2024-01-01T00:00:00Z",
        "end_date": "2025-01-01T00:00:00Z",
        "hyperparameters": {"epochs": 3, "dropout": 0.1},
    }
)


def space(base: TrainRequest = BASE, **asked: dict[str, Any]) -> tuple[Dimension, ...]:
    parsed = {name: SearchDimension.model_validate(each) for name, each in asked.items()}
    return dimensions(parsed, base, Lstm.Hyperparameters)


def test_a_range_takes_the_type_of_its_hyper_parameter() -> None:
    units, rate = space(lstm_units={"low": 8, "high": 64}, learning_rate={"low": 1e-4, "high": 0.1, "log": True})
    assert (units.kind, rate.kind) == ("int", "float")
    assert [repr(end) for end in units.ends] == ["8", "64"]
    assert rate.is_log


def test_a_step_that_does_not_meet_the_upper_end_stops_before_it() -> None:
    (lookback,) = space(lookback={"low": 8, "high": 50, "step": 8})
    assert lookback.ends == (8, 48)
    assert lookback.grid == (8, 16, 24, 32, 40, 48)
    (dropout,) = space(dropout={"low": 0.1, "high": 0.3, "step": 0.1})
    assert dropout.grid == pytest.approx((0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("asked", "path", "words"),
    [
        ({"lstm_unit": {"low": 1, "high": 2}}, "lstm_unit", "did you mean lstm_units"),
        ({"lstm_units": {"low": 8.5, "high": 16}}, "lstm_units", "whole number"),
        ({"horizon": {"low": 0, "high": 4}}, "horizon", "at least 1"),
        ({"horizon": {"choices": [1, 0.5]}}, "horizon", "whole number"),
        ({"features": {"choices": ["rsi_14"]}}, "features", "lists of names"),
        ({"features": {"low": 1, "high": 2}}, "features", "lists of names"),
        ({"dropout": {"choices": [["a"]]}}, "dropout", "single values"),
        ({"dropout": {"choices": [0.1, 0.1]}}, "dropout", "stands twice"),
    ],
)
def test_what_cannot_be_varied_is_refused_under_its_own_name(asked: Any, path: str, words: str) -> None:
    with pytest.raises(DataValidationError) as refused:
        space(**asked)
    (error,) = refused.value.details["errors"]
    assert error["path"] == f"body.search_space.{path}"
    assert words in error["message"]


def test_a_horizon_needs_one_target() -> None:
    several = BASE.model_copy(update={"target": ["price_change_1h", "price_change_2h"]})
    with pytest.raises(DataValidationError, match="one target"):
        space(several, horizon={"choices": [1, 2]})


def test_a_grid_counts_its_points_and_refuses_what_cannot_be_counted() -> None:
    found = space(lstm_units={"choices": [8, 16]}, lookback={"low": 3, "high": 5}, dropout={"choices": [0.0, 0.5]})
    assert grid_size(found) == 12
    points = grid_points(found)
    assert len({tuple(point.items()) for point in points}) == 12
    assert points[1] == {"lstm_units": 8, "lookback": 3, "dropout": 0.5}
    with pytest.raises(DataValidationError, match="needs `choices`, or `step`"):
        grid_size(space(dropout={"low": 0.0, "high": 0.5}))
    with pytest.raises(DataValidationError, match="over 10000 points"):
        grid_size(space(batch_size={"low": 1, "high": 60_000}))


def test_a_trial_is_the_base_with_its_parameters() -> None:
    params = {"dropout": 0.4, "lookback": 6, "features": ["rsi_14", "macd"], "horizon": 4}
    made = trial_request(BASE, params)
    assert made.hyperparameters == {"epochs": 3, "dropout": 0.4, "lookback": 6}
    assert (made.features, made.target) == (["rsi_14", "macd"], "price_change_4h")
    same = ("symbols", "start_date", "end_date", "validation_split", "seeds", "name")
    assert all(getattr(made, name) == getattr(BASE, name) for name in same)
    assert trial_request(BASE, {}) == BASE


@pytest.mark.parametrize(
    ("target", "rewritten"),
    [
        ("price_change_1h", "price_change_12h"),
        ("log_return_3", "log_return_12"),
        ("volatility_5d", "volatility_12d"),
        ("market_regime", "market_regime_12"),
        ("triple_barrier_4h", "triple_barrier_12h"),
    ],
)
def test_a_horizon_keeps_the_measure_and_the_bars(target: str, rewritten: str) -> None:
    assert with_horizon(target, 12) == rewritten
    (before,), (after,) = (BASE.model_copy(update={"target": each}).parsed_targets() for each in (target, rewritten))
    assert (after.measure, after.timeframe, after.horizon) == (before.measure, before.timeframe, 12)


def test_every_choice_and_each_end_is_a_variant_with_its_path() -> None:
    found = space(dropout={"low": 0.0, "high": 0.5}, features={"choices": [["rsi_14"], ["macd"]]})
    assert variants(found) == [
        ("body.search_space.dropout", {"dropout": 0.0}),
        ("body.search_space.dropout", {"dropout": 0.5}),
        ("body.search_space.features.choices.0", {"features": ["rsi_14"]}),
        ("body.search_space.features.choices.1", {"features": ["macd"]}),
    ]
