"""Operations: every route of the app has exactly one scope, and paths find the operation that the router finds."""

from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Match

from ml_workbench_service.access.operations import OPERATIONS, Scope, operation_of
from ml_workbench_service.app import create_app
from ml_workbench_service.settings import Settings

OPEN = {"/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings(API_KEY="a-key-of-tests-only")).openapi()


def named(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": each for path, item in document["paths"].items() for method, each in item.items()
    }


def test_every_operation_has_exactly_one_scope_in_the_document(document: dict[str, Any]) -> None:
    for name, operation in named(document).items():
        roles = {tuple(each) for way in operation["security"] for each in way.values()}
        if name.partition(" ")[2] in OPEN:
            assert roles == set(), name
        else:
            assert len(roles) == 1, f"{name} has no line in access/operations.py"
            assert [Scope(each) for each in roles.pop()] != []


def test_the_table_has_no_line_that_no_route_answers(document: dict[str, Any]) -> None:
    served = {name.replace("{symbol}", "{symbol:path}") for name in named(document)}
    pages = {name for name, each in OPERATIONS.items() if each.scope is None and each.path not in OPEN}
    assert set(OPERATIONS) - pages == served


def test_whatever_changes_something_is_audited_but_for_what_is_named_here() -> None:
    unaudited = {
        name
        for name, each in OPERATIONS.items()
        if each.method != "GET" and not each.changes and not each.is_workers  # of one job, audited when it publishes
    }
    assert unaudited == {
        "POST /api/v1/features/batch",
        "POST /api/v1/models/{model_id}/predict",
        "POST /api/v1/models/{model_id}/predict/batch",
        "POST /v2/models/{model_id}/infer",
        "POST /v2/models/{model_id}/versions/{version}/infer",
    }
    assert not [name for name, each in OPERATIONS.items() if each.method == "GET" and each.changes]


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("POST", "/api/v1/models/train", "POST /api/v1/models/train"),
        ("GET", "/api/v1/models/train", "GET /api/v1/models/{model_id}"),
        ("DELETE", "/api/v1/models/train", "DELETE /api/v1/models/{model_id}"),
        ("POST", "/api/v1/models/train/predict", "POST /api/v1/models/{model_id}/predict"),
        ("GET", "/api/v1/features/EUR/USD", "GET /api/v1/features/{symbol:path}"),
        ("POST", "/api/v1/features/batch", "POST /api/v1/features/batch"),
        ("GET", "/api/v1/features/batch", None),
        ("GET", "/api/v1/features/batch/EUR", "GET /api/v1/features/{symbol:path}"),
        ("HEAD", "/docs-assets/a/b.css", "GET /docs-assets/{file:path}"),
        ("GET", "/", "GET /"),
        ("GET", "/api/v1/models/", None),
        ("GET", "/api/v1//models", None),
        ("PUT", "/health", None),
        ("GET", "", None),
    ],
)
def test_a_path_finds_its_operation(method: str, path: str, found: str | None) -> None:
    for _ in range(2):  # the second time from memory
        operation = operation_of(method, path)
        assert (operation.name if operation else None) == found


def test_parameters_are_the_parts_in_braces() -> None:
    operation = OPERATIONS["DELETE /api/v1/models/{model_id}/versions/{version}"]
    assert operation.parameters("/api/v1/models/m/versions/1.0.0") == {"model_id": "m", "version": "1.0.0"}


def test_hidden_routes_are_in_the_table_too() -> None:
    app = create_app(Settings())
    hidden = [route for route in app.routes if isinstance(route, APIRoute) and not route.include_in_schema]
    assert len(hidden) >= 3
    for route in hidden:
        (method,) = route.methods - {"HEAD"}
        scope = {"type": "http", "method": method, "path": route.path, "root_path": "", "headers": []}
        assert route.matches(scope)[0] is Match.FULL
        assert operation_of(method, route.path) is not None, route.path


def test_every_operation_of_workers_has_a_route_and_no_scope() -> None:
    """They are not in the document; their routes look at the token of a job's attempt."""
    app = create_app(Settings())
    ours = [each for each in OPERATIONS.values() if each.is_workers]
    assert len(ours) == 20
    for each in ours:
        path = each.path.replace("{file:path}", "a/b").replace("{", "").replace("}", "")
        scope = {"type": "http", "method": each.method, "path": path, "root_path": "", "headers": []}
        assert any(route.matches(scope)[0] is Match.FULL for route in app.routes), each.name
        assert operation_of(each.method, path) is each
        assert each.scope is None
