"""`/openapi.json`: complete for people, true for programs; schemathesis sends what it allows and what it does not."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema_rs import validator_for
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode

from ml_workbench_service.contracts.errors import ErrorBody
from ml_workbench_service.contracts.jobs import EventType
from tests.api.conftest import Clone
from tests.api.failures import assert_body
from tests.service_process import ServiceProcess

METHODS = ("get", "post", "put", "patch", "delete")
ROUTES = {
    "GET /health",
    "GET /health/live",
    "GET /health/ready",
    "GET /metrics",
    "GET /api/v1/models",
    "GET /api/v1/models/{model_id}",
    "GET /api/v1/models/{model_id}/versions",
    "GET /api/v1/models/{model_id}/versions/{version}",
    "DELETE /api/v1/models/{model_id}/versions/{version}",
    "POST /api/v1/models/{model_id}/versions/{version}/restore",
    "DELETE /api/v1/models/{model_id}",
    "POST /api/v1/models/{model_id}/undeploy",
    "POST /api/v1/models/train",
    "POST /api/v1/models/{model_id}/predict",
    "POST /api/v1/models/{model_id}/predict/batch",
    "POST /api/v1/models/{model_id}/deploy",
    "GET /api/v1/models/{model_id}/monitoring",
    "GET /api/v1/predictions",
    "POST /api/v1/predictions/{prediction_id}/outcome",
    "GET /api/v1/deployments",
    "GET /api/v1/deployments/{deployment_id}",
    "POST /api/v1/deployments/{deployment_id}/rollback",
    "GET /api/v1/model-types",
    "GET /api/v1/features",
    "GET /api/v1/series",
    "GET /api/v1/features/{symbol}",
    "POST /api/v1/features/batch",
    "GET /api/v1/labels/{symbol}",
    "POST /api/v1/experiments",
    "GET /api/v1/experiments",
    "GET /api/v1/experiments/{experiment_id}",
    "GET /api/v1/jobs",
    "GET /api/v1/jobs/{job_id}",
    "GET /api/v1/jobs/{job_id}/events",
    "GET /api/v1/jobs/{job_id}/log",
    "POST /api/v1/jobs/{job_id}/cancel",
    "GET /api/v1/models/{model_id}/versions/{version}/series",
    "GET /api/v1/models/{model_id}/versions/{version}/figures",
    "GET /api/v1/models/{model_id}/versions/{version}/figures/{name}",
    "GET /api/v1/models/{model_id}/versions/{version}/report",
    "GET /api/v1/models/{model_id}/versions/{version}/desk-report",
    "POST /api/v1/models/{model_id}/versions/{version}/importance",
    "GET /api/v1/compare",
    "GET /api/v1/jobs/{job_id}/curves",
    "GET /api/v1/jobs/{job_id}/series",
    "GET /api/v1/experiments/{experiment_id}/trials",
    "DELETE /api/v1/jobs/{job_id}",
    "GET /api/v1/audit",
    "GET /api/v1/queue",
    "GET /api/v1/queue/dead-letters",
    "POST /api/v1/queue/dead-letters/{letter_id}/requeue",
    "DELETE /api/v1/queue/dead-letters/{letter_id}",
    "POST /api/v1/replays",
    "POST /api/v1/resilience",
    "GET /api/v1/resilience/faults",
    "GET /api/v1/agents",
    "POST /api/v1/agents",
    "GET /api/v1/agents/{agent_id}",
    "POST /api/v1/agents/{agent_id}/start",
    "POST /api/v1/agents/{agent_id}/stop",
    "POST /api/v1/agents/{agent_id}/reset",
    "DELETE /api/v1/agents/{agent_id}",
    "GET /api/v1/agents/{agent_id}/q-table",
    "GET /api/v1/agents/{agent_id}/decisions",
    "GET /api/v1/agents/{agent_id}/figures",
    "GET /api/v1/agents/{agent_id}/figures/{name}",
    "GET /api/v1/experiments/{experiment_id}/figures",
    "GET /api/v1/experiments/{experiment_id}/figures/{name}",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/{model_id}",
    "GET /v2/models/{model_id}/ready",
    "GET /v2/models/{model_id}/versions/{version}",
    "GET /v2/models/{model_id}/versions/{version}/ready",
    "POST /v2/models/{model_id}/infer",
    "POST /v2/models/{model_id}/versions/{version}/infer",
}


@pytest.fixture(scope="module")
def document(service: ServiceProcess) -> dict[str, Any]:
    """The served schema."""
    found: dict[str, Any] = service.client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every operation by method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def resolved(document: dict[str, Any], schema: Any) -> Any:
    """A schema with its references followed."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def examples(document: dict[str, Any], operation: dict[str, Any]) -> list[Any]:
    """The examples of an operation's body, wherever they stand."""
    content = operation["requestBody"]["content"]["application/json"]
    schema = resolved(document, content["schema"])
    named = [each["value"] for each in content.get("examples", {}).values()]
    own = [content["example"]] if "example" in content else []
    return [*named, *own, *content["schema"].get("examples", []), *schema.get("examples", [])]


