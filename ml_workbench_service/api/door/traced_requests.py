"""Traced requests: the outermost layer where traces are sent, and no layer at all where they are not.

A request's span goes on with the caller's `traceparent` and is named by its route, as OpenTelemetry's conventions for
HTTP have it. Nothing that was sent is in it: no body, no query, no key. Probes (`/health…`, `/metrics`) are traced for
callers that ask for it by a `traceparent`.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common_lib.logging import CORRELATION_PATTERN
from common_lib.tracing import Attributes, is_tracing, span
from ml_workbench_service.api.middleware import CORRELATION_KEY, route_of

CARRIED = (b"traceparent", b"tracestate")
PROBES = ("/health", "/metrics")
UNMATCHED = "unmatched"


class TracedRequests:
    """Gives every request a span; the stages below it belong to whoever does them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        carrier = {} if scope["type"] != "http" else carrier_of(scope)
        is_probe = scope["type"] == "http" and scope["path"].startswith(PROBES) and not carrier
        if scope["type"] != "http" or is_probe or not is_tracing():
            await self._app(scope, receive, send)
            return
        status, identifier = 0, ""

        async def noted(message: Message) -> None:
            nonlocal status, identifier
            if message["type"] == "http.response.start":
                status = message["status"]
                identifier = next((value for name, value in message["headers"] if name == CORRELATION_KEY), b"").decode(
                    "latin-1"
                )
            await send(message)

        method = scope["method"]
        with span(method, "server", attributes=_asked(scope), carrier=carrier) as opened:
            assert opened is not None, "spans are sent"
            try:
                await self._app(scope, receive, noted)
            finally:
                route = route_of(scope)
                if route != UNMATCHED:
                    opened.rename(f"{method} {route}")
                    opened.note({"http.route": route})
                if status:
                    opened.note({"http.response.status_code": status})
                if CORRELATION_PATTERN.fullmatch(identifier):
                    opened.note({"ml_workbench.correlation_id": identifier})
                if status >= 500:
                    opened.failed(str(status))


def carrier_of(scope: Scope) -> dict[str, str]:
    """The caller's place in a trace; two of the same header are none."""
    found = [(name, value.decode("latin-1")) for name, value in scope["headers"] if name in CARRIED]
    carrier = {name.decode("ascii"): value for name, value in found}
    return carrier if len(carrier) == len(found) and "traceparent" in carrier else {}


def _asked(scope: Scope) -> Attributes:
    server, client = scope.get("server"), scope.get("client")
    found: dict[str, str | int] = {
        "http.request.method": scope["method"],
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if server:
        found["server.address"] = str(server[0])
        if server[1] is not None:
            found["server.port"] = int(server[1])
    if client:
        found["client.address"] = str(client[0])
    return found
