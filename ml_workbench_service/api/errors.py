"""Error responses in one shape: the platform's own errors, FastAPI's validation, Starlette's 404 and 405, surprises.

A rejected value is never echoed: validation errors keep path, message and code. Text that is no valid Unicode (a lone
surrogate in a key) is replaced, so that the error itself can be sent.
"""

import logging
import sqlite3
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.requests import ClientDisconnect

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
    StorageFullError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from common_lib.logging import correlation_id
from common_lib.storage import storage_error
from ml_workbench_service.access.operations import methods_of
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.extras import missing_extra
from ml_workbench_service.contracts.rejections import names_of, validation_error

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
    507: (StorageFullError, "the disk is full: free some space, then try again"),
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
    app.add_exception_handler(ClientDisconnect, _gone)


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
    """The answer to an exception nobody foresaw; what a disk or a database refused has its status all the same."""
    if (missing := missing_extra(error)) is not None:
        return render(missing)
    if isinstance(error, OSError | sqlite3.Error):
        told = storage_error(error)
        told.__cause__ = error
        return render(told)
    log.exception("unexpected error", exc_info=error)
    message = "an unexpected error; it is in the service log under this correlation id, please report it"
    return render_quietly(UnexpectedError(message))


def render_quietly(error: PlatformError) -> Response:
    """Like `render`, for what is logged already."""
    body = orjson.dumps(_sendable(error.body(correlation_id())))
    return Response(body, status_code=error.status, media_type="application/json")


async def _gone(_: Request, error: Exception) -> Response:
    """Whoever sent half a body has left: nobody hears this."""
    return Response(status_code=400)


async def _platform(_: Request, error: Exception) -> Response:
    assert isinstance(error, PlatformError)
    return render(error)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return render(validation_error(error.errors(), known=_known_names(request)))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = of_status(error.status_code, most_bytes=request.scope.get(MAX_BODY_SIZE_SCOPE_KEY))
    response.headers.update(error.headers or {})
    if error.status_code == 405 and (methods := methods_of(request.scope["path"])):
        response.headers["Allow"] = ", ".join(methods)  # a router knows those of one route, and a path may have several
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


def _known_names(request: Request) -> list[str]:
    """Keys of the contracts that the matched route takes as its body."""
    field = getattr(request.scope.get("route"), "body_field", None)
    annotation = getattr(getattr(field, "field_info", None), "annotation", None)
    if isinstance(annotation, type) and issubclass(annotation, Contract):
        return list(names_of(annotation))
    return []


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
