"""Every failure has the one body, says where and why, and never repeats what was sent."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from ml_workbench_service.access.gate import Gate
from ml_workbench_service.access.key_ring import KeyRing
from ml_workbench_service.api import errors
from ml_workbench_service.api.middleware import AtTheDoor
from tests.api.failures import assert_body, assert_failure, paths
from tests.conftest import SMALL_TRAIN
from tests.service_process import SEED_PREDICT

TRAIN = "/api/v1/models/train"
PREDICT = "/api/v1/models/small/predict"
JSON = {"Content-Type": "application/json"}
TOO_LARGE = b'{"name":"' + b"x" * (17 * 1024 * 1024) + b'"}'
NOT_TRAINED = {**SMALL_TRAIN, "model_id": "never_trained"}


def raw(body: dict[str, Any], **replaced: str) -> bytes:
    """The body as JSON text, with the named keys' values replaced by raw text."""
    text = json.dumps({**body, **{key: f"@{key}@" for key in replaced}})
    for key, value in replaced.items():
        text = text.replace(f'"@{key}@"', value)
    return text.encode()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "ROUTE_NOT_FOUND"),
        ("POST", "/api/v1/nowhere", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/docs-assets/nothing.js", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/api/v1/models/absent", 404, "MODEL_NOT_FOUND"),
        ("POST", "/api/v1/models/absent/predict", 422, "DATA_VALIDATION_ERROR"),
        ("GET", "/api/v1/models/small/versions/9.9.9", 404, "VERSION_NOT_FOUND"),
        ("GET", "/api/v1/jobs/absent", 404, "JOB_NOT_FOUND"),
        ("GET", "/api/v1/jobs/absent/events", 404, "JOB_NOT_FOUND"),
        ("POST", "/api/v1/jobs/absent/cancel", 404, "JOB_NOT_FOUND"),
        ("GET", "/api/v1/deployments/absent", 404, "DEPLOYMENT_NOT_FOUND"),
        ("POST", "/api/v1/deployments/absent/rollback", 404, "DEPLOYMENT_NOT_FOUND"),
        ("GET", "/api/v1/agents/absent", 404, "AGENT_NOT_FOUND"),
        ("PUT", "/health", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/api/v1/models", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/features/batch", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/docs-assets/swagger-ui.css", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/models?limit=0", 422, "DATA_VALIDATION_ERROR"),
        ("GET", "/api/v1/models?limit=201", 422, "DATA_VALIDATION_ERROR"),
        ("GET", "/api/v1/models?cursor=bm9uZQ==", 422, "DATA_VALIDATION_ERROR"),
        ("GET", "/api/v1/jobs?cursor=%21", 422, "DATA_VALIDATION_ERROR"),
        ("GET", "/api/v1/models?symbol=EURO", 422, "DATA_VALIDATION_ERROR"),
        ("GET", "/api/v1/deployments?at=2024", 422, "DATA_VALIDATION_ERROR"),
        ("GET", "/api/v1/deployments?at=0001-01-01T00:00:00%2B14:00", 422, "DATA_VALIDATION_ERROR"),
    ],
)
def test_a_failure_has_the_one_body(api: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    assert_failure(api.request(method, path), status, code)


def test_a_wrong_method_learns_the_right_ones(api: httpx.Client) -> None:
    assert api.put("/health").headers["Allow"] == "GET"
    assert api.get("/api/v1/features/batch").headers["Allow"] == "POST", "no symbol is called so"
    assert api.get("/api/v1/features/batch", params={"timeframe": "1h"}).status_code == 405
    assert_failure(api.get("/api/v1/models/train"), 404, "MODEL_NOT_FOUND")  # a model may be called so


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/models/%2e%2e",
        "/api/v1/models/a%00b",
        "/api/v1/models/%ed%a0%80",
        "/api/v1/models/%2e%2e/versions/1.0.0",
        "/api/v1/models/small/versions/%2e%2e",
        "/api/v1/models/small/versions/01.0.0",
        "/api/v1/models/small/versions/%d9%a1.0.0",
        "/api/v1/jobs/%2e%2e",
        "/api/v1/jobs/a%00",
        "/api/v1/jobs/%2e%2e/events",
        "/api/v1/agents/%2e%2e",
        "/api/v1/deployments/%2e%2e",
    ],
)
def test_a_path_that_is_no_name_is_refused(api: httpx.Client, path: str) -> None:
    assert_failure(api.get(path), 422, "DATA_VALIDATION_ERROR")


