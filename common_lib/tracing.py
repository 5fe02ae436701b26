"""Traces: spans of the work at hand, where this process has been told to send them; else nothing at all.

    with span("read features"): …           a stage, below the span at hand
    traceparent()                            where the work at hand stands (W3C Trace Context), for whoever goes on
    with span("apply", carrier={"traceparent": …}): …     goes on, in another process

Off, which is the default, nothing of OpenTelemetry is imported and each of these is one look at a None. Called once in
a process's main, as logging is: `configure_tracing`, and `end_tracing` at its end. What sends spans is an `Export`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import time_ns
from typing import Any, Literal, Protocol

Kind = Literal["internal", "server", "client", "producer", "consumer"]
"""As OpenTelemetry has them: a request that is answered, one that is made, a message sent, one that is taken."""
Attributes = Mapping[str, str | int | float | bool]
NONE: Attributes = {}
_NOTHING: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True, slots=True)
class OpenSpan:
    """A span that has begun; an unsampled one takes everything and keeps nothing.

    Attributes:
        traceparent: of what goes on below it.
    """

    span: Any
    traceparent: str

    def note(self, attributes: Attributes) -> None:
        """Says more of it."""
        self.span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        """Its name, once that is known."""
        self.span.update_name(name)

    def failed(self, kind: str) -> None:
        """It went wrong; `kind` is a class of error or a status, never a text that could hold what was sent."""
        if _export is not None:  # else sending has ended meanwhile, and with it what a span could tell
            _export.mark_failed(self.span, kind)

    def end(self) -> None:
        """It is over now; only of what `begin` has begun."""
        self.span.end()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece of work stands in its trace, for those who go on with it where that is not known any more."""

    context: Any
    since_ns: int


class Export(Protocol):
    """What makes spans and sends them, for any number of threads; a `context` is its own affair."""

    @property
    def num_dropped(self) -> int:
        """Spans that did not reach the collector."""
        ...

    def entered(
        self, name: str, kind: Kind, attributes: Attributes, carrier: Mapping[str, str] | None
    ) -> AbstractContextManager[OpenSpan]:
        """A span that is at hand for the time of the work inside."""
        ...

    def begun(self, name: str, kind: Kind, attributes: Attributes) -> OpenSpan | None:
        """A span below the one at hand, which does not become it; None where there is none."""
        ...

    def past(self, name: str, begun_ns: int, ended_ns: int, attributes: Attributes, *, context: Any) -> None:
        """A span of what is over, below the one at hand in a context; None: in this one."""
        ...

    def mark_failed(self, span: Any, kind: str) -> None:
        """A span's error."""
        ...

    def current(self) -> Any:
        """What a span made elsewhere has to know to be below the one at hand."""
        ...

    def headers(self) -> dict[str, str]:
        """Of the span at hand; empty where there is none."""
        ...

    def close(self) -> None:
        """Sends what is left, for a bounded time."""
        ...


_export: Export | None = None


class Stages:
    """Stages through which several pieces of work go together: each has a span of its own for every one of them."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._begun_ns: int | None = None  # None: each has waited since it came

    def passed(self, name: str, attributes: Attributes = NONE) -> None:
        """The stage that has just ended; it began where the one before it ended."""
        now_ns = time_ns()
        if _export is not None:
            for place in self._places:
                begun_ns = place.since_ns if self._begun_ns is None else self._begun_ns
                _export.past(name, begun_ns, now_ns, attributes, context=place.context)
        self._begun_ns = now_ns


def configure_tracing(export: Export) -> None:
    """Has this process send its spans by `export`; called once, in a process's main, where that is wanted."""
    global _export
    end_tracing()
    _export = export


def end_tracing() -> None:
    """Sends what is left, for a bounded time; afterwards nothing is traced."""
    global _export
    export, _export = _export, None
    if export is not None:
        export.close()


def is_tracing() -> bool:
    """Whether this process sends spans."""
    return _export is not None


def num_spans_dropped() -> int:
    """Spans that the collector did not get, since the start."""
    return 0 if _export is None else _export.num_dropped


def span(
    name: str, kind: Kind = "internal", *, attributes: Attributes = NONE, carrier: Mapping[str, str] | None = None
) -> AbstractContextManager[OpenSpan | None]:
    """The work inside, as a span below the one at hand; what is raised marks it failed, by its class alone.

    Args:
        name: few different ones: what differs from one to the next belongs into `attributes`.
        carrier: headers of whoever asked, by their names in small letters; a `traceparent` among them that is none
            counts as missing, and the span begins a trace. None: it is below the span at hand.
    """
    return _NOTHING if _export is None else _spanned(_export, name, kind, attributes, carrier)


def begin(name: str, kind: Kind, attributes: Attributes = NONE) -> OpenSpan | None:
    """A span below the one at hand that ends elsewhere, by its `end`; None where there is none at hand."""
    return None if _export is None else _export.begun(name, kind, attributes)


def here() -> Place | None:
    """Where the work at hand stands, from now on."""
    return None if _export is None else Place(_export.current(), time_ns())


def waited(name: str, begun_ns: int) -> None:
    """A span below the one at hand, of what has been waited for until now."""
    if _export is not None:
        _export.past(name, min(begun_ns, time_ns()), time_ns(), NONE, context=None)


def traceparent() -> str | None:
    """Of the span at hand, for what goes on with the trace; None where there is none."""
    return outgoing().get("traceparent")


def outgoing() -> dict[str, str]:
    """Headers by which another service goes on with the trace: `traceparent`, and `tracestate` where one came."""
    return {} if _export is None else _export.headers()


@contextmanager
def _spanned(
    export: Export, name: str, kind: Kind, attributes: Attributes, carrier: Mapping[str, str] | None
) -> Iterator[OpenSpan]:
    with export.entered(name, kind, attributes, carrier) as opened:
        try:
            yield opened
        except Exception as error:
            opened.failed(type(error).__name__)
            raise
