"""The OpenAPI document: FastAPI's, and what it cannot know: headers, families, examples, what a stream holds.

All of it by kind, never by route: a new route follows by its function's name, its status codes and its parameters. Of a
2xx answer the example is `answers/<operationId>.json`, of a table also `.csv`, as a running service gave it
(`tests/api/document/test_answers.py`).
"""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, get_args

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from common_lib.logging import CORRELATION_PATTERN
from ml_workbench_service.access.operations import OPERATIONS
from ml_workbench_service.contracts.agents import AgentFamily
from ml_workbench_service.contracts.errors import ErrorBody, failures
from ml_workbench_service.contracts.jobs import JobStreamEvent
from ml_workbench_service.learning.interfaces.family import Family

JSON, CSV, STREAM = "application/json", "text/csv", "text/event-stream"
SCHEMAS = "#/components/schemas/"
TAGS = {
    "health": "Whether the service is up, and how it fares.",
    "models": "Train, ask, look at and archive models.",
    "figures": "What a version achieved, to be looked at.",
    "predictions": "What was predicted, and what came true.",
    "deployments": "Which version is live, since when, and before.",
    "catalogue": "What can be trained, and on what.",
    "market data": "The store's values, point in time.",
    "jobs": "Long work, from its request to its result.",
    "experiments": "Searches over settings.",
    "queue": "The prediction queue, replays into it, and what it withstands.",
    "audit": "Who changed what.",
    "agents": "Agents that learn or trade on the predictions.",
}
HEADERS: dict[str, dict[str, Any]] = {
    "X-Correlation-ID": {
        "description": "The request's own, else one that was made for it; it is in job, stream entries and logs.",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{CORRELATION_PATTERN.pattern}$"},
    },
    "Location": {"description": "Where what was made is.", "schema": {"type": "string", "format": "uri-reference"}},
    "Retry-After": {"description": "Seconds until it is worth asking.", "schema": {"type": "integer", "minimum": 1}},
    "ETag": {"description": "The version's digest, in quotes.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "There where the Idempotency-Key had made this before, and this is the first answer again.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Content-Disposition": {
        "description": "A file name for the table, in every format but JSON.",
        "schema": {"type": "string"},
    },
}
ETAGGED = {"show_model", "show_version", "read_version_series", "draw_figure", "read_report"}
"""Operations that answer with the digest of one version."""


def name_of(route: APIRoute) -> str:
    """The operation's id: the name of the function behind it, a short verb with its object."""
    return route.name


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document of these routes."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        license_info=app.license_info,
        servers=app.servers or [{"url": "/", "description": "The service that this document came from."}],
        routes=app.routes,
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    components["headers"] = HEADERS
    for needless in ("HTTPValidationError", "ValidationError"):
        schemas.pop(needless, None)
    schemas.setdefault("ErrorBody", ErrorBody.model_json_schema())
    _describe_stream(schemas)
    schemas["Family"] = {
        "type": "string",
        "title": "Family",
        "description": "A model family that is installed here, or what an agent learns with.",
        "enum": sorted({*Family.known, *get_args(AgentFamily)}),
    }
    operations = [each for item in found["paths"].values() for each in item.values()]
    for operation in operations:
        _complete(operation)
    _name_scopes(found["paths"])
    for schema in _inside(found):
        _put_right(schema)
    for operation in operations:  # last: examples are data, and hold nulls that FastAPI takes out
        _exemplify(operation)
    used = {tag for operation in operations for tag in operation["tags"]}
    found["tags"] = [{"name": name, "description": about} for name, about in TAGS.items() if name in used]
    return found


