"""Straight predictions and the app's own: the same bytes, records and counts, whichever way a request went."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from common_lib.exceptions import PredictionError
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.access.key_ring import KeyRing
from ml_workbench_service.api import errors
from ml_workbench_service.api.app_state import PredictState
from ml_workbench_service.api.door.straight_predictions import Met, Reply, StraightPredictions
from ml_workbench_service.api.metrics import Metrics
from ml_workbench_service.api.middleware import AtTheDoor
from ml_workbench_service.api.predict_workers.layers import put_layers
from ml_workbench_service.api.predicting import routes as predict_routes
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.queue import Enqueued, Outgoing
from ml_workbench_service.contracts.runs.records import RunRow
from ml_workbench_service.http_protocol import limited
from ml_workbench_service.http_server import QUIET
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.model_server import FEWEST_IN_COLUMNS, ModelServer
from ml_workbench_service.serving.publisher import PredictionPublisher
from ml_workbench_service.testing.clocks import FixedClock
from tests.trained_models import injected_bars, open_bench, train_model

KEY = "s3cret"
NOW = datetime(2025, 3, 5, 12, 30, tzinfo=UTC)
PATIENCE_S = 60.0
OWN = re.compile(rb'"prediction_id":"[0-9a-f]*"')
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PATH = "/api/v1/models/small/predict"


class Counting(StraightPredictions):
    """Which bodies were asked here, and how many of them answered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.answered: list[bool] = []

    def answer(self, met: Met, body: bytes, reply: Reply) -> dict[str, Any] | None:
        told = super().answer(met, body, reply)
        self.answered.append(told is None)
        return told


class Kept:
    """A ledger that keeps what it is given."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def record(self, answered: Any, making: Any, *, is_sampled: bool) -> None:
        self.answers.append((answered.record, making, is_sampled))

    def record_run(self, run: Any, making: Any, *, is_sampled_N: Any) -> None:
        self.answers += [(record, making, bool(each)) for record, each in zip(run.records(), is_sampled_N, strict=True)]


class Desk:
    """The routes of predictions over a real model, behind the service's own server; with or without the straight way.

    `chunked` are sent in a way that only the app understands.
    """

    def __init__(self, bench: Workbench, home: Path, *, is_straight: bool) -> None:
        self.enqueued: list[Outgoing] = []
        self.kept = Kept()
        ring = KeyRing(home / "keys.json", api_key=KEY, uses=home / "uses.json")
        self.gate = Gate(ring)
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        errors.install(self.app)
        self.app.include_router(predict_routes.router, prefix="/api/v1")
        self.straight = Counting(self.app, self.gate)
        put_layers(self.app, lambda app: AtTheDoor(app, gate=self.gate), self.straight, traced=False)
        self.metrics = Metrics()
        self.server = ModelServer(bench.registry, live=bench.history.live, ledger=self.kept)
        self._bench = bench
        self._is_straight = is_straight
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), daemon=True)
        self.port = 0
        self._lines: list[Line] = []

    def __enter__(self) -> "Desk":
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._lines:
            each.socket.close()
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE_S)

    async def _run(self) -> None:
        self.loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self.publisher = PredictionPublisher(self._enqueue)
        await self.publisher.start()
        self.app.state.service = PredictState(
            workbench=self._bench, model_server=self.server, publisher=self.publisher, metrics=self.metrics,
            stopping=asyncio.Event(),
        )  # fmt: skip
        protocol = limited(headers_s=60.0, body_s=60.0, straight=self.straight if self._is_straight else None)
        config = uvicorn.Config(self.app, lifespan="off", http=protocol, **QUIET)
        config.load()
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"today")]
        listening = await self.loop.create_server(
            lambda: protocol(config=config, server_state=self.state, app_state={}), "127.0.0.1", 0
        )
        self.port = listening.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        listening.close()
        while self.state.connections:
            await asyncio.sleep(0.001)
        await self.publisher.stop()
        self.server.close()

    async def _enqueue(self, batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        self.enqueued += batch
        return Enqueued(len(batch)), []

    def connected(self) -> "Line":
        """A connection that is kept."""
        self._lines.append(Line(self.port))
        return self._lines[-1]

    def wait_for(self, num: int) -> list[Outgoing]:
        """The records that were published, once they are so many."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.enqueued) < num:
            assert time.monotonic() < deadline, f"{len(self.enqueued)} of {num} records were published"
            time.sleep(0.001)
        return self.enqueued


