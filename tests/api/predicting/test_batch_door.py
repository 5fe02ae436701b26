"""The fast path of `/predict/batch` and FastAPI's own: the same answer to every body."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError, ModelNotFoundError, VersionNotFoundError
from ml_workbench_service.api import predictions
from ml_workbench_service.api.batches import door
from ml_workbench_service.api.predicting import routes as predict_routes
from ml_workbench_service.contracts.clock import WALL
from ml_workbench_service.contracts.prediction import PredictRequest
from tests.api.predicting.test_predict_door import CHUNKED, KEY, Desk, broken, objects
from tests.prediction_records import prediction_record

PATH = "/api/v1/models/small/predict/batch"


class BatchDesk(Desk):
    """The app, whose answers tell what items came through to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.items: list[list[Any]] = []
        service = self.app.state.service
        service.workbench = SimpleNamespace(clock=WALL)
        service.model_server = SimpleNamespace(choose=self._choose)
        monkeypatch.setattr(predictions, "answer_many", self._answer_many)
        self.by_the_door = []
        for module in (door, predict_routes):
            monkeypatch.setattr(module, "answer_items", self._noted(predictions.answer_items, module is door))

    def _noted(self, answer_items: Any, is_the_door: bool) -> Any:
        async def noted(*args: Any) -> bytes:
            self.by_the_door.append(is_the_door)
            return bytes(await answer_items(*args))

        return noted

    async def _choose(self, model_id: str, version: str | None) -> str:
        if model_id == "nobody":
            raise ModelNotFoundError("no model of this id")
        if version is not None:
            raise VersionNotFoundError("no such version")
        return "chosen"

    async def _answer_many(self, service: Any, asked: list[Any], enqueue: str, *, received_ms: int) -> list[Any]:
        self.items.append([each if isinstance(each, Exception) else each[1] for each in asked])
        return [
            each
            if isinstance(each, DataValidationError | VersionNotFoundError)
            else SimpleNamespace(body=prediction_record(source=enqueue).model_dump_json().encode())
            for each in asked
        ]


@pytest.fixture(scope="module")
def desk() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        desk = BatchDesk(patch)
        yield desk
        desk.loop.close()


lists = st.lists(st.one_of(objects, broken), max_size=4).map(lambda each: f'{{"items":[{",".join(each)}]}}')
bodies = st.one_of(
    lists.map(str.encode),
    lists.map(lambda text: text.encode("utf-16")),
    objects.map(str.encode),
    broken.map(str.encode),
    st.binary(max_size=20),
)


@settings(
    max_examples=1500, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(bodies)
@example(b'{"items":[{"inputs":{"a":[1e400],"a":[2,3]}},{"inputs":{"a":[1],"a":[2]}}]}')
@example(b'{"items":[{"symbol":"EUR/USD","timeframe":"1h","version":"1.0.0"},NaN,{"x":NaN}]}')
@example(b'{"items":[' + b"{}," * 1000 + b"{}]}")
@example(b'{"items":[],"items":[{}]}')
@example(b'{"items":[{"a":' + b"[" * 3000 + b"]" * 3000 + b"}]}")
def test_every_body_gets_the_same_answer_by_either_way(desk: BatchDesk, body: bytes) -> None:
    desk.items.clear()
    fast, plain = desk.both(body, path=PATH)
    assert fast == plain
    assert len(desk.items) in (0, 2)
    if desk.items:
        for one, other in zip(*desk.items, strict=True):
            assert type(one) is type(other)
            if isinstance(one, PredictRequest):
                assert one == other
                assert one.model_fields_set == other.model_fields_set


ONE = {"symbol": "EUR/USD", "timeframe": "1h", "features": {"a": [1.5, 2]}}
ORDINARY = json.dumps({"items": [ONE, {}, ONE]}).encode()


def test_an_ordinary_batch_takes_the_fast_path_and_any_other_the_route(desk: BatchDesk) -> None:
    for query in (b"", b"enqueue=never", b"enqueue=guaranteed"):
        desk.by_the_door.clear()
        fast, plain = desk.both(ORDINARY, path=PATH, query=query)
        assert fast == plain
        assert fast[0] == 200
        assert desk.by_the_door == [True, False]


@pytest.mark.parametrize("query", [b"enqueue=sometimes", b"enqueu=never"])
def test_queries_are_judged_by_the_route(desk: BatchDesk, query: bytes) -> None:
    fast, plain = desk.both(ORDINARY, path=PATH, query=query)
    assert fast == plain
    assert fast[0] == 422


@pytest.mark.parametrize("model_id", ["nobody", "Small", "a..b", "a/b"])
def test_models_are_judged_alike(desk: BatchDesk, model_id: str) -> None:
    fast, plain = desk.both(ORDINARY, path=f"/api/v1/models/{model_id}/predict/batch")
    assert fast == plain


def test_the_key_is_compared_before_the_body_is_read(desk: BatchDesk) -> None:
    for headers in ([], [(b"x-api-key", b"wrong")]):
        status, _, said = desk.post(ORDINARY, (b"content-length", str(len(ORDINARY)).encode()), *headers, path=PATH)
        assert status == 401
        assert json.loads(said)["error_code"] == "AUTHENTICATION_ERROR"
        assert desk.unread == 2


def test_the_requests_metric_names_the_route_by_either_way(desk: BatchDesk) -> None:
    key = (b"x-api-key", KEY.encode())
    desk.both(ORDINARY, path=PATH)
    desk.post(ORDINARY, key, *CHUNKED, path=PATH)
    lines = desk.app.state.service.metrics.render().decode().splitlines()
    found = [line for line in lines if line.startswith("ml_workbench_http_requests_total{") and 'status="200"' in line]
    assert len(found) == 1
    assert 'route="/api/v1/models/{model_id}/predict/batch"' in found[0]