@pytest.mark.parametrize(
    "path", ["/docs-assets/%2e%2e/%2e%2e/etc/passwd", "/docs-assets/..%2f__init__.py", "/docs-assets/a%00b"]
)
def test_assets_do_not_leave_their_folder(api: httpx.Client, path: str) -> None:
    assert_failure(api.get(path), 404, "ROUTE_NOT_FOUND")


def test_a_body_over_its_limit_is_refused_by_its_announced_length(api: httpx.Client) -> None:
    assert_failure(api.post(TRAIN, content=TOO_LARGE, headers=JSON), 413, "PAYLOAD_TOO_LARGE")
    assert "1 MiB" in api.post(PREDICT, content=b" " * (1024 * 1024 + 1), headers=JSON).json()["message"]
    assert_failure(api.post("/nowhere", content=TOO_LARGE, headers=JSON), 413, "PAYLOAD_TOO_LARGE")
    assert api.get("/health").status_code == 200


def test_a_body_over_its_limit_is_refused_while_it_streams(api: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for begin in range(0, len(TOO_LARGE), 1 << 16):
            yield TOO_LARGE[begin : begin + (1 << 16)]

    assert_failure(api.post(TRAIN, content=chunks(), headers=JSON), 413, "PAYLOAD_TOO_LARGE")
    assert api.get("/health").status_code == 200


def test_a_body_under_its_operations_limit_is_read(api: httpx.Client) -> None:
    body = raw(NOT_TRAINED, notes=json.dumps("x" * (100 * 1024)))
    assert paths(assert_failure(api.post(TRAIN, content=body, headers=JSON), 422, "DATA_VALIDATION_ERROR")) == [
        "body.notes"
    ]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_json_by_its_type_is_refused(api: httpx.Client, kind: str) -> None:
    answer = api.post(TRAIN, content=b"{}", headers={"Content-Type": kind})
    assert_failure(answer, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.api+json", "Application/JSON"])
def test_the_kinds_of_json_are_read(api: httpx.Client, kind: str) -> None:
    answer = api.post(PREDICT, content=json.dumps(SEED_PREDICT), headers={"Content-Type": kind})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[1]",
        b"3",
        b'{"name":',
        b'{"name":"\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 50_000 + b"]" * 50_000,
        b'{"a":' * 20_000,
        b'{"seeds":[' + b"9" * 5000 + b"]}",
        raw(NOT_TRAINED, surprise="[" * 900 + "]" * 900),
        raw(NOT_TRAINED, hyperparameters='{"epochs":' + "[" * 900 + "]" * 900 + "}"),
        raw(NOT_TRAINED, name=r'"\ud800"'),
        raw(NOT_TRAINED, notes=r'"\ud800"'),
        raw(NOT_TRAINED, family=r'"\ud800"'),
        raw(NOT_TRAINED, target=r'"\ud800"'),
        raw(NOT_TRAINED, features=r'["\ud800"]'),
        raw(NOT_TRAINED, symbols=r'["\ud800"]'),
        raw(NOT_TRAINED, hyperparameters=r'{"\ud800": 1}'),
        raw(NOT_TRAINED, hyperparameters=r'{"epochs": "\ud800"}'),
        raw(NOT_TRAINED).replace(b'"name"', rb'"\ud800"'),
    ],
    ids=lambda content: repr(content[-30:]) if len(content) > 500 else repr(content[:40]),
)
def test_what_is_no_usable_json_is_a_422(api: httpx.Client, content: bytes) -> None:
    assert_failure(api.post(TRAIN, content=content, headers=JSON), 422, "DATA_VALIDATION_ERROR")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("key", ["validation_split", "dropout", "spread_pips"])
