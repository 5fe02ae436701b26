"""The law of the event loop: no input stops `/health` for longer than ten times its idle latency's 99th percentile.

Both are measured in one run, on one machine, whatever else it does: idle before and after, and for each input the
least of several tries of the longest answer meanwhile, so that a stall of the machine counts only where it comes again
with every try.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ml_workbench_service.access.operations import NO_BODY, OPERATIONS
from ml_workbench_service.contracts.bodies import BODIES
from tests.conftest import SMALL_TRAIN
from tests.http_server.hostile_bodies import bodies
from tests.service_process import ServiceProcess

KEY = "a-key-that-is-long-enough"
FACTOR = 10
MOST_TRIES = 6
IDLE_S = 1.0
PATIENCE_S = 240.0
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHORT = ("many keys", "wrong values", "many features", "a long key")
SHORT_PATHS = ("/api/v1/models/{model_id}/predict", "/v2/models/{model_id}/infer")
READ_HERE_BYTES = 8_000
"""Of a body that the service reads itself, whatever it is."""
SHORT_BYTES = (1 << 20, READ_HERE_BYTES)


class Asker:
    """Asks `/health` all the time, over one connection, and remembers when and how long."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._answers: list[tuple[float, float]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S) as opened:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self._is_over.is_set():
                begun, said = time.perf_counter(), b""
                opened.sendall(HEALTH)
                while not said.endswith(b"}"):
                    said += opened.recv(65536)
                self._answers.append((begun, time.perf_counter() - begun))
                time.sleep(0.001)

    def idle_p99_s(self) -> float:
        """Of the next second."""
        begun = time.perf_counter()
        time.sleep(IDLE_S)
        return float(np.percentile([took for at, took in self._answers if at >= begun], 99))

    def longest_s(self, begun: float, ended: float) -> float:
        """Of the answers that fell into a stretch of time."""
        time.sleep(0.01)
        return max((took for at, took in list(self._answers) if at + took >= begun and at <= ended), default=0.0)

    def close(self) -> None:
        """Ends it."""
        self._is_over.set()
        self._thread.join(PATIENCE_S)


def send(port: int, path: str, body: bytes, key: str | None) -> int:
    """Posts it over a connection of its own; the status."""
    said = b""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body)}\r\n" + (f"X-API-Key: {key}\r\n" if key else "")
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as opened:
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            opened.sendall(head.encode() + b"\r\n" + body)
        with contextlib.suppress(ConnectionError):
            while part := opened.recv(1 << 20):
                said += part
    return int(said.split(b" ", 2)[1]) if said else 0


def place_of(path: str) -> str:
    """A path of the operation."""
    given = {"model_id": "small", "version": "1.0.0", "prediction_id": "ab"}
    return path.format(**given)


def stalls(service: ServiceProcess, asked: Iterator[tuple[str, str, bytes, str | None]]) -> list[str]:
    """Every input that stopped `/health` for too long, whatever the machine did; statuses of 500 too."""
    send(service.port, place_of("/api/v1/models/train"), b"[" * 20_000, KEY)  # the table process starts
    asker, found, worst = Asker(service.port), [], (0.0, "nothing")
    num = 0
    try:
        time.sleep(0.5)
        idle_s = asker.idle_p99_s()
        for path, what, body, key in asked:
            num += 1
            least_s = float("inf")
            for number in range(MOST_TRIES):
                begun = time.perf_counter()
                status = send(service.port, place_of(path), body, key)
                least_s = min(least_s, asker.longest_s(begun, time.perf_counter()))
                if status >= 500 and status not in (503, 507):
                    found.append(f"{path}, {what}: {status}")
                if least_s <= FACTOR * idle_s:
                    break
                if number:
                    idle_s = max(idle_s, asker.idle_p99_s())
            worst = max(worst, (least_s / idle_s, f"{path}, {what}, {len(body):,} bytes"))
            if least_s > FACTOR * idle_s:
                found.append(f"{path}, {what}, {len(body):,} bytes: {least_s / idle_s:.1f} times")
    finally:
        asker.close()
    print(f"{num} inputs, idle p99 {idle_s * 1000:.2f} ms, the longest stall {worst[0]:.1f} times it: {worst[1]}")  # noqa: T201
    return found


def test_every_operation_with_a_body_is_known_to_the_reader_of_large_ones() -> None:
    taking = {each.path for each in OPERATIONS.values() if each.method == "POST" and each.most_bytes != NO_BODY}
    assert set(BODIES) == taking


def test_health_answers_while_costly_bodies_are_refused(service: ServiceProcess) -> None:
    inputs = [
        (path, what, body)
        for size in SHORT_BYTES
        for path in SHORT_PATHS
        for what, body in bodies(size)
        if what in SHORT
    ]
    assert not stalls(service, ((path, what, body[: _most(path)], None) for path, what, body in inputs))


@pytest.mark.more
@pytest.mark.parametrize("key", [KEY, None], ids=["with a key", "without one"])
def test_health_answers_whatever_is_sent(guarded_service: ServiceProcess, key: str | None) -> None:
    def asked() -> Iterator[tuple[str, str, bytes, str | None]]:
        for path in (
            each for each in BODIES if not each.startswith("/v2/models/{model_id}/versions")
        ):  # the same function answers it
            sizes = {_most(path), min(_most(path), 60_000), READ_HERE_BYTES} if key else {_most(path)}
            for size in sorted(sizes):
                yield from ((path, what, body, key) for what, body in bodies(size))

    assert not stalls(guarded_service, asked())


@pytest.fixture(scope="module")
def guarded_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with a key, and the model `small`, live."""
    folder: Path = tmp_path_factory.mktemp("guarded")
    running = ServiceProcess(folder, API_KEY=KEY, AGENT_AUTOSTART="false", TABLE_IDLE_S="3600").start()
    running.client.headers["X-API-Key"] = KEY
    running.train({**SMALL_TRAIN, "hyperparameters": {"lstm_units": 4, "epochs": 1, "batch_size": 256}})
    body = {"version": "1.0.0", "deployment_target": "local"}
    running.client.post("/api/v1/models/small/deploy", json=body).raise_for_status()
    yield running
    running.close()


def _most(path: str) -> int:
    return OPERATIONS[f"POST {path}"].most_bytes - 16
