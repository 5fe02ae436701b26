"""Door: the page's outermost ASGI layer, over HTTP and websocket alike: Host, Origin, session, security headers.

The page speaks to the service from the service's own machine, so that it must not let in whom the service would not.
A page of the web may bind its own name to 127.0.0.1 (DNS rebinding), or open a websocket to it, which browsers allow
across origins: so Host must name this machine, and Origin the very address that was asked.
"""

import ipaddress
import socket
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_workbench_client.page.options import Options
from ml_workbench_client.page.sessions import COOKIE, Session, Sessions

SESSION = "ml_workbench.session"
"""Under which a request's scope has its session."""
LOGIN_PATH = "/login"
OPEN_PATHS = frozenset({LOGIN_PATH, "/favicon.ico"})
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""The browser asks nobody but the page; templates are compiled in it, which needs eval."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
POLICY_VIOLATION = 1008  # of websockets, RFC 6455


class Door:
    """Lets in who asks for this page by its own name, and has shown the key where there is one."""

    def __init__(self, app: ASGIApp, options: Options, sessions: Sessions) -> None:
        self.app = app  # by this name NiceGUI finds its own app inside
        self._options = options
        self._sessions = sessions
        self._anyone = None if options.needs_key else Session(options.service_url, None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one websocket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None and self._needs_session(scope):
            scope[SESSION] = self._session(headers)
            refusal = self._login(scope) if scope[SESSION] is None else None
        if refusal is None:
            await self.app(scope, receive, _sealed(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        else:
            await refusal(scope, receive, _sealed(send))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "").lower()
        if not self._is_ours(host):
            return PlainTextResponse(
                "This page is not reached by that name. Use http://127.0.0.1 with its port, or set PAGE_URL to the "
                "address at which a proxy offers it.\n",
                status_code=421,
            )
        origin = headers.get("origin")
        if origin is None and scope["type"] == "http":
            return None  # browsers leave it out of plain navigation; what changes anything carries it
        if origin is None or not self._is_same(origin.lower(), host):
            return PlainTextResponse(
                "This page answers requests of its own pages only. Where a proxy changes its address, set PAGE_URL.\n",
                status_code=403,
            )
        return None

    def _is_ours(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        if _is_loopback(name):
            return True
        if not self._options.needs_key:
            return False
        return _is_address(name) or name in _own_names() or (host != "" and host == self._options.page_host)

    def _is_same(self, origin: str, host: str) -> bool:
        parts = urlsplit(origin)
        if self._options.page_url and origin == self._options.page_url.lower():
            return True
        return parts.scheme in ("http", "https") and parts.netloc == host

    def _needs_session(self, scope: Scope) -> bool:
        return scope["path"] not in OPEN_PATHS

    def _session(self, headers: Headers) -> Session | None:
        if self._anyone is not None:
            return self._anyone
        return self._sessions.find(cookie_parser(headers.get("cookie", "")).get(COOKIE))

    def _login(self, scope: Scope) -> Response:
        if scope.get("method") != "GET" or scope["path"].startswith("/_nicegui"):
            return PlainTextResponse("Sign in first: open the page anew.\n", status_code=401)
        asked = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        return RedirectResponse(f"{LOGIN_PATH}?next={quote(asked, safe='')}", status_code=303)


def _sealed(send: Send) -> Send:
    async def sealed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sealed


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        return False
    return (getattr(number, "ipv4_mapped", None) or number).is_loopback


def _is_address(name: str) -> bool:
    """A number cannot be bound to another by whoever rules a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names() -> tuple[str, ...]:
    return socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"