def test_a_number_that_is_not_finite_is_refused_when_training(api: httpx.Client, key: str, number: str) -> None:
    replaced = {
        "validation_split": {"validation_split": number},
        "dropout": {"hyperparameters": f'{{"dropout": {number}}}'},
        "spread_pips": {"costs": f'{{"spread_pips": {number}}}'},
    }[key]
    answer = api.post(TRAIN, content=raw(NOT_TRAINED, **replaced), headers=JSON)
    assert [path.rpartition(".")[2] for path in paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR"))] == [key]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1e308", "-1e38"])
def test_a_feature_no_network_can_read_is_refused_when_predicting(api: httpx.Client, number: str) -> None:
    columns = raw(SEED_PREDICT["features"], macd=f"[0.1, {number}, 0.2]").decode()
    answer = api.post(PREDICT, content=raw(SEED_PREDICT, features=columns), headers=JSON)
    assert paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR")) == ["body.features.macd.1"]
    answer = api.post(PREDICT, content=raw(SEED_PREDICT, price=number.replace("1e308", "NaN")), headers=JSON)
    assert paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR")) == ["body.price"]


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z", "1960-01-01T00:00:00Z"])
@pytest.mark.parametrize("key", ["start_date", "end_date", "as_of"])
def test_a_time_off_the_calendar_is_refused_where_it_stands(api: httpx.Client, key: str, moment: str) -> None:
    answer = api.post(TRAIN, json={**NOT_TRAINED, key: moment})
    assert paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR")) == [f"body.{key}"]
    answer = api.post(PREDICT, json={**SEED_PREDICT, "as_of": moment})
    assert paths(assert_failure(answer, 422, "DATA_VALIDATION_ERROR")) == ["body.as_of"]


@pytest.mark.parametrize("moment", ["2024-03-01T00:00:00", "2024-03-01", 1709251200, "1709251200"])
def test_a_time_without_a_zone_is_refused(api: httpx.Client, moment: object) -> None:
    answer = api.post(TRAIN, json={**NOT_TRAINED, "start_date": moment})
    body = assert_failure(answer, 422, "DATA_VALIDATION_ERROR")
    assert paths(body) == ["body.start_date"]
    assert "2025-03-01T00:00:00Z" in body["message"]


