"""The fast path of `/predict` and FastAPI's own: the same answer to every body, and the key before the body."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.api import predict_door
from ml_workbench_service.api.app_state import AppState
from ml_workbench_service.api.metrics import Metrics
from ml_workbench_service.api.predicting import routes as predict_routes
from ml_workbench_service.app import create_app
from ml_workbench_service.contracts.prediction import PredictionRecord, PredictRequest
from ml_workbench_service.settings import Settings
from tests.prediction_records import prediction_record

KEY = "s3cret"
CHUNKED = [(b"transfer-encoding", b"chunked")]
"""Which the fast path leaves to FastAPI."""


class Desk:
    """The app, whose answers tell what request came through to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = asyncio.new_event_loop()
        self.asked: list[PredictRequest] = []
        self.by_the_door: list[bool] = []
        self.app: FastAPI = create_app(Settings(API_KEY=KEY))
        service = AppState.__new__(AppState)
        service.metrics = Metrics()
        self.app.state.service = service
        for module in (predict_door, predict_routes):
            monkeypatch.setattr(module, "answer_one", self._by(module is predict_door))

    def _by(self, is_the_door: bool) -> Any:
        async def answer_one(_: AppState, model_id: str, request: PredictRequest, enqueue: str) -> PredictionRecord:
            self.asked.append(request)
            self.by_the_door.append(is_the_door)
            if request.position == 1:
                raise DataValidationError.at("body.position", "no room for longs today")
            if request.position == -1:
                raise RuntimeError("a fault")
            return prediction_record(model_id=model_id, price=request.price, source=enqueue)

        return answer_one

    def post(
        self, body: bytes, *headers: tuple[bytes, bytes], path: str = "/api/v1/models/small/predict", query: bytes = b""
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """Status, headers and body of the answer."""
        return self.loop.run_until_complete(self._post(body, headers, path, query))

    async def _post(
        self, body: bytes, headers: tuple[tuple[bytes, bytes], ...], path: str, query: bytes
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        plain = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"x-correlation-id", b"same")]
        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": query, "root_path": "", "headers": [*plain, *headers],
            "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2),
        }  # fmt: skip
        parts = [body[: len(body) // 2], body[len(body) // 2 :]]
        left = [{"type": "http.request", "body": part, "more_body": not place} for place, part in enumerate(parts)]
        sent: list[Any] = []

        async def receive() -> Any:
            return left.pop(0) if left else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        self.unread = len(left)
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(each.get("body", b"") for each in sent[1:])

    def both(self, body: bytes, **changes: Any) -> tuple[tuple[int, dict[bytes, bytes], bytes], ...]:
        """The answer by the fast path where it takes the request, and FastAPI's."""
        key = (b"x-api-key", KEY.encode())
        fast = self.post(body, key, (b"content-length", str(len(body)).encode()), **changes)
        return fast, self.post(body, key, *CHUNKED, **changes)


@pytest.fixture(scope="module")
def desk() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        desk = Desk(patch)
        yield desk
        desk.loop.close()


numbers = st.one_of(
    st.floats(-10, 10).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(
        ["1e400", "-1e400", "NaN", "Infinity", "1e15", "1.0000000000000002e15", "-0.0", "0", "1e-320", "1" * 400,
         "01", "1.", ".5", "true", "null", '"1.5"', '"x"', '" 2 "', "[]", "{}", '"1_0"', "1E3", "1234567890123456789.5"]
    ),
)  # fmt: skip
lists = st.lists(numbers, max_size=5).map(lambda each: f"[{','.join(each)}]")
columns = st.one_of(
    st.lists(st.tuples(st.sampled_from(["a", "b", "\\ud800", "é", "a b"]), st.one_of(lists, numbers)), max_size=4).map(
        lambda pairs: "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"
    ),
    numbers,
)
moments = st.sampled_from(
    ['"2025-03-05T13:00:00Z"', '"2025-03-05T13:00:00"', '"2025-03-05 13:00:00+02:00"', '"1741179600"', "1741179600",
     '"2025-13-05T13:00:00Z"', "null", '"0001-01-01T00:00:00+14:00"', '"2025-03-05"', '"1900-01-01T00:00:00Z"']
)  # fmt: skip
texts = st.sampled_from(
    [
        '"EUR/USD"',
        '"eurusd"',
        '"EUREUR"',
        '"1h"',
        '"H1"',
        '"60m"',
        '"1.0.0"',
        '"01.0.0"',
        "1",
        "null",
        '""',
        '"\\ud800"',
        '"é"',
    ]
)
pairs = st.one_of(
    st.tuples(st.sampled_from(["symbol", "timeframe", "version", "version_id", "sybmol"]), texts),
    st.tuples(st.sampled_from(["features", "inputs"]), columns),
    st.tuples(st.sampled_from(["price", "position"]), numbers),
    st.tuples(st.just("as_of"), moments),
    st.tuples(
        st.just("context"),
        st.lists(st.tuples(st.sampled_from(["symbol", "timeframe", "x"]), texts), max_size=3).map(
            lambda found: "{" + ",".join(f'"{name}":{value}' for name, value in found) + "}"
        ),
    ),
)
usual = st.sampled_from([[], [("symbol", '"EUR/USD"'), ("timeframe", '"1h"')], [("inputs", '{"a":[1,2]}')]])
objects = st.tuples(usual, st.lists(pairs, max_size=5)).map(
    lambda found: "{" + ",".join(f'"{name}":{value}' for name, value in [*found[0], *found[1]]) + "}"
)
broken = st.sampled_from(["", "{", "[]", "null", "1", '"x"', "{}", '{"symbol":}', "{'a':1}", '{"a":1}}', "\ufeff{}"])
bodies = st.one_of(
    objects.map(str.encode),
    objects.map(lambda text: text.encode("utf-16")),
    objects.map(lambda text: b"\n\t " + text.encode() + b" \n"),
    broken.map(str.encode),
    st.binary(max_size=20),
)


@settings(
    max_examples=2000, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(bodies)
@example(b'{"symbol":"EUR/USD","timeframe":"1h","symbol":"GBP/USD"}')
@example(b'{"inputs":{"a":[1],"a":[2,3]}}')
@example(b'{"inputs":{"a":[1e400],"a":[2,3]}}')
@example(b'{"symbol":"EUR/USD","timeframe":"1h","position":1}')
@example(b'{"symbol":"EUR/USD","timeframe":"1h","position":-1}')
@example(b'{"symbol":"EUR/USD","timeframe":"1h","price":1' + b"0" * 400 + b"}")
@example(b'{"a":' * 3000 + b"1" + b"}" * 3000)
def test_every_body_gets_the_same_answer_by_either_way(desk: Desk, body: bytes) -> None:
    desk.asked.clear()
    fast, plain = desk.both(body)
    assert fast == plain
    assert len(desk.asked) in (0, 2)
    if desk.asked:
        assert desk.asked[0] == desk.asked[1]
        assert desk.asked[0].model_fields_set == desk.asked[1].model_fields_set


MOST_BODY = 1024 * 1024
ORDINARY = json.dumps({"symbol": "EUR/USD", "timeframe": "1h", "features": {"a": [1.5, 2]}, "price": 1.1}).encode()


def test_an_ordinary_request_takes_the_fast_path_and_any_other_the_route(desk: Desk) -> None:
    desk.by_the_door.clear()
    for query in (b"", b"enqueue=never", b"enqueue=guaranteed"):
        fast, plain = desk.both(ORDINARY, query=query)
        assert fast == plain
        assert fast[0] == 200
        assert list(fast[1]) == list(plain[1])
    assert desk.by_the_door == [True, False] * 3
    desk.by_the_door.clear()
    too_large, streamed = desk.both(ORDINARY + b" " * MOST_BODY)
    assert (too_large[0], streamed[0], too_large[2]) == (413, 413, streamed[2])
    assert desk.by_the_door == []


@pytest.mark.parametrize("query", [b"enqueue=sometimes", b"enqueu=never", b"enqueue=never&enqueue=never", b"x"])
def test_queries_are_judged_by_the_route(desk: Desk, query: bytes) -> None:
    fast, plain = desk.both(ORDINARY, query=query)
    assert fast == plain
    assert fast[0] in (200, 422)


@pytest.mark.parametrize("model_id", ["Small", "-x", "a" * 65, "small%0A", "", "a/b", "a..b"])
def test_ids_are_judged_alike(desk: Desk, model_id: str) -> None:
    fast, plain = desk.both(ORDINARY, path=f"/api/v1/models/{model_id}/predict")
    assert fast == plain


@pytest.mark.parametrize("key", [None, b"wrong", KEY.encode() + b"x", "ß".encode()])
@pytest.mark.parametrize("body", [ORDINARY, b"{", b"x" * (predict_door.READ_HERE + 1)])
def test_the_key_is_compared_before_the_body_is_read(desk: Desk, key: bytes | None, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    status, _, said = desk.post(body, length, *([] if key is None else [(b"x-api-key", key)]))
    assert status == 401
    assert json.loads(said)["error_code"] == "AUTHENTICATION_ERROR"
    assert desk.unread == 2


def test_the_requests_metric_names_the_route_by_either_way(desk: Desk) -> None:
    desk.both(ORDINARY)
    lines = desk.app.state.service.metrics.render().decode().splitlines()
    found = [line for line in lines if line.startswith("ml_workbench_http_requests_total{") and 'status="200"' in line]
    assert len(found) == 1
    assert 'route="/api/v1/models/{model_id}/predict"' in found[0]
