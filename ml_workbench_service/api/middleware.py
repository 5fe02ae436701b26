"""ASGI middleware, the outermost layer: correlation id, who may enter, size, JSON only, metrics, unforeseen errors.

Pure ASGI because Starlette's BaseHTTPMiddleware runs the app in another task, where context variables do not reach.
Everything is checked in one order before a byte of the body is read: address, key, rate and scope (`access/gate.py`),
other sites, size, media type. Without any key the service answers loopback alone, by the address that the request
reached.
"""

import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitResponder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common_lib.exceptions import (
    AuthenticationError,
    CrossSiteError,
    PlatformError,
    UnsupportedMediaTypeError,
)
from common_lib.logging import CORRELATION_PATTERN, correlated, correlation_id, new_correlation_id
from ml_workbench_service.access.gate import SEND_KEY, Gate, check_scope
from ml_workbench_service.access.key_ring import Caller
from ml_workbench_service.access.operations import MOST_BODY_BYTES, READING, Operation, methods_of, operation_of
from ml_workbench_service.access.operations import Scope as KeyScope
from ml_workbench_service.api.errors import of_status, render, too_large, unexpected
from ml_workbench_service.api.metrics import Metrics

CORRELATION_KEY = b"x-correlation-id"
ROUTE = "ml_workbench.route"
"""In a scope: the template of the route, where it was not the app's own router that found it."""
CALLER = "ml_workbench.caller"
OPERATION = "ml_workbench.operation"
"""In a scope, from the door on: who asks, and for what."""
DECIDED = "ml_workbench.decided"
"""In a scope whose request the server itself has met at the door: a `Decided`."""
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
NOT_KEPT = (b"cache-control", b"private, no-cache")
"""Of answers that need a key: what stands between must not keep them for others."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Knock:
    """What the door looks at of a request's head.

    Attributes:
        identifier: the correlation id that it brought; empty where there is none that may be kept.
        is_own: whether it came to this machine's loopback, and names it.
    """

    operation: Operation | None
    key: bytes | None
    address: str
    identifier: str
    is_own: bool


@dataclass(frozen=True, slots=True)
class Decided:
    """What the door has decided before the app was asked; with `refusal` the app only says it."""

    identifier: str
    begun_s: float
    refusal: Exception | None


def knock_of(scope: Scope) -> Knock | None:
    """Of a head that nothing but its key may stand against; None for any other, whose fault the app words."""
    headers = _first_of_each(scope["headers"])
    operation = operation_of(scope["method"], scope["path"])
    try:
        _check_head(scope["method"], operation, headers)
        is_own = is_loopback(scope) and _names_loopback(headers)
    except (PlatformError, ValueError):  # a host or an origin may be no address at all
        return None
    return Knock(operation, _key(operation, headers), _address(scope), _identifier(headers), is_own)


def let_in(gate: Gate, knock: Knock) -> Caller:
    """Who asks; raises what stands against it."""
    if not gate.is_guarded and not knock.is_own:
        raise _not_loopback()
    return gate.admit(knock.key, address=knock.address, operation=knock.operation)


class AtTheDoor:
    """Lets requests in or not, and finishes every answer.

    Args:
        gate: who may do what.
        audited: the app for what changes something; None: the same.
        ask: in a predict worker, whether another process knows this guessed key of this address; it raises what
            stands against it.
    """

    def __init__(
        self, app: ASGIApp, *, gate: Gate, audited: ASGIApp | None = None,
        ask: Callable[[bytes, str], Awaitable[bool]] | None = None,
    ) -> None:  # fmt: skip
        self._app = app
        self._audited = audited or app
        self._gate = gate
        self._ask = ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        decided: Decided | None = scope.get(DECIDED)
        headers = _first_of_each(scope["headers"])
        identifier = decided.identifier if decided is not None else _identifier(headers) or new_correlation_id()
        with correlated(identifier):
            await self._answer(scope, receive, send, identifier, headers)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, identifier: str, headers: Mapping[bytes, bytes]
    ) -> None:
        decided: Decided | None = scope.get(DECIDED)
        begun = time.perf_counter() if decided is None else decided.begun_s
        status = 0
        is_replaced = False

        async def stamped(message: Message) -> None:
            nonlocal status, is_replaced
            if is_replaced:
                return
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and not _is_json(message):  # a library's own words, such as for 413
                    await of_status(message["status"], most_bytes=_most_bytes(scope.get(OPERATION)))(
                        scope, receive, stamped
                    )
                    is_replaced = True
                    return
                status = message["status"]
                message["headers"] = [
                    *_not_kept(scope, message), *SECURITY_HEADERS, (CORRELATION_KEY, identifier.encode("latin-1")),
                ]  # fmt: skip
                _count(scope, status, time.perf_counter() - begun)
            await send(message)

        try:
            operation = await self._met(scope, headers) if decided is None else _as_decided(scope, decided)
            app = self._audited if operation is not None and operation.changes else self._app
            await app(scope, receive, stamped)
        except PlatformError as error:
            if status:
                raise
            await render(error)(scope, receive, stamped)
        except Exception as error:
            if status:  # the answer is on its way: all that is left is to break it off
                raise
            await unexpected(error)(scope, receive, stamped)

    async def _met(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Operation | None:
        if self._ask is not None:
            await self._look_at_guess(scope, headers, self._ask)
        return self._let_in(scope, headers)

    async def _look_at_guess(
        self, scope: Scope, headers: Mapping[bytes, bytes], ask: Callable[[bytes, str], Awaitable[bool]]
    ) -> None:
        operation = operation_of(scope["method"], scope["path"])
        key, address = _key(operation, headers), _address(scope)
        is_guess = self._gate.is_guess(key, address=address, operation=operation)
        if is_guess and key is not None and await ask(key, address):
            self._gate.welcome(address)

    def _let_in(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Operation | None:
        """What is asked for, once it is known that this caller may ask for it; raises what stands against it."""
        operation = scope[OPERATION] = operation_of(scope["method"], scope["path"])
        if not self._gate.is_guarded and not (is_loopback(scope) and _names_loopback(headers)):
            raise _not_loopback()
        scope[CALLER] = self._gate.admit(_key(operation, headers), address=_address(scope), operation=operation)
        _check_head(scope["method"], operation, headers)
        return operation


class SizeByOperation:
    """Ends bodies that grow over their operation's limit while they stream; those that say so are refused before."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        await RequestBodyLimitResponder(self._app, _most_bytes(scope.get(OPERATION)))(scope, receive, send)


