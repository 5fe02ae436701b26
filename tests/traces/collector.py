"""A small real collector: OTLP over HTTP on a loopback port, decoded by OpenTelemetry's own messages."""

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Seen:
    """A span as it came."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    process: str
    service: str
    begun_ns: int
    ended_ns: int
    failed: bool
    attributes: dict[str, Any]


class Collector:
    """Keeps every span; while `is_refusing`, it answers 400, which nobody sends again."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.headers: list[dict[str, str]] = []
        self.is_refusing = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, name: str, trace: str) -> Seen:
        """The first span of that name in that trace, once it is here."""
        return self.awaited(lambda: [each for each in self.of(trace) if each.name == name], name)[0]

    def of(self, trace: str) -> list[Seen]:
        """What has come of a trace so far."""
        return [each for each in list(self.spans) if each.trace == trace]

    def awaited(self, found: Callable[[], list[Seen]], what: str) -> list[Seen]:
        """What `found` finds, once it finds something."""
        deadline = time.monotonic() + PATIENCE_S
        while not (seen := found()):
            assert time.monotonic() < deadline, f"no {what!r} among {sorted({each.name for each in self.spans})}"
            time.sleep(0.05)
        return seen

    def _take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            of_process = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [
                    Seen(
                        each.name, each.kind, each.trace_id.hex(), each.span_id.hex(), each.parent_span_id.hex(),
                        of_process["ml_workbench.process"], of_process["service.name"],
                        each.start_time_unix_nano, each.end_time_unix_nano, each.status.code == 2,
                        {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in each.attributes},
                    )
                    for each in scope.spans
                ]  # fmt: skip

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                is_ours = self.path == "/v1/traces" and not collector.is_refusing
                if is_ours:
                    collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                    collector._take(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200 if is_ours else 400)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        return Handler
