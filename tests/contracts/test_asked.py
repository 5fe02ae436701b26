"""Numbers of requests are numbers as they are written: over every numeric field of every contract that people send."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from pydantic import ValidationError

import ml_workbench_service.contracts as contracts
from ml_workbench_service.contracts.agent_tables import AgentDecisionRow
from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.experiments import SearchDimension
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.contracts.rejections import of_pydantic
from ml_workbench_service.contracts.series import columns_of
from ml_workbench_service.contracts.training import SEED_EXAMPLE, TrainRequest

for _module in pkgutil.walk_packages(contracts.__path__, f"{contracts.__name__}."):
    importlib.import_module(_module.name)

REFUSALS = {"no_number", "too_small", "float_type", "int_type"}
COLUMNS: set[tuple[type[Asked], str]] = set()
"""Of the fields below, those that hold data, in which a denormal is what a market came to: the columns of `/predict`
are dictionaries, and have a test of their own."""
REQUESTS = {
    "AgentRequest", "DeployRequest", "ExperimentRequest", "FeatureRequest", "ImportanceRequest", "OutcomeReport",
    "PredictBatchRequest", "PredictRequest", "ReplayRequest", "ResilienceRequest", "TrainRequest",
}  # fmt: skip


def asked(kind: type[Asked] = Asked) -> Iterator[type[Asked]]:
    for each in kind.__subclasses__():
        yield each
        yield from asked(each)


def leaves(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return set().union(*map(leaves, inner)) if inner else {annotation}


def holds_lists(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple) or any(map(holds_lists, get_args(annotation)))


NUMERIC = sorted(
    (
        (kind, name)
        for kind in asked()
        for name, field in kind.model_fields.items()
        if leaves(field.annotation) & {int, float}
        and not leaves(field.annotation) & {str, bool, Any}
        and dict not in (get_origin(field.annotation), *map(get_origin, get_args(field.annotation)))
    ),
    key=lambda each: (each[0].__name__, each[1]),
)


@pytest.mark.parametrize(("kind", "name"), NUMERIC, ids=[f"{kind.__name__}.{name}" for kind, name in NUMERIC])
def test_what_only_looks_like_a_number_is_refused_at_its_place(kind: type[Asked], name: str) -> None:
    within_list = holds_lists(kind.model_fields[name].annotation)
    for value in (True, False, "2", "0.5", " 7 ", *([] if (kind, name) in COLUMNS else [5e-324, -1e-310])):
        body = {name: [value] if within_list else value}
        for validate in (kind.model_validate, lambda given: kind.model_validate_json(json.dumps(given))):
            with pytest.raises(ValidationError) as refused:
                validate(body)
            types = {each["type"] for each in refused.value.errors() if each["loc"][:1] == (name,)}
            assert types & REFUSALS, (value, types)


def test_every_request_is_one_of_them() -> None:
    assert {each.__name__ for each in asked()} >= REQUESTS
    assert len(NUMERIC) > 30


@pytest.mark.parametrize("name", ["features", "inputs"])
def test_a_column_of_data_takes_every_finite_number_and_nothing_else(name: str) -> None:
    about = {"symbol": "EUR/USD", "timeframe": "1h"} if name == "features" else {}
    for value in (5e-324, -1e-310, 0.0, 7):
        found = PredictRequest.model_validate_json(json.dumps({**about, name: {"a": [1.5, value]}})).columns
        assert found == {"a": [1.5, value]}
    for text in ("true", '"2"', "null", "NaN", "Infinity", "1e999"):
        with pytest.raises(ValidationError):
            PredictRequest.model_validate_json(json.dumps({**about, name: {"a": [0]}}).replace("[0]", f"[1.5, {text}]"))


@pytest.mark.parametrize("value", [5e-324, -1e-310])
def test_settings_in_lists_take_no_denormal(value: float) -> None:
    for kind, body in (
        (TrainRequest, {**SEED_EXAMPLE, "quantiles": [0.1, abs(value)]}),
        (SearchDimension, {"choices": [0.1, value]}),
    ):
        with pytest.raises(ValidationError, match="nearer to 0"):
            kind.model_validate(body)


def test_a_whole_number_may_have_a_point() -> None:
    read = TrainRequest.model_validate_json(json.dumps({**SEED_EXAMPLE, "seeds": [1.0]}))
    assert read.seeds == [1]


@pytest.mark.parametrize(
    ("position", "path"),
    [
        ({"rule": "kelly", "fraction": "half"}, "body.position.fraction"),
        ([{"rule": "kelly"}, {"rule": "kelly", "fraction": True}], "body.position.1.fraction"),
    ],
)
def test_what_is_wrong_in_one_rule_or_in_one_of_several_is_said_once_and_at_its_place(
    position: object, path: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        TrainRequest.model_validate({**SEED_EXAMPLE, "position": position})
    told = of_pydantic(refused.value, TrainRequest, prefix="body").details["errors"]
    assert [each["path"] for each in told] == [path]


def test_a_column_of_sizes_is_one_of_numbers() -> None:
    kinds = {each.name: each.kind for each in columns_of(AgentDecisionRow)}
    assert kinds["position"] == "number"
