"""HTTP server: half-sent requests end, slow ones that go on do not, and the service ends with all of them open."""

import contextlib
import json
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import SMALL_TRAIN
from tests.service_process import ServiceProcess

PATIENCE_S = 120.0
HALF_LINE = b"GET /api/v1/mod"
HALF_HEADERS = b"GET /api/v1/models HTTP/1.1\r\nHost: localhost\r\nX-"
HALF_BODY = (
    b"POST /api/v1/models/absent/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000\r\n\r\n{"
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service of short times."""
    running = ServiceProcess(
        tmp_path_factory.mktemp("served"), AGENT_AUTOSTART="false", REQUEST_HEADERS_S="1", REQUEST_BODY_S="1"
    ).start()
    yield running
    running.close()


_opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _opened:
        _opened.pop().close()


def connected(service: ServiceProcess, sent: bytes = b"") -> socket.socket:
    """A connection on which these bytes were sent."""
    opened = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S)
    _opened.append(opened)
    if sent:
        opened.sendall(sent)
    return opened


def read_all(opened: list[socket.socket]) -> list[bytes]:
    """What each connection said until it was closed; fails where one stays open."""
    said = {each: b"" for each in opened}
    with selectors.DefaultSelector() as selector:
        for each in opened:
            each.setblocking(False)
            selector.register(each, selectors.EVENT_READ)
        deadline = time.monotonic() + PATIENCE_S
        while selector.get_map():
            assert time.monotonic() < deadline, f"{len(selector.get_map())} connections stay open"
            for key, _ in selector.select(1.0):
                each = key.fileobj
                assert isinstance(each, socket.socket)
                try:
                    part = each.recv(65536)
                except ConnectionResetError:
                    part = b""
                said[each] += part
                if not part:
                    selector.unregister(each)
                    each.close()
    return list(said.values())


def status_of(said: bytes) -> int:
    return int(said.split(b" ", 2)[1]) if said else 0


def test_half_sent_requests_are_ended_and_others_answered_meanwhile(served: ServiceProcess) -> None:
    """The case `half-sent-requests`: 300 bodies of one byte, 100 half request lines; here with half headers, too."""
    opened = [connected(served, HALF_BODY) for _ in range(300)]
    opened += [connected(served, HALF_LINE) for _ in range(100)]
    opened += [connected(served, HALF_HEADERS) for _ in range(50)]
    opened += [connected(served) for _ in range(50)]
    assert all(served.client.get("/health").status_code == 200 for _ in range(20))
    said = read_all(opened)
    assert Counter(map(status_of, said)) == {408: 500}
    body = json.loads(said[0].partition(b"\r\n\r\n")[2])
    assert (body["error_code"], "body" in body["message"]) == ("REQUEST_TIMEOUT", True)
    assert served.client.get("/health").status_code == 200


def test_a_drip_of_bytes_does_not_hold_a_connection(served: ServiceProcess) -> None:
    dripping = [connected(served, HALF_BODY), connected(served, HALF_HEADERS)]
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.wait(0.2):
            for each in dripping:
                try:
                    each.send(b"a")
                except OSError:
                    continue

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert all(status_of(each) in (408, 0) for each in read_all(list(dripping))), "0: reset by what came after it"
    finally:
        is_over.set()
        thread.join()


def test_a_slow_body_that_goes_on_is_read(served: ServiceProcess) -> None:
    body = b" " * 120_000 + b"[]"
    head = HALF_BODY[: HALF_BODY.index(b"Content-Length")] + f"Content-Length: {len(body)}\r\n\r\n".encode()
    with connected(served, head) as opened:
        for begin in range(0, len(body), 20_000):
            opened.sendall(body[begin : begin + 20_000])
            time.sleep(0.4)
        assert status_of(opened.recv(65536)) == 422


def test_a_kept_connection_has_its_times_for_every_request(served: ServiceProcess) -> None:
    with connected(served) as opened:
        for _ in range(3):
            opened.sendall(HEALTH)
            said = b""
            while not said.endswith(b"}"):
                said += opened.recv(65536)
            assert status_of(said) == 200
        opened.sendall(HALF_HEADERS)
        assert [status_of(each) for each in read_all([opened])] == [408]


@pytest.mark.parametrize(
    "headers", [b"X-Long: " + b"y" * 100_000, b"\r\n".join(b"X-%d: 1" % number for number in range(150))]
)
@pytest.mark.parametrize("is_whole", [True, False])
def test_headers_without_end_are_refused(served: ServiceProcess, headers: bytes, is_whole: bool) -> None:
    if not is_whole and len(headers) < 50_000:
        headers *= 60
    opened = connected(served)
    with contextlib.suppress(ConnectionError):
        opened.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + headers + (b"\r\n\r\n" if is_whole else b""))
    assert [status_of(each) in (431, 0) for each in read_all([opened])] == [True]
    assert served.client.get("/health").status_code == 200


def test_pipelined_requests_are_answered_in_order(served: ServiceProcess) -> None:
    with connected(served, HEALTH * 3 + HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as opened:
        said = read_all([opened])[0]
    assert said.count(b"HTTP/1.1 200") == 4


def test_the_service_ends_with_everything_half_open(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path, AGENT_AUTOSTART="false").start()
    worker = None
    try:
        body = {**SMALL_TRAIN, "hyperparameters": {"lstm_units": 8, "epochs": 1000, "patience": 1000}}
        job = service.client.post("/api/v1/models/train", json=body).json()["job_id"]
        following = b"GET /api/v1/jobs/%s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % job.encode()
        streams = [connected(service, following) for _ in range(200)]
        for each in streams:
            assert each.recv(1).startswith(b"H")
        halves = [connected(service, HALF_HEADERS) for _ in range(300)]
        bodies = [connected(service, HALF_BODY) for _ in range(50)]
        in_flight = connected(service, HALF_BODY)
        last = connected(service, HEALTH)
        assert last.recv(1) == b"H"  # connections are taken in their order: all that was sent before is read
        worker = _worker_of(tmp_path, job)
        assert service.process is not None
        begun = time.monotonic()
        service.process.send_signal(signal.SIGSTOP)
        on_its_way = connected(service, HEALTH)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # so that it looks whether it is to end before it has read what waits
        service.process.send_signal(signal.SIGCONT)
        in_flight.sendall(b" " * 999)
        said = read_all([in_flight])[0]
        assert service.process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
        print(f"ended after {time.monotonic() - begun:.2f} s")  # noqa: T201
        assert status_of(said) in (404, 422), "what came whole is answered"
        assert read_all([on_its_way])[0].startswith(b"HTTP/1.1 200"), "what was sent before the end is answered"
        assert len(read_all(streams)) == 200
        assert set(map(status_of, read_all(bodies))) == {503}
        assert set(map(status_of, read_all(halves))) == {0}
        assert "timeout graceful shutdown exceeded" not in service.output.read_text()
    finally:
        service.process = None
        service.close()
        if worker is not None:
            psutil.Process(worker).kill()


def _worker_of(folder: Path, job: str) -> int:
    record = folder / "state" / "jobs" / job / "worker.json"
    deadline = time.monotonic() + PATIENCE_S
    while not record.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(json.loads(record.read_text())["pid"])


def test_an_answer_never_says_what_the_server_is(served: ServiceProcess) -> None:
    assert "server" not in httpx.get(f"{served.url}/health", timeout=60).headers
