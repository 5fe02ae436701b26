"""HTTP protocol: uvicorn's, which ends what is only half there: requests that stop in the middle, answers nobody reads.

uvicorn waits for ever for the rest of a request, and at its end for every such connection. Here each phase has an end:

    headers    `headers_s` from the connection, or from their first byte on a connection that is kept: 408
    body       `body_s`, and a second more for every `SLOWEST_BYTES_PER_S` that came: 408; not while nobody reads it
    answer     `UNREAD_S` without the client taking any of it: broken off
    headers of more than `MOST_HEADER_BYTES` or `MOST_HEADERS`: 431; more than `most_connections` at a time: 503

A request that comes whole, as nearly all do, costs no timer.

What `Straight` takes, an ordinary prediction, is answered without a task and a cycle of uvicorn's: an answer of its own
stands in the cycle's place, and becomes a cycle where the app has to answer after all. A connection on which one came
knows its head: the next request with the same bytes up to its length is not parsed again.
"""

import asyncio
import re
import resource
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

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


MOST_KNOWN_BYTES = 4096
"""Of a head that a connection remembers."""
_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,6})\r\n", re.IGNORECASE)


class Straight(Protocol):
    """What answers ordinary requests without the app: see `api/door/straight_predictions.py`, the one there is."""

    most_bytes: int

    def asked(self, scope: dict[str, Any]) -> Any:
        """What a head asks for; None: it is for the app."""
        ...

    def met(self, asked: Any) -> Any:
        """Whom the door has met, with `refusal` and `told`; None: the app is to meet it."""
        ...

    def answer(self, met: Any, body: bytes, reply: "StraightAnswer") -> Mapping[str, Any] | None:
        """Has it answered through `reply`, or says what the app, which is to answer, is told."""
        ...


class _Silent:
    """Nobody waits for a message of a request that is answered straight."""

    def set(self) -> None:
        """Does nothing."""


class StraightAnswer:
    """What stands where uvicorn has its cycle, while a request is answered straight; its attributes are the cycle's."""

    __slots__ = (
        "_known", "_length", "_protocol", "body", "disconnected", "keep_alive", "met", "more_body", "response_complete",
        "response_started", "scope",
    )  # fmt: skip
    message_event = _Silent()

    def __init__(
        self, protocol: "GuardedProtocol", met: Any, scope: dict[str, Any] | None, known: "KnownHead | None" = None,
        length: bytes = b"",
    ) -> None:  # fmt: skip
        self._protocol, self._known, self._length = protocol, known, length
        self.met = met
        self.scope = scope
        self.body = bytearray()
        self.more_body = self.keep_alive = True
        self.response_started = self.response_complete = self.disconnected = False

    def send(self, headers: bytes, body: bytes) -> None:
        """The answer, of 200."""
        self.response_complete = True
        if not self.disconnected:
            self._protocol.write_answer(headers, body, keep_alive=self.keep_alive)

    def pass_on(self, told: Mapping[str, Any]) -> None:
        """The app answers."""
        scope = self.scope
        if scope is None:
            assert self._known is not None, "a request that was not parsed has a known head"
            scope = self._known.scope(self._length)
        self._protocol.ask_app(self, {**scope, **told})