def _as_decided(scope: Scope, decided: Decided) -> Operation | None:
    """The operation of a request that the door has met before; raises why it is refused."""
    if decided.refusal is not None:
        raise decided.refusal
    operation: Operation | None = scope[OPERATION]
    return operation


def _not_loopback() -> AuthenticationError:
    return AuthenticationError(
        "without an API_KEY the service answers loopback only; set API_KEY and send it as X-API-Key"
    )


def _identifier(headers: Mapping[bytes, bytes]) -> str:
    """The correlation id that was sent, where it may be kept; else empty."""
    offered = headers.get(CORRELATION_KEY, b"").decode("latin-1")
    return offered if CORRELATION_PATTERN.fullmatch(offered) else ""


def _check_head(method: str, operation: Operation | None, headers: Mapping[bytes, bytes]) -> None:
    """Whether anybody may send such a head; raises what stands against it."""
    if method not in READING:
        _check_site(headers)
    _check_size(operation, headers)
    _check_media_type(method, operation, headers)


def _first_of_each(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name, which servers write in small letters; of one that stands twice the first."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found.setdefault(name, value)
    return found


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


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
    name="X-API-Key",
    auto_error=False,
    description="A key of `ml-workbench keys create`, or the service's API_KEY; without any, loopback alone is served.",
)
BEARER = HTTPBearer(auto_error=False, description="The same key, as Prometheus sends it (`credentials_file`).")


async def checked(request: Request, _: Annotated[str | None, Depends(KEY_HEADER)] = None) -> None:
    """The routes' dependency: what the door let in is the operation that the router found, else it needs `admin`.

    The router takes `/features/batch` for the features of a symbol; the table knows it for a path of its own.
    """
    caller = calling(request)
    operation = request.scope.get(OPERATION)
    route = request.scope["route"]
    if operation is None and methods_of(request.scope["path"]):
        raise HTTPException(405)
    if operation is None or not operation.path.endswith(route.path) or operation.method not in route.methods:
        check_scope(caller, KeyScope.ADMIN)


async def checked_with_bearer(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)] = None
) -> None:
    """The same for scrapers, which send `Authorization: Bearer`; X-API-Key counts where both are there."""
    await checked(request)