@pytest.mark.parametrize(
    ("path", "body", "place", "nearest"),
    [
        (TRAIN, {**NOT_TRAINED, "feature": []}, "body.feature", "features"),
        (TRAIN, {**NOT_TRAINED, "validation_splt": 0.1}, "body.validation_splt", "validation_split"),
        (TRAIN, {**NOT_TRAINED, "costs": {"spread_pip": 1}}, "body.costs.spread_pip", "spread_pips"),
        (TRAIN, {**NOT_TRAINED, "hyperparameters": {"epoch": 1}}, "body.hyperparameters.epoch", "epochs"),
        (PREDICT, {**SEED_PREDICT, "simbol": "EUR/USD"}, "body.simbol", "symbol"),
        (
            "/api/v1/models/small/deploy",
            {"version": "1.0.0", "deploy_target": "x"},
            "deploy_target",
            "deployment_target",
        ),
        ("/api/v1/replays", {"model": "small"}, "body.model", "model_id"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    api: httpx.Client, path: str, body: dict[str, Any], place: str, nearest: str
) -> None:
    found = assert_failure(api.post(path, json=body), 422, "DATA_VALIDATION_ERROR")["details"]["errors"]
    assert [f"did you mean {nearest}?" in each["message"] for each in found if each["path"].endswith(place)] == [True]


@pytest.mark.parametrize(
    ("target", "place", "code"),
    [
        ([], "body.target", "too_short"),
        (["price_change_1h"] * 40, "body.target", "too_long"),
        (["price_change_1h", 5], "body.target.1", "string_type"),
        ("x" * 65, "body.target", "string_too_long"),
        (5, "body.target", "string_type"),
    ],
)
def test_a_key_of_two_shapes_is_explained_by_the_one_that_was_sent(
    api: httpx.Client, target: object, place: str, code: str
) -> None:
    body = assert_failure(api.post(TRAIN, json={**NOT_TRAINED, "target": target}), 422, "DATA_VALIDATION_ERROR")
    found = [(each["path"], each["code"]) for each in body["details"]["errors"] if "target" in each["path"]]
    assert found[0] == (place, code)
    assert {path for path, _ in found} == {place}


@pytest.mark.parametrize("key", [*SMALL_TRAIN, "family", "version", "timeframe", "seeds", "costs", "as_of", "notes"])
def test_a_rejected_value_is_never_echoed(api: httpx.Client, key: str) -> None:
    for value in ("zq-echo-zq", ["zq-echo-zq"], {"lookback": "zq-echo-zq"}):
        body = {**NOT_TRAINED, "hyperparameters": {"epochs": "zq-echo-zq"}, key: value}
        answer = api.post(TRAIN, json=body)
        assert answer.status_code == 422
        assert "echo" not in answer.text


@pytest.mark.parametrize("key", ["symbol", "timeframe", "features", "inputs", "context", "version", "as_of", "price"])
def test_a_rejected_value_is_never_echoed_by_a_prediction(api: httpx.Client, key: str) -> None:
    for value in ("zq-echo-zq", ["zq-echo-zq"], {"macd": ["zq-echo-zq"]}):
        answer = api.post(PREDICT, json={**SEED_PREDICT, key: value})
        assert answer.status_code == 422
        assert "echo" not in answer.text


def test_hundreds_of_failures_are_cut_short(api: httpx.Client) -> None:
    answer = api.post(TRAIN, json={**NOT_TRAINED, **{f"k{number}" + "y" * 500: 1 for number in range(200)}})
    body = assert_failure(answer, 422, "DATA_VALIDATION_ERROR")
    assert len(body["details"]["errors"]) == 50
    assert len(answer.content) < 50_000
    assert "and 199 more" in body["message"]


def test_a_correlation_id_comes_back_in_header_and_body(api: httpx.Client) -> None:
    for identifier in ("a", "A1._-z", "x" * 64):
        answer = api.get("/nowhere", headers={"X-Correlation-ID": identifier})
        assert answer.headers["X-Correlation-ID"] == identifier == answer.json()["correlation_id"]
        assert api.get("/health", headers={"X-Correlation-ID": identifier}).headers["X-Correlation-ID"] == identifier


@pytest.mark.parametrize("identifier", ["", "x" * 65, "a b", "a/b", "ä".encode(), 'a"b', "a;b"])
def test_another_correlation_id_is_replaced(api: httpx.Client, identifier: str | bytes) -> None:
    answers = [api.get("/nowhere", headers={"X-Correlation-ID": identifier}) for _ in range(2)]
    made = [assert_failure(answer, 404, "ROUTE_NOT_FOUND")["correlation_id"] for answer in answers]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)
    assert made[0] != made[1]


async def test_a_surprise_is_logged_and_says_nothing_of_itself(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    app = FastAPI()
    errors.install(app)

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret of the house")

    gate = Gate(KeyRing(tmp_path / "keys.json", api_key=None, uses=tmp_path / "uses.json"))
    app.add_middleware(AtTheDoor, gate=gate)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://testserver", timeout=60
    ) as client:
        answer = await client.get("/broken", headers={"X-Correlation-ID": "lost-1"})
    assert answer.status_code == 500
    assert answer.headers["X-Correlation-ID"] == "lost-1"
    assert_body(answer.json(), "INTERNAL_ERROR")
    assert "secret" not in answer.text
    assert "a secret of the house" in caplog.text
