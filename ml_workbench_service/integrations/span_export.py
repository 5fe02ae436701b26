"""Spans on their way to a collector: OTLP over HTTP, from a bounded queue, by a thread of its own.

The one file that imports OpenTelemetry, and it is imported where traces are sent alone. What OpenTelemetry reads from
the environment counts as it does everywhere: `OTEL_TRACES_SAMPLER` (with `_ARG`; without it a caller's decision, else
every trace), `OTEL_EXPORTER_OTLP_HEADERS`, `…_TIMEOUT`, `…_CERTIFICATE`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_…`.

A collector that is away costs no answer: spans wait in the queue, the oldest are dropped when it is full, and what was
dropped is counted, and said once for each time that it is away.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common_lib.tracing import Attributes, Kind, OpenSpan

CLOSED_WITHIN_S = 2.0
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
MOST_WAITING = 2048
"""Unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise."""
_KINDS: Mapping[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}

log = logging.getLogger(__name__)


class SpanExport:
    """A tracer, and its way to the collector; for any number of threads.

    Args:
        endpoint: of the collector, to which `/v1/traces` is added; `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` goes before it.
        service, version: as spans name it.
        process: which of the service's processes this is, such as `job worker`.
    """

    def __init__(self, endpoint: str, *, service: str, version: str, process: str) -> None:
        for name, level in (("opentelemetry", logging.CRITICAL), ("urllib3", logging.ERROR)):
            logging.getLogger(name).setLevel(level)  # what fails is counted and said here, once
        named = {"service.name": service, "service.version": version, "ml_workbench.process": process}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        address = os.environ.get(TRACES_ENDPOINT) or f"{endpoint.rstrip('/')}/v1/traces"
        self._counts = _Counts(address.partition("?")[0])
        self._exporter = OTLPSpanExporter(endpoint=address)
        self._provider.add_span_processor(_Counted(_Told(self._exporter, self._counts), self._counts))
        self._tracer = self._provider.get_tracer("ml_workbench", version)
        self._wire = TraceContextTextMapPropagator()

    @property
    def num_dropped(self) -> int:
        """Spans that did not reach the collector."""
        return self._counts.num_dropped

    def close(self) -> None:
        """Sends what waits, for `CLOSED_WITHIN_S` at most."""
        thread = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        thread.start()
        thread.join(CLOSED_WITHIN_S)
        self._exporter.shutdown()

    @contextmanager
    def entered(
        self, name: str, kind: Kind, attributes: Attributes, carrier: Mapping[str, str] | None
    ) -> Iterator[OpenSpan]:
        """A span at hand for the time of the work inside."""
        parent = None if carrier is None else self._wire.extract(carrier, Context())
        span = self._tracer.start_span(name, parent, _KINDS[kind], attributes)
        token = otel_context.attach(trace.set_span_in_context(span))
        try:
            yield OpenSpan(span, self._traceparent(span))
        finally:
            otel_context.detach(token)
            span.end()

    def begun(self, name: str, kind: Kind, attributes: Attributes) -> OpenSpan | None:
        """A span below the one at hand, which does not become it."""
        if not trace.get_current_span().get_span_context().is_valid:
            return None
        span = self._tracer.start_span(name, kind=_KINDS[kind], attributes=attributes)
        return OpenSpan(span, self._traceparent(span))

    def past(self, name: str, begun_ns: int, ended_ns: int, attributes: Attributes, *, context: Context | None) -> None:
        """A span of what is over, below the one at hand in a context."""
        if trace.get_current_span(context).get_span_context().is_valid:
            span = self._tracer.start_span(name, context, attributes=attributes, start_time=begun_ns)
            span.end(ended_ns)

    def mark_failed(self, span: Span, kind: str) -> None:
        """A span's error."""
        span.set_status(Status(StatusCode.ERROR))
        span.set_attribute("error.type", kind)

    def current(self) -> Context:
        """What a span made elsewhere has to know to be below the one at hand."""
        return otel_context.get_current()

    def headers(self) -> dict[str, str]:
        """Of the span at hand."""
        carrier: dict[str, str] = {}
        self._wire.inject(carrier)
        return carrier

    def _traceparent(self, span: Span) -> str:
        carrier: dict[str, str] = {}
        self._wire.inject(carrier, trace.set_span_in_context(span, Context()))
        return carrier.get("traceparent", "")


class _Counts:
    """How many spans wait, and how many were lost; said once until the collector takes some again."""

    def __init__(self, address: str) -> None:
        self._address = address
        asked = os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", "")
        self._most_waiting = int(asked) if asked.isdecimal() else MOST_WAITING
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._is_said = False
        self.num_dropped = 0

    def ended(self) -> None:
        """One more waits, in the place of the oldest where there is no room."""
        with self._lock:
            if self._num_waiting < self._most_waiting:
                self._num_waiting += 1
                return
            self._lose(1)

    def left(self, num: int) -> None:
        """So many are on their way."""
        with self._lock:
            self._num_waiting = max(0, self._num_waiting - num)

    def exported(self, num: int, *, is_taken: bool) -> None:
        """What became of so many."""
        with self._lock:
            if is_taken:
                self._is_said = False
            else:
                self._lose(num)

    def _lose(self, num: int) -> None:
        self.num_dropped += num
        if not self._is_said:
            self._is_said = True
            log.warning("the collector at %s does not take spans, which are dropped; answers go on", self._address)


class _Told(SpanExporter):
    """The exporter, whose failures are counted."""

    def __init__(self, exporter: SpanExporter, counts: _Counts) -> None:
        self._exporter, self._counts = exporter, counts

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """One batch."""
        self._counts.left(len(spans))
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self._counts.exported(len(spans), is_taken=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """No more are sent."""
        self._exporter.shutdown()


class _Counted(BatchSpanProcessor):
    """The queue, which says how many it was given."""

    def __init__(self, exporter: SpanExporter, counts: _Counts) -> None:
        super().__init__(exporter)
        self._counts = counts

    def on_end(self, span: ReadableSpan) -> None:
        """A span is over."""
        if span.context is not None and span.context.trace_flags.sampled:
            self._counts.ended()
        super().on_end(span)