def calling(request: Request) -> Caller:
    """Who asks; raises AuthenticationError where the door was not passed."""
    caller = request.scope.get(CALLER)
    if not isinstance(caller, Caller):
        raise AuthenticationError(SEND_KEY)
    return caller


async def _caller(request: Request) -> Caller:
    return calling(request)


CallerDep = Annotated[Caller, Depends(_caller)]


def _key(operation: Operation | None, headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that was sent; scrapers may send theirs as a bearer token."""
    key = headers.get(b"x-api-key")
    if key is None and operation is not None and operation.path == "/metrics":
        kind, _, credentials = headers.get(b"authorization", b"").partition(b" ")
        return credentials.strip() or None if kind.lower() == b"bearer" else None
    return key


def _check_site(headers: Mapping[bytes, bytes]) -> None:
    """Refuses what a page of another origin has a browser send; what is no browser sends neither header."""
    site = headers.get(b"sec-fetch-site")
    origin = headers.get(b"origin")
    if site is not None:
        is_ours = site in (b"same-origin", b"none")
    elif origin is not None:
        is_ours = urlsplit(origin.decode("latin-1")).netloc.encode("latin-1") == headers.get(b"host", b"")
    else:
        return
    if not is_ours:
        raise CrossSiteError(
            "a page of another site may change nothing here; send the request from a program, or from /docs"
        )


def _most_bytes(operation: Operation | None) -> int:
    return MOST_BODY_BYTES if operation is None else operation.most_bytes


def _check_size(operation: Operation | None, headers: Mapping[bytes, bytes]) -> None:
    if operation is not None and operation.streamed is not None and _kind(headers) == operation.streamed:
        return  # never held whole
    length = headers.get(b"content-length")
    if length is not None and length.isdigit() and (len(length) > 15 or int(length) > _most_bytes(operation)):
        raise too_large(_most_bytes(operation))


def _not_kept(scope: Scope, message: Message) -> Iterable[tuple[bytes, bytes]]:
    """The answer's headers; where it needs a key and says nothing of caches, that none may keep it."""
    headers: list[tuple[bytes, bytes]] = message["headers"]
    operation = scope.get(OPERATION)
    is_open = operation is not None and operation.scope is None
    if scope["method"] == "GET" and not is_open and not any(name == NOT_KEPT[0] for name, _ in headers):
        return (*headers, NOT_KEPT)
    return headers


def _is_json(message: Message) -> bool:
    return Headers(raw=message["headers"]).get("content-type", "").startswith("application/json")


def _kind(headers: Mapping[bytes, bytes]) -> str:
    """The media type of the body, without its parameters; empty where none is stated."""
    return headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()


def _check_media_type(method: str, operation: Operation | None, headers: Mapping[bytes, bytes]) -> None:
    if method not in ("POST", "PUT", "PATCH"):
        return
    if headers.get(b"content-type") == b"application/json":
        return
    if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return
    kind = _kind(headers)
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    if operation is None or kind not in operation.kinds:
        raise UnsupportedMediaTypeError("send JSON with the header Content-Type: application/json")


def route_of(scope: Scope) -> str:
    """The matched route's template with the prefixes of its routers, which FastAPI keeps to itself."""
    if told := scope.get(ROUTE):
        return str(told)
    template: str | None = getattr(scope.get("route"), "path", None)
    if template is None:
        return "unmatched"
    operation: Operation | None = scope.get(OPERATION)
    if operation is not None and operation.path.endswith(template):
        return operation.path
    words: list[str] = scope["path"].split("/")
    return "/".join(words[: len(words) - len(template.split("/")) + 1]) + template


def _count(scope: Scope, status: int, elapsed_s: float) -> None:
    service = getattr(scope["app"].state, "service", None) if "app" in scope else None
    if service is None:
        return
    note_answer(service.metrics, scope["method"], route_of(scope), status, elapsed_s, correlation_id())


def note_answer(metrics: Metrics, method: str, route: str, status: int, elapsed_s: float, identifier: str) -> None:
    """Counts an answer, and logs it where that is asked for."""
    metrics.count_answer(method, route, status, elapsed_s)
    if log.isEnabledFor(logging.DEBUG):
        told = {"route": route, "status": status, "elapsed_ms": round(elapsed_s * 1000, 2)}
        log.debug("answered", extra={**told, "correlation_id": identifier})