class KnownHead(NamedTuple):
    """A head of which only the body's length is another.

    Attributes:
        before, after: its bytes around the digits of that length.
        asked: what it asks for.
        parsed: its scope.
    """

    before: bytes
    after: bytes
    asked: Any
    parsed: dict[str, Any]

    @classmethod
    def of(cls, data: bytes, scope: dict[str, Any], asked: Any) -> "KnownHead | None":
        """The head with which the bytes begin; None where it is not of the plain form that most clients send."""
        head = data[: data.find(b"\r\n\r\n") + 4]
        found = list(_LENGTH.finditer(head))
        num_lines = len(scope["headers"]) + 2
        is_plain = head.count(b"\r\n") == head.count(b"\n") == num_lines and len(head) <= MOST_KNOWN_BYTES
        if not is_plain or len(found) != 1:
            return None
        return cls(head[: found[0].start(1)], head[found[0].end(1) :], asked, {**scope, "headers": [*scope["headers"]]})

    def place_of_body(self, data: bytes, most_bytes: int) -> tuple[int, bytes]:
        """Where a whole request's body begins, and its length as it is written; 0 where the bytes are anything else."""
        begin = len(self.before)
        end = data.find(b"\r", begin, begin + 8)
        length = data[begin:end]
        place = end + len(self.after)
        if end < 0 or not length.isdigit() or not (data.startswith(self.before) and data.startswith(self.after, end)):
            return 0, b""
        is_whole = len(data) - place == int(length) <= most_bytes
        return (place, length) if is_whole else (0, b"")

    def scope(self, length: bytes) -> dict[str, Any]:
        """As the app is given it."""
        headers = [(name, length if name == b"content-length" else value) for name, value in self.parsed["headers"]]
        return {**self.parsed, "headers": headers, "state": {**self.parsed["state"]}}


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
    straight: ClassVar[Straight | None] = None
    _defaults: ClassVar[tuple[Any, bytes]] = (None, b"")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = Phase.HEADERS
        self._num_bytes = 0  # of the phase
        self._began_s = 0.0
        self._is_last_look = False
        self._is_refused = False
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._fresh: bytes | None = None  # bytes that begin with the head at hand
        self._known: KnownHead | None = None
        self._rests_since_s: float | None = None

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
        for timer in (self._unread, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes came."""
        if self._is_refused or (self._known is not None and self._is_known(data)):
            return
        self._fresh = data if self._phase is Phase.NOTHING or not self._num_bytes else None
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
        if not self._goes_straight():
            super().on_headers_complete()
        self._fresh = None  # what comes next begins elsewhere
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
            if isinstance(self.cycle, StraightAnswer) and not self.cycle.response_complete:
                self._answer_straight(self.cycle, bytes(self.cycle.body))

    def _is_known(self, data: bytes) -> bool:
        """Whether the bytes are a whole request with the known head, which then is answered."""
        known, straight = self._known, self.straight
        assert known is not None
        assert straight is not None
        if self._phase is not Phase.NOTHING or not self._is_free:
            return False
        place, length = known.place_of_body(data, straight.most_bytes)
        met = straight.met(known.asked) if place else None
        if met is None:
            return False
        self._unset_keepalive_if_required()
        answer = StraightAnswer(self, met, None, known, length)
        self.cycle = cast(Any, answer)
        answer.more_body = False
        body = data[place:]
        if met.refusal is None:
            self._answer_straight(answer, body)
        else:
            answer.body += body
            answer.pass_on(met.told())
        return True

    def _goes_straight(self) -> bool:
        """Whether the head at hand is of a request that is answered straight, or will be passed on with its body."""
        straight, parser = self.straight, self.parser
        path, _, query = self.url.partition(b"?")
        if straight is None or not self._is_free or self.expect_100_continue or b"%" in path or b"#" in self.url:
            return False
        if parser.get_http_version() != "1.1" or parser.should_upgrade() or not parser.should_keep_alive():
            return False
        scope = cast(dict[str, Any], self.scope)
        path_text = self.root_path + path.decode("ascii", "replace")
        scope |= {
            "method": parser.get_method().decode("ascii"), "path": path_text, "query_string": query,
            "raw_path": self.root_path.encode("ascii") + path,
        }  # fmt: skip
        asked = straight.asked(scope)
        met = None if asked is None else straight.met(asked)
        if met is None:
            return False
        self._known = None if self._fresh is None else KnownHead.of(self._fresh, scope, asked)
        answer = StraightAnswer(self, met, scope)
        self.cycle = cast(Any, answer)
        if met.refusal is not None:
            answer.pass_on(met.told())
        return True

    @property
    def _is_free(self) -> bool:
        """Whether no answer is on its way, and the client reads."""
        is_idle = self.cycle is None or self.cycle.response_complete
        return is_idle and not self.flow.write_paused and not self.transport.is_closing()

    def _answer_straight(self, answer: StraightAnswer, body: bytes) -> None:
        straight = self.straight
        assert straight is not None
        told = straight.answer(answer.met, body, answer)
        if told is not None:
            answer.body = bytearray(body)
            answer.pass_on(told)

    def write_answer(self, headers: bytes, body: bytes, *, keep_alive: bool) -> None:
        """An answer of 200, as uvicorn writes it."""
        if self.transport.is_closing():
            return
        said = self.server_state.default_headers
        cls = type(self)
        if cls._defaults[0] is not said:  # another list every second, with the date
            cls._defaults = said, b"".join(b"%b: %b\r\n" % header for header in said)
        closing = b"" if keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join((STATUS_LINE[200], cls._defaults[1], headers, closing, b"\r\n", body)))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def ask_app(self, answer: StraightAnswer, scope: dict[str, Any]) -> None:
        """The app answers what was to be answered straight: a cycle takes its answer's place."""
        cycle = RequestResponseCycle(
            scope=cast(Any, scope),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=answer.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body, cycle.more_body = answer.body, answer.more_body
        cycle.disconnected = answer.disconnected
        if cycle.body or not cycle.more_body or cycle.disconnected:
            cycle.message_event.set()
        if cast(Any, self.cycle) is answer:
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)

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

    def on_response_complete(self) -> None:
        """The connection rests, or goes on with what waits in it; its timer is not set anew each time."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._rests_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_at_rest()

    def _unset_keepalive_if_required(self) -> None:
        self._rests_since_s = None

    def _look_at_rest(self) -> None:
        """Closes a connection that has rested long enough."""
        self.timeout_keep_alive_task = None
        if self._rests_since_s is None:
            return
        ends_s = self._rests_since_s + self.timeout_keep_alive
        if self.loop.time() >= ends_s:
            self.timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_at(ends_s, self._look_at_rest)

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


def limited(*, headers_s: float, body_s: float, straight: Straight | None = None) -> type[GuardedProtocol]:
    """The protocol with a server's own times, and what it answers straight."""

    class Limited(GuardedProtocol):
        pass

    Limited.headers_s, Limited.body_s, Limited.straight = headers_s, body_s, straight
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
