"""The event stream on a server that breaks off, refuses and forgets: each event once, in order, to the final one."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from common_lib.exceptions import JobNotFoundError, UnavailableError
from ml_workbench_client import AsyncWorkbench, Patience, Workbench

QUICK = Patience(num_reconnects=3, first_s=0.001, longest_s=0.002)
EVENTS = ["queued", "started", "progress", "warning", "progress", "succeeded"]


def event(number: int) -> bytes:
    """One event as the service writes it."""
    data = json.dumps({"at": "2030-03-06T12:30:00Z", "message": f"event {number}"})
    return f"id: {number}\nevent: {EVENTS[number - 1]}\ndata: {data}\n\n".encode()


class FlakyJobs(ThreadingHTTPServer):
    """Serves one job's events by a script: each connection does the next thing in it."""

    daemon_threads = True

    def __init__(self, script: list[Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Talk)
        self.script = script
        self.last_event_ids: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Talk(BaseHTTPRequestHandler):
    server: FlakyJobs

    def do_GET(self) -> None:
        self.server.last_event_ids.append(self.headers["Last-Event-ID"])
        step = self.server.script.pop(0)
        if isinstance(step, int):
            body = {
                "error_code": "UNAVAILABLE" if step == 503 else "JOB_NOT_FOUND",
                "message": "scripted",
                "details": {},
            }
            self.send_response(step)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        seen = int(self.headers["Last-Event-ID"])
        for number in range(seen + 1, step["until"] + 1):
            self.wfile.write(b": ping\n\n" + event(number))
        self.wfile.write(step.get("torn", b""))

    def log_message(self, *_: Any) -> None:
        """Quiet."""


Serve = Callable[..., FlakyJobs]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[tuple[FlakyJobs, threading.Thread]] = []

    def start(*script: Any) -> FlakyJobs:
        server = FlakyJobs(list(script))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_broken_stream_goes_on_after_the_last_whole_event(serve: Serve) -> None:
    server = serve({"until": 2, "torn": event(3)[:25]}, 503, {"until": 2}, {"until": 5}, {"until": 6})
    with Workbench(server.url, patience=QUICK) as wb:
        found = list(wb.job("j").events())
    assert [each.type for each in found] == EVENTS
    assert [each.seq for each in found] == [1, 2, 3, 4, 5, 6]
    assert found[3].data == {"message": "event 4"}
    assert server.last_event_ids == ["0", "2", "2", "2", "5"]


async def test_the_async_stream_does_too(serve: Serve) -> None:
    server = serve({"until": 2, "torn": event(3)[:25]}, 503, {"until": 6})
    async with AsyncWorkbench(server.url, patience=QUICK) as awb:
        assert [each.seq async for each in awb.job("j").events(after=1)] == [2, 3, 4, 5, 6]
    assert server.last_event_ids == ["1", "2", "2"]


def test_a_stream_that_never_comes_back_is_given_up(serve: Serve) -> None:
    server = serve({"until": 1}, *[503] * 3)
    with Workbench(server.url, patience=QUICK) as wb, pytest.raises(UnavailableError):
        list(wb.job("j").events())
    assert server.script == [], "the stream, and three reconnects after it ended"


def test_a_job_that_is_not_there_is_told_at_once(serve: Serve) -> None:
    with Workbench(serve(404).url, patience=QUICK) as wb, pytest.raises(JobNotFoundError):
        next(wb.job("j").events())


def test_leaving_the_loop_early_closes_the_connection(serve: Serve) -> None:
    with Workbench(serve({"until": 6}, {"until": 6}).url, patience=QUICK) as wb:
        events = wb.job("j").events()
        assert next(events).seq == 1
        events.close()  # type: ignore[attr-defined]
        assert len(list(wb.job("j").events(after=4))) == 2
