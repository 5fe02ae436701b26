"""Error responses in one shape: the platform's own errors, FastAPI's validation, Starlette's 404 and 405, surprises.

A rejected value is never echoed: validation errors keep path, message and code. Text that is no valid Unicode (a lone
surrogate in a key) is replaced, so that the error itself can be sent.
"""

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY

from common_lib.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConflictError,
    DataValidationError,
    InsufficientMemoryError,
    MethodNotAllowedError,
    PayloadTooLargeError,
    PlatformError,
    RateLimitError,
    RouteNotFoundError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from common_lib.logging import correlation_id
from ml_workbench_service.contracts.contract import Contract

NOT_SENT = ("string_type", "list_type")
"""What pydantic says of a shape that was not sent."""
MOST_ERRORS = 50
MOST_CHARACTERS = 200

log = logging.getLogger(__name__)

_BY_STATUS: Mapping[int, tuple[type[PlatformError], str]] = {
    401: (AuthenticationError, "send your key in the header X-API-Key"),
    403: (AuthorizationError, "this key may not do that"),
    404: (RouteNotFoundError, "no such route; GET /docs lists them"),
    405: (MethodNotAllowedError, "this route does not take this method; GET /docs lists them"),
    409: (ConflictError, "the present state does not allow this"),
    413: (PayloadTooLargeError, "the body is too large; send fewer rows or items at a time"),
    415: (UnsupportedMediaTypeError, "send JSON with the header Content-Type: application/json"),
    429: (RateLimitError, "too many requests; wait, then try again"),
    503: (UnavailableError, "not available at the moment; try again"),
}


class UnexpectedError(PlatformError):
    """Something nobody foresaw; the service log has the traceback under the correlation id."""

    error_code = "INTERNAL_ERROR"


def install(app: FastAPI) -> None:
    """Renders every failure of the app in the one shape."""
    app.add_exception_handler(PlatformError, _platform)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)


def render(error: PlatformError) -> Response:
    """The answer for an error; logs those that are not the request's own fault, as asking for too much memory is."""
    if error.status >= 500 and not isinstance(error, InsufficientMemoryError):
        log.error(error.message, extra={"error_code": error.error_code}, exc_info=error if error.__cause__ else None)
    headers = {}
    if error.retry_after_s is not None or error.status in (429, 503):
        headers["Retry-After"] = str(error.retry_after_s or 1)
    body = orjson.dumps(_sendable(error.body(correlation_id())), option=orjson.OPT_NON_STR_KEYS)
    return Response(body, status_code=error.status, headers=headers, media_type="application/json")


def unexpected(error: Exception) -> Response:
    """The answer to an exception nobody foresaw."""
    log.exception("unexpected error", exc_info=error)
    message = "an unexpected error; it is in the service log under this correlation id, please report it"
    return render_quietly(UnexpectedError(message))


def render_quietly(error: PlatformError) -> Response:
    """Like `render`, for what is logged already."""
    body = orjson.dumps(_sendable(error.body(correlation_id())))
    return Response(body, status_code=error.status, media_type="application/json")


async def _platform(_: Request, error: Exception) -> Response:
    assert isinstance(error, PlatformError)
    return render(error)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return render(validation_error(error.errors(), known=_known_names(request)))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = of_status(error.status_code, most_bytes=request.scope.get(MAX_BODY_SIZE_SCOPE_KEY))
    response.headers.update(error.headers or {})  # such as `Allow`
    return response


def too_large(most_bytes: int) -> PayloadTooLargeError:
    """A body over its operation's limit."""
    limit = most_bytes // 1024
    told = f"{limit // 1024} MiB" if limit >= 1024 else f"{limit} KiB"
    return PayloadTooLargeError(f"the body is over {told}, the limit of this operation; send less at a time")


