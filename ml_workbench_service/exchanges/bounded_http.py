"""HTTP whose whole exchange ends in time, however slowly it drips.

httpx's own timeouts begin anew with each byte that arrives: a server that sends one a second, in its headers or its
body, holds a caller for ever. `within` says when everything has to be over; `BoundedTransport` gives each reading,
writing and connecting what is left of it. Without `within` httpx's timeouts alone hold.

    client = httpx.Client(transport=BoundedTransport(retries=2), timeout=30.0)
    with within(30.0), client.stream("GET", url) as answer: …
"""

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

from common_lib.tracing import outgoing, span, traceparent

_ends_at_s: ContextVar[float | None] = ContextVar("ends_at_s", default=None)  # time.monotonic()
MOST_OF_A_PROBE = 2**20
MOST_CONNECTIONS = 100
IDLE_S = 2.0
"""A connection that rested longer is not used again: its server may have closed it, and that may not have come here."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Exchanges of this thread that begin and are read in here end within so many seconds, with httpx.TimeoutException.

    Must be around the reading of the body, too.
    """
    token = _ends_at_s.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends_at_s.reset(token)


class BoundedTransport(httpx.BaseTransport):
    """A pool of connections that keeps to `within`; no proxies.

    Args:
        retries: of connecting alone.
    """

    def __init__(self, *, retries: int = 0) -> None:
        context = httpx.create_ssl_context()  # SSL_CERT_FILE counts, as with httpx
        self._pool = httpcore.ConnectionPool(
            ssl_context=context, retries=retries, network_backend=_BoundedBackend(),
            max_connections=MOST_CONNECTIONS, keepalive_expiry=IDLE_S,
        )  # fmt: skip

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange, up to its headers; the body is read later, as the caller asks for it."""
        assert isinstance(request.stream, httpx.SyncByteStream)
        url = request.url
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx(), _traced(request) as headers:
            asked.headers += headers
            answer = self._pool.handle_request(asked)
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions)

    def close(self) -> None:
        """Closes the connections."""
        self._pool.close()


def probed(url: str, *, timeout_s: float, headers: httpx.Headers | None = None) -> tuple[int, bytes]:
    """Status and body of one GET.

    Raises:
        httpx.HTTPError, httpx.InvalidURL: there was no answer in time, none that is HTTP, or one of over a mebibyte.
    """
    body = bytearray()
    with (
        within(timeout_s),
        httpx.Client(transport=BoundedTransport(), timeout=timeout_s, trust_env=False) as client,
        client.stream("GET", url, headers=headers) as answer,
    ):
        for chunk in answer.iter_bytes():
            body += chunk
            if len(body) > MOST_OF_A_PROBE:
                raise httpx.ReadError("the answer is too long")
        return answer.status_code, bytes(body)


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


class _BoundedBackend(httpcore.SyncBackend):
    """Streams whose operations have what is left of the time."""

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        left = _left(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(super().connect_tcp(host, port, left, local_address, socket_options))


class _BoundedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@contextmanager
def _traced(request: httpx.Request) -> Iterator[list[tuple[bytes, bytes]]]:
    """A span of the exchange up to its headers, and the headers by which the other side goes on with the trace: below a
    span at hand alone, so that probes have none."""
    if traceparent() is None:
        yield []
        return
    told = {"http.request.method": request.method, "server.address": request.url.host, "url.path": request.url.path}
    with span(request.method, "client", attributes=told):
        yield [(name.encode("ascii"), value.encode("ascii")) for name, value in outgoing().items()]


def _left(timeout: float | None, late: type[httpcore.TimeoutException]) -> float | None:
    """Seconds that an operation may take; raises `late` where the exchange should be over."""
    ends_at_s = _ends_at_s.get()
    if ends_at_s is None:
        return timeout
    left = ends_at_s - time.monotonic()
    if left <= 0:
        raise late("the exchange took too long")
    return left if timeout is None else min(left, timeout)


@contextmanager
def _as_httpx() -> Iterator[None]:
    """httpcore's errors as httpx's, whose names are the same."""
    try:
        yield
    except (
        httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError,
        httpcore.UnsupportedProtocol,
    ) as error:  # fmt: skip
        raise getattr(httpx, type(error).__name__, httpx.TransportError)(str(error)) from error