class Line:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._left = b""

    def ask(self, body: bytes, *headers: bytes, path: str = PATH, parts: int = 1, key: str = KEY) -> bytes:
        """The whole answer, but for what is its own."""
        self.send(body, *headers, path=path, parts=parts, key=key)
        return self.read()

    def send(self, body: bytes, *headers: bytes, path: str = PATH, parts: int = 1, key: str = KEY) -> None:
        """The request, in so many pieces."""
        own = b"".join(each + b"\r\n" for each in headers)
        length = b"" if b"transfer-encoding: chunked" in headers else b"content-length: %d\r\n" % len(body)
        said = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"
            "X-Correlation-Id: same\r\n"
        ).encode()
        said += own + length + b"\r\n" + (body if length else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        for number in range(parts):
            self.socket.sendall(said[number * len(said) // parts : (number + 1) * len(said) // parts])

    def read(self) -> bytes:
        """The next answer."""
        said = self._left
        while b"\r\n\r\n" not in said.removeprefix(CONTINUE):
            said += self._more()
        said = said.removeprefix(CONTINUE)
        head, _, body = said.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        while len(body) < length:
            body += self._more()
        self._left = body[length:]
        return OWN.sub(b"", head + b"\r\n\r\n" + body[:length])

    def _more(self) -> bytes:
        received = self.socket.recv(65536)
        if not received:
            raise ConnectionError("closed")
        return received


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    home: Path = tmp_path_factory.mktemp("straight")
    bench = open_bench(home)
    injected_bars(1500, seed=3).write(home / "bars", "EUR/USD")
    train_model(
        bench, "small", checkpoint=home, family="linear", features=["signal", "rsi_14"], symbols=["EUR/USD"],
        hyperparameters={"epochs": 1, "lookback": 4},
    )  # fmt: skip
    torch.set_flush_denormal(False)  # as the tests had it before the training
    bench.history.append(
        Deployment(
            id="d-1", model_id="small", version="1.0.0", deployment_target="local", status="live",
            previous_version=None, created_at=utc_now(), live_at=utc_now(), monitoring_level="high",
        )
    )  # fmt: skip
    return replace(bench, clock=FixedClock(NOW))


@pytest.fixture
def desks(bench: Workbench, tmp_path: Path) -> Iterator[tuple[Desk, Desk]]:
    """The straight way, and the app's alone, each with intervals of its own."""
    with Desk(bench, tmp_path, is_straight=True) as fast, Desk(bench, tmp_path, is_straight=False) as plain:
        yield fast, plain


def window(**more: Any) -> bytes:
    features = {"signal": [0.1, -0.2, 0.3, 0.25], "rsi_14": [40.5, 51.25, 48.125, 55.0]}
    return json.dumps({"symbol": "EUR/USD", "timeframe": "1h", "features": features, **more}).encode()


numbers = st.one_of(st.floats(-60, 60).map(repr), st.sampled_from(["1e400", "null", "0", "-0.0", '"1.5"', "1e15", "7"]))
columns = st.lists(numbers, min_size=3, max_size=6).map(lambda each: f"[{','.join(each)}]")
texts = st.sampled_from(
    ['"EUR/USD"', '"eurusd"', '"GBP/USD"', '"1h"', '"4h"', '"1.0.0"', '"9.9.9"', "null", '"\\ud800"']
)
moments = st.sampled_from(
    ['"2025-03-05T12:00:00Z"', '"2025-03-05T11:00:00Z"', '"2024-03-05T11:00:00Z"', '"2026-03-05T11:00:00Z"', "null"]
)
pairs = st.one_of(
    st.tuples(st.sampled_from(["symbol", "timeframe", "version", "sybmol"]), texts),
    st.tuples(
        st.sampled_from(["features", "inputs"]),
        st.tuples(columns, columns, st.sampled_from(["rsi_14", "rsi", "signal"])).map(
            lambda each: f'{{"signal":{each[0]},"{each[2]}":{each[1]}}}'
        ),
    ),
    st.tuples(st.sampled_from(["price", "position"]), numbers),
    st.tuples(st.just("as_of"), moments),
)
usual = window()[1:-1].decode()
bodies = st.one_of(
    st.lists(pairs, max_size=3).map(
        lambda found: ("{" + ",".join([usual, *(f'"{name}":{value}' for name, value in found)]) + "}").encode()
    ),
    st.lists(pairs, max_size=5).map(
        lambda found: ("{" + ",".join(f'"{name}":{value}' for name, value in found) + "}").encode()
    ),
    st.sampled_from([b"", b"{", b"[]", b"null", b" " + window() + b"\n", window() + b"}"]),
    st.binary(max_size=9),
)
ways = st.sampled_from(
    [(), (), (), (b"x-forwarded-for: 10.0.0.1",), (b"x-request-id: 7",), (b"connection: keep-alive",),
     (b"origin: http://[",), (b"origin: http://localhost",), (b"sec-fetch-site: cross-site",),
     (b"expect: 100-continue",)]
)  # fmt: skip


@settings(
    max_examples=400, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    st.lists(
        st.tuples(bodies, ways, st.integers(1, 3), st.sampled_from(["", "?enqueue=never"])), min_size=1, max_size=4
    )
)
def _ask_both(lines: tuple[Line, Line], asked: list[tuple[bytes, tuple[bytes, ...], int, str]]) -> None:
    for body, headers, parts, query in asked:
        fast, plain = (each.ask(body, *headers, path=PATH + query, parts=parts) for each in lines)
        assert fast == plain


def counts(desk: Desk) -> list[str]:
    """What is counted of answers, but for times."""
    lines = desk.metrics.render().decode().splitlines()
    names = tuple(f"ml_workbench_{each}_total" for each in ("http_requests", "predictions", "abstentions"))
    return sorted(each for each in lines if each.startswith(names))


def test_thousands_of_bodies_get_the_same_answers_records_and_counts(desks: tuple[Desk, Desk]) -> None:
    fast, plain = desks
    lines = fast.connected(), plain.connected()
    _ask_both(lines)
    assert fast.straight.answered.count(True) > 50
    assert fast.straight.answered.count(False) > 50
    assert not plain.straight.answered
    num = len([each for each in plain.kept.answers if each[0].sample != "historical"])
    published = [[each.record for each in desk.wait_for(num)] for desk in desks]
    kept = [[record for record, *_ in desk.kept.answers] for desk in desks]
    for found in (published, kept):
        fast_ones, plain_ones = ([each.model_copy(update={"prediction_id": ""}) for each in one] for one in found)
        assert fast_ones == plain_ones
        assert fast_ones
    assert counts(fast) == counts(plain)


def test_a_connection_is_answered_straight_from_its_first_request_on(desks: tuple[Desk, Desk]) -> None:
    fast, _ = desks
    fast.connected().ask(window())  # which loads the version
    fast.straight.answered.clear()
    for parts in (1, 2, 7):
        line = fast.connected()
        said = [line.ask(window(price=1.1 + number), parts=parts) for number in range(4)]
        assert [each.startswith(b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: ") for each in said] == [True] * 4
    assert fast.straight.answered == [True] * 12


@pytest.mark.parametrize("query", ["", "?enqueue=never"])
def test_questions_that_share_a_run_get_the_answers_of_one_alone(desks: tuple[Desk, Desk], query: str) -> None:
    """Forty at once: some share a run that is answered as columns."""
    fast, plain = desks
    prices = [1.0 + number for number in range(40)]
    lines = [fast.connected() for _ in prices]
    lines[0].ask(window(price=0.5))
    alone = plain.connected()
    alone.ask(window(price=0.5))
    held, work = threading.Event(), fast.server.line._work
    sizes: list[int] = []

    def counted(items: Sequence[Any]) -> Any:
        sizes.append(len(items))
        assert held.wait(PATIENCE_S)
        return work(items)

    fast.server.line._cost_s.clear()  # so that the first run goes to the thread, where it holds up nobody
    fast.server.line._work = counted
    for line, price in zip(lines, prices, strict=True):
        line.send(window(price=price), b"x-request-id: 7", path=PATH + query)
    deadline = time.monotonic() + PATIENCE_S
    while sum(sizes) + fast.server.line.num_waiting < len(prices):
        assert time.monotonic() < deadline, "a question did not join the line"
        time.sleep(0.001)
    held.set()
    said = [line.read() for line in lines]
    assert said == [alone.ask(window(price=price), path=PATH + query) for price in prices]
    assert max(sizes) >= FEWEST_IN_COLUMNS
    num = 1 if query else len(prices) + 1
    published = [sorted(map(_named, desk.wait_for(num)), key=lambda each: float(each[1].price or 0)) for desk in desks]
    assert published[0] == published[1]
    assert len(published[0]) == num
    assert sorted(map(_plain, fast.kept.answers)) == sorted(map(_plain, plain.kept.answers))
    assert counts(fast) == counts(plain)


def _named(outgoing: Outgoing) -> tuple[str, Any]:
    record = outgoing.record.record if isinstance(outgoing.record, RunRow) else outgoing.record
    return outgoing.correlation_id, record.model_copy(update={"prediction_id": ""})


def _plain(kept: tuple[Any, Any, bool]) -> tuple[float, str, bool]:
    record, making, is_sampled = kept
    return record.price, repr((record.model_copy(update={"prediction_id": ""}), making)), is_sampled


def test_questions_without_a_correlation_id_get_ids_of_their_own(desks: tuple[Desk, Desk]) -> None:
    line = desks[0].connected()
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(window())}\r\n\r\n"
    ).encode() + window()
    found = set()
    for _ in range(5):
        line.socket.sendall(request)
        said = line.read()
        identifier = re.search(rb"x-correlation-id: ([0-9a-f]{32})\r\n", said)
        assert identifier is not None
        assert b'"correlation_id":"' + identifier[1] in said
        found.add(identifier[1])
    assert len(found) == 5


def test_pipelined_requests_are_answered_in_their_order(desks: tuple[Desk, Desk]) -> None:
    answers = []
    for desk in desks:
        line = desk.connected()
        line.ask(window())
        for number in range(6):
            line.send(window(price=1.0 + number), *((b"x-request-id: 7",) if number % 3 == 2 else ()))
        answers.append([line.read() for _ in range(6)])
    assert answers[0] == answers[1]
    prices = [json.loads(each.partition(b"\r\n\r\n")[2].replace(b"{,", b"{", 1))["price"] for each in answers[0]]
    assert prices == [1.0 + number for number in range(6)]


@pytest.mark.parametrize("key", ["wrong", "s3cre", "s3cret2"])
def test_a_key_that_is_not_the_right_one_is_refused_before_the_body_came(desks: tuple[Desk, Desk], key: str) -> None:
    answers = []
    for desk in desks:
        line = desk.connected()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\nX-Correlation-Id: same\r\n"
        line.socket.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n".encode())
        answers.append(line.read())
        assert not desk.straight.answered
    assert answers[0] == answers[1]
    assert answers[0].startswith(b"HTTP/1.1 401 ")


def test_a_key_that_ends_opens_a_known_head_no_longer(desks: tuple[Desk, Desk]) -> None:
    line = desks[0].connected()
    assert line.ask(window()).startswith(b"HTTP/1.1 200")
    assert line.ask(window()).startswith(b"HTTP/1.1 200")
    desks[0].gate.ring._master.digest = b"another"  # type: ignore[union-attr]
    assert line.ask(window()).startswith(b"HTTP/1.1 401")


def test_who_leaves_before_the_answer_harms_nobody_and_the_record_is_published(desks: tuple[Desk, Desk]) -> None:
    fast, _ = desks
    for number in range(20):
        line = fast.connected()
        line.ask(window(price=1.0))
        line.send(window(price=2.0 + number))
        line.socket.close()
    assert fast.connected().ask(window()).startswith(b"HTTP/1.1 200")
    fast.wait_for(41)
    assert {each.record.price for each in fast.enqueued} >= {2.0 + number for number in range(20)}


def test_what_fails_while_it_is_answered_is_worded_by_the_app(
    desks: tuple[Desk, Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (PredictionError("the graph is broken"), RuntimeError("a fault")):

        def work(items: Sequence[Any], error: Exception = error) -> list[Any]:
            return [error for _ in items]

        said = []
        for desk in desks:
            line = desk.connected()
            line.ask(window())
            monkeypatch.setattr(desk.server.line, "_work", work)
            said += [line.ask(window()), line.ask(window())]
            monkeypatch.undo()
        assert len(set(said)) == 1
        assert said[0].startswith(b"HTTP/1.1 500")
    assert counts(desks[0]) == counts(desks[1])


def test_a_service_that_ends_answers_what_is_there_and_says_that_it_closes(desks: tuple[Desk, Desk]) -> None:
    answers = []
    for desk in desks:
        line = desk.connected()
        line.ask(window())
        line.ask(window())
        begun, held, ended = threading.Event(), threading.Event(), threading.Event()
        work = desk.server.line._work

        def slow(items: Sequence[Any], begun: Any = begun, held: Any = held, work: Any = work) -> Any:
            begun.set()
            assert held.wait(PATIENCE_S)
            return work(items)

        desk.server.line._cost_s.clear()  # so that the run goes to the thread
        desk.server.line._work = slow
        line.send(window())
        assert begun.wait(PATIENCE_S)

        def end(desk: Desk = desk, ended: threading.Event = ended) -> None:
            for each in list(desk.state.connections):
                each.shutdown()
            ended.set()

        desk.loop.call_soon_threadsafe(end)
        assert ended.wait(PATIENCE_S)
        held.set()
        answers.append(line.read())
        with suppress(ConnectionResetError):
            assert line.socket.recv(1) == b""
    assert answers[0] == answers[1]
    assert b"connection: close\r\n" in answers[0]