def of_status(status: int, *, most_bytes: int | None = None) -> Response:
    """The one body for a failure of which only the status is known, because a library answered it."""
    if status == 413 and most_bytes is not None:
        return render(too_large(most_bytes))
    if status in _BY_STATUS:
        kind, message = _BY_STATUS[status]
        return render(kind(message))
    if status < 500:
        return render(DataValidationError.at("body", "the request could not be read; send JSON as GET /docs shows it"))
    return render(UnexpectedError("the request could not be answered; try again, and report it if it stays so"))


def validation_error(errors: Sequence[Any], *, known: Sequence[str] = (), prefix: str = "") -> DataValidationError:
    """One DataValidationError for pydantic's findings: path, message and code of each; no values.

    Args:
        errors: pydantic's or FastAPI's list.
        known: names that a misspelt key is compared with.
        prefix: put before each path, such as "body".
    """
    told = _of_the_shape_sent(errors)
    explained = [_explained(each, known, prefix) for each in told[:MOST_ERRORS]]
    first = explained[0] if explained else {"path": prefix, "message": "not usable", "code": "invalid"}
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return DataValidationError(
        f"{first['path']}: {first['message']}{more}; correct it and send the request again",
        details={"errors": explained},
    )


def of_pydantic(error: ValidationError, contract: type[Contract], *, prefix: str) -> DataValidationError:
    """A contract's own ValidationError as the platform's."""
    return validation_error(
        error.errors(include_url=False, include_input=False), known=list(names_of(contract)), prefix=prefix
    )


def names_of(contract: type[Contract]) -> Iterator[str]:
    """The keys of a contract and of the contracts inside it."""
    for name, field in contract.model_fields.items():
        yield name
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, Contract):
                yield from names_of(inner)


def _of_the_shape_sent(errors: Sequence[Any]) -> list[Any]:
    """Of a key that takes a text or a list, only what is said of the one that was sent, and under the key's own path.

    Pydantic tells of both, each under a path that ends in its own name for the shape.
    """
    places = [tuple(part for part in each.get("loc", ()) if not _names_a_shape(part)) for each in errors]
    told = []
    for each, place in zip(errors, places, strict=True):
        further = [
            other
            for other, other_place in zip(errors, places, strict=True)
            if other_place[: len(place)] == place and (len(other_place) > len(place) or other["type"] not in NOT_SENT)
        ]
        if place == tuple(each.get("loc", ())) or each["type"] not in NOT_SENT or not further:
            told.append({**each, "loc": place})
    return told


def _names_a_shape(part: object) -> bool:
    return re.fullmatch(r"constrained-\w+|list\[constrained-\w+\]", str(part)) is not None


def _explained(error: Mapping[str, Any], known: Sequence[str], prefix: str) -> dict[str, str]:
    path = ".".join(_printable(part) for part in ((prefix,) if prefix else ()) + tuple(error.get("loc", ())))
    message = str(error.get("msg", "not usable")).removeprefix("Value error, ")
    if error.get("type") == "extra_forbidden":
        near = difflib.get_close_matches(path.rpartition(".")[2], known, n=1, cutoff=0.5)
        message = "this key is not known" + (f"; did you mean {near[0]}?" if near else "")
    if error.get("type") == "json_invalid":
        message = "the body is not valid JSON"
    return {"path": path, "message": _printable(message), "code": str(error.get("type", "invalid"))}


def _known_names(request: Request) -> list[str]:
    """Keys of the contracts that the matched route takes as its body."""
    field = getattr(request.scope.get("route"), "body_field", None)
    annotation = getattr(getattr(field, "field_info", None), "annotation", None)
    if isinstance(annotation, type) and issubclass(annotation, Contract):
        return list(names_of(annotation))
    return []


def _printable(part: object) -> str:
    text = str(part).encode("utf-8", "replace").decode()
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"


def _sendable(value: Any) -> Any:
    """Plain JSON out of details: strings cleaned, numbers that are no numbers as null."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_sendable(str(key)): _sendable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_sendable(each) for each in value]
    if isinstance(value, float) and not -1e308 < value < 1e308:
        return None
    return value if isinstance(value, int | float | bool | None) else str(value)