def _complete(operation: dict[str, Any]) -> None:
    """Security, failures and headers, by what the operation says of itself."""
    operation.setdefault("security", [])
    refused = failures()[422]["description"]
    responses = operation["responses"]
    responses.setdefault(
        "422", {"description": refused, "content": {JSON: {"schema": {"$ref": f"{SCHEMAS}ErrorBody"}}}}
    )
    parameters = operation.get("parameters", [])
    if parameters:  # of Accept the media types of the answer say all, and OpenAPI wants it left out
        operation["parameters"] = [each for each in parameters if (each["in"], each["name"]) != ("header", "accept")]
    is_keyed = any(each["name"].lower() == "idempotency-key" for each in parameters)
    for status, response in responses.items():
        if status >= "400":  # FastAPI writes the route's own media type; failures are JSON everywhere
            response["content"] = {JSON: next(iter(response["content"].values()))}
        if STREAM in response.get("content", {}):
            response["content"] = {STREAM: {"schema": {"$ref": f"{SCHEMAS}JobStreamEvent"}}}
        sent = _headers(operation["operationId"], status, response, is_keyed=is_keyed)
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in sent}


def _name_scopes(paths: Mapping[str, Mapping[str, Any]]) -> None:
    """Beside each way to send a key, the scope that it needs, where OpenAPI has the roles of other schemes."""
    for path, item in paths.items():
        for method, operation in item.items():
            known = OPERATIONS.get(f"{method.upper()} {path}") or OPERATIONS.get(f"{method.upper()} {_of_path(path)}")
            scope = None if known is None else known.scope
            roles = [] if scope is None else [str(scope)]
            operation["security"] = [{name: roles for name in each} for each in operation["security"]]


def _of_path(path: str) -> str:
    """FastAPI's document leaves out that a parameter takes slashes."""
    return path.replace("{symbol}", "{symbol:path}")


def _headers(operation_id: str, status: str, response: Mapping[str, Any], *, is_keyed: bool) -> Iterator[str]:
    yield "X-Correlation-ID"
    if status in ("201", "202"):
        yield "Location"
    if status in ("202", "429", "503"):
        yield "Retry-After"
    if is_keyed and status < "300":
        yield "Idempotency-Replayed"
    if operation_id in ETAGGED and status < "400":
        yield "ETag"
    if CSV in response.get("content", {}):
        yield "Content-Disposition"


def _describe_stream(schemas: dict[str, Any]) -> None:
    """Each event of a stream by its name; FastAPI describes the frame alone, by a keyword of OpenAPI 3.2."""
    stream = TypeAdapter(JobStreamEvent).json_schema(mode="serialization", ref_template=SCHEMAS + "{model}")
    schemas.update(stream.pop("$defs"))
    schemas["JobStreamEvent"] = stream | {
        "title": "JobStreamEvent",
        "description": "One message of the stream, with its three lines as keys: `data` is JSON.",
    }


def _inside(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of the document."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _inside(each)
    elif isinstance(value, list):
        for each in value:
            yield from _inside(each)


def _put_right(schema: dict[str, Any]) -> None:
    """Names the families, and gives arrays of fixed places the `items` that linters of older drafts ask for."""
    if "prefixItems" in schema:
        schema.setdefault("items", {})
    properties = schema.get("properties")
    if isinstance(properties, dict) and isinstance(properties.get("family"), dict):
        properties["family"] = _of_families(properties["family"])


def _of_families(schema: dict[str, Any]) -> dict[str, Any]:
    family = {"$ref": f"{SCHEMAS}Family"}
    if "anyOf" in schema:
        return schema | {"anyOf": [family if each.get("type") == "string" else each for each in schema["anyOf"]]}
    if schema.get("type") != "string" or "const" in schema or "enum" in schema:
        return schema  # a subset, said in full
    return {name: text for name, text in schema.items() if name not in ("type", "title")} | family


def _exemplify(operation: dict[str, Any]) -> None:
    answers, name = files(__package__).joinpath("answers"), operation["operationId"]
    plain, lines = answers.joinpath(f"{name}.json"), answers.joinpath(f"{name}.csv")
    contents = [each.get("content", {}) for status, each in operation["responses"].items() if status < "300"]
    for content in contents:
        for kind in (JSON, STREAM):
            if kind in content and plain.is_file():
                content[kind]["example"] = orjson.loads(plain.read_bytes())
        if CSV in content and lines.is_file():
            content[CSV]["example"] = lines.read_text(encoding="utf-8")