def test_it_has_exactly_the_routes_of_the_contract(document: dict[str, Any]) -> None:
    assert set(operations(document)) == ROUTES


def test_every_operation_says_what_it_does_and_how_it_fails(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
        assert operation["operationId"], name
        for parameter in operation.get("parameters", []):
            assert parameter["schema"], name
        failures = {status: each for status, each in operation["responses"].items() if status >= "400"}
        if "/api/v1" in name:
            assert {"401", "422"} <= set(failures), name
        if "{" in name and "{symbol}" not in name:  # a symbol that the store has not is a 422 that says what it has
            assert "404" in failures, name
        if "requestBody" in operation:
            assert {"413", "415"} <= set(failures), name
        for status, failure in failures.items():
            schema = failure["content"]["application/json"]["schema"]
            shape = "InferenceError" if " /v2" in name else "ErrorBody"  # another protocol's own
            assert schema["$ref"].endswith(f"/{shape}"), (name, status)
            assert failure["description"], (name, status)
    assert set(document["components"]["schemas"]["ErrorBody"]["properties"]) == set(ErrorBody.model_fields)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_whatever_writes_may_find_a_full_disk(document: dict[str, Any]) -> None:
    """If nothing else, a line of the audit log."""
    writing = {
        f"{method} {path}": operation["responses"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method != "get"
    }
    assert len(writing) > 20
    assert [name for name, responses in writing.items() if not {"503", "507"} <= set(responses)] == []


def test_every_body_has_an_example_that_is_valid_by_its_own_schema(document: dict[str, Any]) -> None:
    with_body = {name: each for name, each in operations(document).items() if "requestBody" in each}
    assert len(with_body) == 13
    for name, operation in with_body.items():
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        found = examples(document, operation)
        assert found, name
        for example in found:
            validator_for({**schema, "components": document["components"]}).validate(example)


def test_the_examples_are_answered_as_they_stand(api: httpx.Client, document: dict[str, Any]) -> None:
    path = "POST /api/v1/models/{model_id}/predict"
    for example in examples(document, operations(document)[path]):
        assert api.post("/api/v1/models/small/predict", json=example).status_code == 200
    for example in examples(document, operations(document)[f"{path}/batch"]):
        answer = api.post("/api/v1/models/small/predict/batch", json=example)
        assert {each["status"] for each in answer.json()["predictions"]} == {"ok"}


def test_it_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_operations_have_short_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+){0,3}", name) for name in names)
    assert {"train_model", "predict", "predict_batch", "deploy_model", "list_models"} <= set(names)


def test_no_schema_has_a_property_of_its_own_name(document: dict[str, Any]) -> None:
    """A generated class `Purged` with a property `purged` is one that a generator's own variables get mixed up in."""
    for name, schema in document["components"]["schemas"].items():
        assert re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() not in schema.get("properties", {}), name


def test_every_answer_has_an_example_that_is_valid_by_its_own_schema(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        for status, answer in operation["responses"].items():
            content = answer.get("content", {}) if status < "300" else {}
            if status in ("200", "201", "202"):
                assert any("example" in each for each in content.values()), (name, status)
            for each in content.values():
                if "example" in each:
                    validator_for({**each["schema"], "components": document["components"]}).validate(each["example"])


def test_headers_are_described_where_they_are_sent(document: dict[str, Any]) -> None:
    described = document["components"]["headers"]
    for name, operation in operations(document).items():
        keyed = any(each["name"].lower() == "idempotency-key" for each in operation.get("parameters", []))
        for status, answer in operation["responses"].items():
            sent = set(answer["headers"])
            assert sent <= set(described)
            assert "X-Correlation-ID" in sent, (name, status)
            assert ("Location" in sent) == (status in ("201", "202")), (name, status)
            assert ("Retry-After" in sent) == (status in ("202", "429", "503")), (name, status)
            assert ("Idempotency-Replayed" in sent) == (keyed and status < "300"), (name, status)


def test_every_accepted_job_has_one_shape(document: dict[str, Any]) -> None:
    accepted = [each["responses"]["202"] for each in operations(document).values() if "202" in each["responses"]]
    assert len(accepted) == 6
    for answer in accepted:
        assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobAccepted"}


def test_the_events_of_a_stream_are_schemas_by_name(document: dict[str, Any]) -> None:
    follow = operations(document)["GET /api/v1/jobs/{job_id}/events"]
    stream = resolved(document, follow["responses"]["200"]["content"]["text/event-stream"]["schema"])
    kinds = [resolved(document, each)["properties"]["event"]["const"] for each in stream["oneOf"]]
    assert sorted(kinds) == sorted(EventType.__args__)  # type: ignore[attr-defined]


def moments(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property whose name says that it holds moments."""
    if isinstance(value, dict):
        properties = value.get("properties")
        for name, schema in properties.items() if isinstance(properties, dict) else []:
            if re.fullmatch(r"\w+_(at|date|until)|at|as_of|timestamps?", name):
                yield name, schema
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from moments(each)


def test_no_two_schemas_share_a_name(document: dict[str, Any]) -> None:
    """The document would tell them apart by their modules, and generated clients trip over that."""
    assert [name for name in document["components"]["schemas"] if "__" in name] == []


def test_moments_are_moments_and_families_an_enum(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    found = [(name, str(schema)) for name, schema in moments(schemas) if name != "next_at"]  # outcomes, no moment
    assert len(found) > 40
    assert [each for each in found if "date-time" not in each[1]] == []
    assert {"lstm", "linear", "ppo", "q_learning"} <= set(schemas["Family"]["enum"])
    family = {"$ref": "#/components/schemas/Family"}
    assert schemas["ModelCard"]["properties"]["family"] == family
    assert family in schemas["TrainRequest"]["properties"]["family"]["anyOf"]


@pytest.mark.parametrize("name", sorted(ROUTES))
def test_a_query_parameter_that_the_route_does_not_know_is_refused(
    api: httpx.Client, document: dict[str, Any], name: str
) -> None:
    method, _, path = name.partition(" ")
    known = [each["name"] for each in operations(document)[name].get("parameters", []) if each["in"] == "query"]
    wanted = f"{known[0]}x" if known else "unknown_one"
    fitting = {"symbol": "EURUSD", "version": "1.0.0", "letter_id": "1-0", "name": "equity"}
    place = re.sub(r"\{(\w+)\}", lambda found: fitting.get(found[1], "nobody"), path)
    answer = api.request(method, place, params={wanted: "1"}, json={} if method == "POST" else None)
    assert answer.status_code == 422, answer.text
    if path.startswith("/v2"):
        assert answer.json()["error"].startswith(f"query.{wanted}: ")
    else:
        assert f"query.{wanted}" in [each["path"] for each in answer.json()["details"]["errors"]]


def test_health_is_exactly_the_seeds(api: httpx.Client) -> None:
    answer = api.get("/health")
    assert answer.text == '{"status":"healthy","version":"0.1.0"}'
    things = api.get("/health/ready").json()["things"]
    assert {name: thing["mode"] for name, thing in things.items()} == {
        "feature_store": "embedded",
        "state_dir": "folder",
        "experiment_tracking": "off",
        "redis": "embedded",
        "model_registry": "folder",
        "state_files": "folder",
        "live_models": "folder",
        "inference": "embedded",
        "strategy_engine": "off",
        "agent": "embedded",
    }


@pytest.fixture(scope="module")
def own_model(clone: Clone) -> str:
    """A model that may be deployed as it comes."""
    return clone("made_up")


@pytest.mark.parametrize("name", sorted(ROUTES - {"GET /metrics", "GET /api/v1/jobs/{job_id}/events"}))
def test_whatever_is_sent_no_answer_is_a_fault_of_the_server(
    service: ServiceProcess, api: httpx.Client, document: dict[str, Any], own_model: str, name: str
) -> None:
    method, _, path = name.partition(" ")
    operation = schemathesis.openapi.from_dict(document)[path][method]
    known = {"path_parameters": {"model_id": own_model}} if path.count("{") == 1 and "{model_id}" in path else {}
    cases = operation.as_strategy(**known)
    if operation.body:
        cases |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE, **known)

    @settings(
        max_examples=80 if operation.body else 10,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def check(case: schemathesis.Case) -> None:
        answer = case.call(base_url=service.url, timeout=30)
        for job in answer.headers.get("location", []) if answer.status_code == 202 else []:
            api.post(f"{job}/cancel").raise_for_status()
        for agent in answer.headers.get("location", []) if answer.status_code == 201 else []:
            api.post(f"{agent}/stop").raise_for_status()
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            body = answer.json()
            if path.startswith("/v2"):
                assert list(body) == ["error"]
                return
            assert_body(body, body["error_code"])
            assert answer.headers["x-correlation-id"] == [body["correlation_id"]]

    check()
