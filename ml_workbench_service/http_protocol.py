"""HTTP protocol: uvicorn's, which ends what is only half there: requests that stop in the middle, answers nobody reads.

uvicorn waits for ever for the rest of a request, and at its end for every such connection. Here each phase has an end:

    headers    `headers_s` from the connection, or from their first byte on a connection that is kept: 408
    body       `body_s`, and a second more for every `SLOWEST_BYTES_PER_S` that came: 408; not while nobody reads it
    answer     `UNREAD_S` without the client taking any of it: broken off
    headers of more than `MOST_HEADER_BYTES` or `MOST_HEADERS`: 431; more than `most_connections` at a time: 503

A request that comes whole, as nearly all do, costs no timer.
"""

import asyncio
import resource
from enum import Enum
from typing import Any, ClassVar

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from common_lib.exceptions import (
    HeadersTooLargeError,
    PlatformError,
    RequestTimeoutError,
    UnavailableError,
)
from common_lib.logging import new_correlation_id

SLOWEST_BYTES_PER_S = 8 * 1024
MOST_HEADER_BYTES = 64 * 1024
MOST_HEADERS = 100
UNREAD_S = 60.0
SHUTDOWN_S = 1.0
"""So long a body that was half there at the service's end may still come."""
LAST_LOOK_S = 0.25
"""After the time is over, so that what had come while this process was busy is read first."""
FILES_KEPT_FREE = 256
MOST_CONNECTIONS = 8192


class Phase(Enum):
    """What a connection is in the middle of."""

    NOTHING = "between two requests"
    HEADERS = "headers"
    BODY = "body"


class GuardedProtocol(HttpToolsProtocol):
    """One connection; `limited` makes the class for a server."""

    headers_s: ClassVar[float] = 10.0
    body_s: ClassVar[float] = 20.0
    most_connections: ClassVar[int] = MOST_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = Phase.HEADERS
        self._num_bytes = 0  # of the phase
        self._began_s = 0.0
        self._is_last_look = False
        self._is_refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self._refuse(UnavailableError("there are too many connections; try again in a moment", retry_after_s=1))
            return
        self._begin(Phase.HEADERS)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of it."""
        self._rest()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes came."""
        if self._is_refused:
            return
        if self._phase is Phase.HEADERS:
            self._num_bytes += len(data)
        super().data_received(data)
        if self._phase is Phase.NOTHING:
            if self._timer is not None:
                self._rest()
        elif self._phase is Phase.HEADERS and self._num_bytes > MOST_HEADER_BYTES:
            self._refuse(_too_large())
        elif self._timer is None and not self._is_refused:
            self._watch()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if self._phase is Phase.NOTHING:
            self._begin(Phase.HEADERS)

    def on_headers_complete(self) -> None:
        """Its headers are here."""
        if len(self.headers) > MOST_HEADERS or sum(len(a) + len(b) for a, b in self.headers) > MOST_HEADER_BYTES:
            self._refuse(_too_large())
        if self._is_refused:
            return
        super().on_headers_complete()
        self._begin(Phase.BODY)

    def on_body(self, body: bytes) -> None:
        """A part of its body."""
        if not self._is_refused:
            self._num_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it is here."""
        if not self._is_refused:
            self._phase = Phase.NOTHING
            super().on_message_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def shutdown(self) -> None:
        """The service ends: what is whole is answered, what is half there gets a moment."""
        super().shutdown()
        if self._phase is Phase.BODY and not self.transport.is_closing():
            self.loop.call_later(SHUTDOWN_S, self._end_half)

    def _end_half(self) -> None:
        if self._phase is Phase.BODY and not self.transport.is_closing():
            self._refuse(UnavailableError("the service ends; send the request again", retry_after_s=5))

    def _begin(self, phase: Phase) -> None:
        self._phase = phase
        self._num_bytes = 0
        self._began_s = self.loop.time()
        self._is_last_look = False

    @property
    def _ends_s(self) -> float:
        if self._phase is Phase.HEADERS:
            return self._began_s + self.headers_s
        return self._began_s + self.body_s + self._num_bytes / SLOWEST_BYTES_PER_S

    def _watch(self) -> None:
        self._timer = self.loop.call_at(self._ends_s, self._look)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """The time may be over: it is not where more has come, or where we are the ones who do not read."""
        self._timer = None
        if self._phase is Phase.NOTHING or self._is_refused or self.transport.is_closing():
            return
        if self._phase is Phase.BODY and self.flow.read_paused:
            self._began_s = self.loop.time()
        if self.loop.time() < self._ends_s:
            self._watch()
        elif not self._is_last_look:
            self._is_last_look = True
            self._timer = self.loop.call_later(LAST_LOOK_S, self._look)
        else:
            what = self._phase.value
            self._refuse(
                RequestTimeoutError(f"the rest of the request's {what} did not come in time; send it again, whole")
            )

    def _refuse(self, error: PlatformError) -> None:
        """Says so, where no answer is on its way, and closes."""
        self._is_refused = True
        self._rest()
        cycle = self.cycle
        is_silent = cycle is None or cycle.response_complete or not cycle.response_started
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if is_silent and not self.transport.get_write_buffer_size():
            self.transport.write(_answer(error))
            self.transport.close()
        else:
            self.transport.abort()


def limited(*, headers_s: float, body_s: float) -> type[GuardedProtocol]:
    """The protocol with a server's own times."""

    class Limited(GuardedProtocol):
        pass

    Limited.headers_s, Limited.body_s = headers_s, body_s
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    Limited.most_connections = min(MOST_CONNECTIONS, max(files - FILES_KEPT_FREE, files // 2))
    return Limited


def _too_large() -> HeadersTooLargeError:
    return HeadersTooLargeError(
        f"the headers are over {MOST_HEADER_BYTES // 1024} KiB, or more than {MOST_HEADERS}; send fewer"
    )


def _answer(error: PlatformError) -> bytes:
    identifier = new_correlation_id()
    body = orjson.dumps(error.body(identifier))
    headers = [
        STATUS_LINE[error.status],
        b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body),
        f"x-correlation-id: {identifier}\r\n".encode(),
    ]
    if error.retry_after_s is not None:
        headers.append(f"retry-after: {error.retry_after_s}\r\n".encode())
    return b"".join([*headers, b"\r\n", body])
