"""ASGI middleware and API key: the correlation id, who may enter, JSON only, metrics, and errors nobody foresaw.

Pure ASGI because Starlette's BaseHTTPMiddleware runs the app in another task, where context variables do not reach.
Keys are compared in a dependency of the API routes, never by the path of a request; without an API_KEY the service
answers loopback alone, by the address that the request reached.
"""

import ipaddress
import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common_lib.exceptions import AuthenticationError, UnsupportedMediaTypeError
from common_lib.logging import CORRELATION_PATTERN, correlated, new_correlation_id
from ml_workbench_service.api.errors import of_status, render, unexpected

CORRELATION_KEY = b"x-correlation-id"
ROUTE = "ml_workbench.route"
"""In a scope: the template of the route, where it was not the app's own router that found it."""
log = logging.getLogger(__name__)


class AtTheDoor:
    """The outermost layer: correlation id in and out, media type, metrics, unexpected errors in the one shape."""

    def __init__(self, app: ASGIApp, *, needs_loopback: bool) -> None:
        self._app = app
        self._needs_loopback = needs_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _first_of_each(scope["headers"])
        offered = headers.get(b"x-correlation-id", b"").decode("latin-1")
        identifier = offered if CORRELATION_PATTERN.fullmatch(offered) else new_correlation_id()
        with correlated(identifier):
            await self._answer(scope, receive, send, identifier, headers)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, identifier: str, headers: Mapping[bytes, bytes]
    ) -> None:
        begun = time.perf_counter()
        status = 0
        is_replaced = False

        async def stamped(message: Message) -> None:
            nonlocal status, is_replaced
            if is_replaced:
                return
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and not _is_json(message):  # a library's own words, such as for 413
                    await of_status(message["status"])(scope, receive, stamped)
                    is_replaced = True
                    return
                status = message["status"]
                message["headers"] = [*message["headers"], (CORRELATION_KEY, identifier.encode("latin-1"))]
                _count(scope, status, time.perf_counter() - begun)
            await send(message)

        try:
            if self._needs_loopback and not (is_loopback(scope) and _names_loopback(headers)):
                raise AuthenticationError(
                    "without an API_KEY the service answers loopback only; set API_KEY and send it as X-API-Key"
                )
            _check_media_type(scope, headers)
            await self._app(scope, receive, stamped)
        except (AuthenticationError, UnsupportedMediaTypeError) as error:
            await render(error)(scope, receive, stamped)
        except Exception as error:
            if status:  # the answer is on its way: all that is left is to break it off
                raise
            await unexpected(error)(scope, receive, stamped)


def _first_of_each(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name, which servers write in small letters; of one that stands twice the first."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found.setdefault(name, value)
    return found


def is_loopback(scope: Scope) -> bool:
    """Whether the address that the request reached, and the one it came from, are this machine's own."""
    for end in ("server", "client"):
        address = scope.get(end)
        if address is None or address[0] in ("testserver", "testclient"):
            continue  # a Unix socket, or the in-process test transport
        if not _is_own(address[0]):
            return False
    return True


@lru_cache(maxsize=256)
def _is_own(address: str) -> bool:
    """Whether an IP address is loopback; ::ffff:127.0.0.1 is too."""
    try:
        number = ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(number, "ipv4_mapped", None) or number).is_loopback


def _names_loopback(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the Host that the client believes to speak to is this machine: else a page of the web may have bound its
    own name to 127.0.0.1, so that a browser lets it read the answers."""
    return _is_own_name(headers.get(b"host", b"").decode("latin-1"))


@lru_cache(maxsize=64)
def _is_own_name(named: str) -> bool:
    host = urlsplit(f"//{named}").hostname or "localhost"
    return host in ("localhost", "testserver") or host.endswith(".localhost") or _is_own(host)


KEY_HEADER = APIKeyHeader(
    name="X-API-Key", auto_error=False, description="The service's API_KEY; without one, loopback alone is answered."
)


BEARER = HTTPBearer(auto_error=False, description="The same key, as Prometheus sends it (`credentials_file`).")


class ApiKey:
    """The dependency that compares X-API-Key with the configured key, in constant time."""

    def __init__(self, key: str | None) -> None:
        self._key = key.encode() if key else None

    async def __call__(self, x_api_key: Annotated[str | None, Depends(KEY_HEADER)] = None) -> None:
        """Raises AuthenticationError for a missing or wrong key."""
        self.check(x_api_key)

    async def or_bearer(
        self,
        x_api_key: Annotated[str | None, Depends(KEY_HEADER)] = None,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)] = None,
    ) -> None:
        """The same for scrapers, which send `Authorization: Bearer`; X-API-Key counts where both are there."""
        self.check(bearer.credentials if x_api_key is None and bearer is not None else x_api_key)

    def check(self, key: str | None) -> None:
        """Raises AuthenticationError for a missing or wrong key."""
        if self._key is None:
            return
        if key is None:
            raise AuthenticationError("send your key in the header X-API-Key")
        if not secrets.compare_digest(key.encode("latin-1"), self._key):
            raise AuthenticationError("this key is not the right one; check the header X-API-Key")


def _is_json(message: Message) -> bool:
    return Headers(raw=message["headers"]).get("content-type", "").startswith("application/json")


def _check_media_type(scope: Scope, headers: Mapping[bytes, bytes]) -> None:
    if scope["method"] not in ("POST", "PUT", "PATCH"):
        return
    stated = headers.get(b"content-type", b"")
    if stated == b"application/json":
        return
    if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return
    kind = stated.decode("latin-1").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaTypeError("send JSON with the header Content-Type: application/json")


def _route(scope: Scope) -> str:
    """The matched route's template with the prefixes of its routers, which FastAPI keeps to itself."""
    if told := scope.get(ROUTE):
        return str(told)
    template: str | None = getattr(scope.get("route"), "path", None)
    if template is None:
        return "unmatched"
    words: list[str] = scope["path"].split("/")
    return "/".join(words[: len(words) - len(template.split("/")) + 1]) + template


def _count(scope: Scope, status: int, elapsed_s: float) -> None:
    service = getattr(scope["app"].state, "service", None) if "app" in scope else None
    if service is None:
        return
    route = _route(scope)
    service.metrics.count_answer(scope["method"], route, status, elapsed_s)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("answered", extra={"route": route, "status": status, "elapsed_ms": round(elapsed_s * 1000, 2)})
