"""Every operation of the running service is borne by a method of the client, and the client knows no other."""

import inspect
from typing import Any

import pytest

from ml_workbench_client import AgentHandle, Bench, DeploymentHandle, Experiment, Job, Listing, Model, fields, routes
from ml_workbench_client.routes import Repeat
from ml_workbench_service.contracts.agents import AgentRequest
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.deployment import DeployRequest
from ml_workbench_service.contracts.experiments import ExperimentRequest
from ml_workbench_service.contracts.jobs import ReplayRequest
from ml_workbench_service.contracts.prediction import PredictRequest
from ml_workbench_service.contracts.resilience import ResilienceRequest
from ml_workbench_service.contracts.training import TrainRequest
from tests.service_process import ServiceProcess

OWN_CLIENTS = "/v2"
"""The Open Inference Protocol has clients of its own."""
METHODS = ("get", "post", "put", "patch", "delete")


def borne() -> dict[str, set[str]]:
    """The table from operation to the methods that bear it."""
    table: dict[str, set[str]] = {}
    for owner in (Bench, Model, Job, Experiment, AgentHandle, DeploymentHandle, Listing):
        for name, member in vars(owner).items():
            marked = member.fget if isinstance(member, property) else member
            for route in getattr(marked, "routes", ()):
                table.setdefault(str(route), set()).add(f"{owner.__name__}.{name}")
    return table


@pytest.fixture(scope="module")
def served(service: ServiceProcess) -> dict[str, dict[str, Any]]:
    document = service.client.get("/openapi.json").json()
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS and not path.startswith(OWN_CLIENTS)
    }


def test_every_operation_of_the_service_is_reached_by_a_method(served: dict[str, Any]) -> None:
    assert sorted(set(served) - set(routes.ROUTES)) == []


def test_every_route_of_the_client_is_served(served: dict[str, Any]) -> None:
    assert sorted(set(routes.ROUTES) - set(served)) == []


def test_every_route_is_borne_by_a_method() -> None:
    assert set(borne()) == set(routes.ROUTES)


def test_only_operations_that_take_a_key_are_repeated_with_one(served: dict[str, dict[str, Any]]) -> None:
    keyed = {
        name
        for name, operation in served.items()
        if any(each["name"].lower() == "idempotency-key" for each in operation.get("parameters", []))
    }
    assert {str(route) for route in routes.ROUTES.values() if route.repeat is Repeat.KEYED} == keyed


def test_what_is_read_alone_may_always_be_repeated() -> None:
    assert all(route.repeat is Repeat.ALWAYS for route in routes.ROUTES.values() if route.method == "GET")
    assert all(route.repeat is Repeat.NEVER for route in routes.ROUTES.values() if route.method == "DELETE")


@pytest.mark.parametrize(
    ("typed", "contract", "elsewhere"),
    [
        (fields.TrainFields, TrainRequest, set()),
        (fields.ExperimentFields, ExperimentRequest, set()),
        (fields.ReplayFields, ReplayRequest, set()),
        (fields.AgentFields, AgentRequest, set()),
        (fields.DeployFields, DeployRequest, set()),
        (fields.ResilienceFields, ResilienceRequest, set()),
        (fields.PredictFields, PredictRequest, {"features", "inputs", "context", "version_id"}),
    ],
)
def test_keyword_arguments_are_the_contracts_keys(typed: Any, contract: type[Contract], elsewhere: set[str]) -> None:
    assert set(typed.__annotations__) | elsewhere == set(contract.model_fields)


def test_filters_are_the_services_query_parameters(served: dict[str, dict[str, Any]]) -> None:
    lists = {
        routes.LIST_MODELS: Bench.models,
        routes.LIST_JOBS: Bench.jobs,
        routes.LIST_DEPLOYMENTS: Bench.deployments,
    }
    for route, method in lists.items():
        asked = {each["name"] for each in served[str(route)]["parameters"] if each["in"] == "query"} - {"cursor"}
        assert asked == set(inspect.signature(method).parameters) - {"self"}, route
    listed = served[str(routes.LIST_PREDICTIONS)]["parameters"]
    asked = {each["name"] for each in listed if each["in"] == "query"} - {"cursor"}
    assert asked == {name.rstrip("_") for name in fields.PredictionFilter.__annotations__}
