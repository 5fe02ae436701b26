"""Large bodies: read by another process, answered and refused as small ones are."""

import json
from typing import Any

import httpx
import pytest

from ml_workbench_service.contracts.bodies import READ_HERE, SHORT
from tests.api.failures import assert_failure
from tests.conftest import SMALL_TRAIN
from tests.service_process import SEED_PREDICT

API = "/api/v1/models/small"
OWN = ("prediction_id", "timestamp", "valid_until", "as_of", "metadata")
FEATURES: dict[str, list[float]] = SEED_PREDICT["features"]


def question(num_rows: int, **more: Any) -> dict[str, Any]:
    """A request whose columns have so many rows, of which the last ones are always the same."""
    columns = {name: (values * num_rows)[-3 * num_rows :] for name, values in FEATURES.items()}
    return {**SEED_PREDICT, "features": columns, **more}


def told(record: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from answer to answer."""
    return {name: value for name, value in record.items() if name not in OWN}


def sent(client: httpx.Client, path: str, body: Any, **headers: str) -> httpx.Response:
    """The answer to a body that is large."""
    content = json.dumps(body).encode()
    assert len(content) > READ_HERE
    return client.post(path, content=content, headers={"Content-Type": "application/json", **headers})


@pytest.mark.parametrize("query", ["", "?enqueue=never"])
def test_a_large_prediction_is_answered_as_a_small_one(api: httpx.Client, query: str) -> None:
    small = api.post(f"{API}/predict{query}", json=question(100))
    large = sent(api, f"{API}/predict{query}", question(1500))
    assert (small.status_code, large.status_code) == (200, 200), large.text
    assert told(large.json()) == told(small.json())


def test_every_way_to_ask_comes_through(api: httpx.Client) -> None:
    moment = "2025-02-03T10:00:00Z"
    body = question(1500, as_of=moment, version="1.0.0", price=1.1)
    assert told(sent(api, f"{API}/predict", body).json())["version"] == "1.0.0"
    inputs = {"inputs": body["features"], "context": {"symbol": "EUR/USD"}}
    small = {"inputs": question(100)["features"], "context": {"symbol": "EUR/USD"}}
    assert told(sent(api, f"{API}/predict", inputs).json()) == told(api.post(f"{API}/predict", json=small).json())


def test_a_large_batch_is_answered_item_by_item(api: httpx.Client) -> None:
    items = [question(30), {**question(30), "features": {"sma_20": ["x"]}}, question(30, symbol="nothing")] * 40
    small = api.post(f"{API}/predict/batch", json={"items": items[:3]}).json()["predictions"]
    large = sent(api, f"{API}/predict/batch", {"items": items}).json()["predictions"]
    assert len(large) == 120
    assert told(large[117]) == told(small[0])
    for place in (1, 2):
        one, other = small[place], large[117 + place]
        assert other["error_code"] == one["error_code"] == "DATA_VALIDATION_ERROR"
        assert other["message"] == one["message"].replace(f"items.{place}", f"items.{117 + place}")


def test_large_tensors_are_read_as_small_ones(api: httpx.Client) -> None:
    def asked(num: int) -> dict[str, Any]:
        inputs = [
            {"name": name, "datatype": "FP64", "shape": [1, 3 * num], "data": values * num}
            for name, values in FEATURES.items()
        ]
        return {"id": "42", "parameters": {"symbol": "EUR/USD"}, "inputs": inputs}

    small, large = api.post("/v2/models/small/infer", json=asked(100)), sent(api, "/v2/models/small/infer", asked(1500))
    assert (small.status_code, large.status_code) == (200, 200), large.text
    outputs = [{each["name"]: each["data"] for each in one.json()["outputs"]} for one in (small, large)]
    assert outputs[0]["prediction"] == outputs[1]["prediction"]
    assert large.json()["id"] == "42"


@pytest.mark.parametrize("is_large", [False, True])
def test_what_is_wrong_is_said_alike(api: httpx.Client, is_large: bool) -> None:
    padding = {"notes": "x" * (3 * SHORT)} if is_large else {}
    body = {**SMALL_TRAIN, "featurs": [], **padding}
    errors = api.post("/api/v1/models/train", json=body).json()["details"]["errors"]
    misspelt = next(each for each in errors if each["path"] == "body.featurs")
    assert misspelt["message"] == "this key is not known; did you mean features?"


def test_a_flood_of_mistakes_is_one_sentence(api: httpx.Client) -> None:
    body = {**SEED_PREDICT, "features": {"sma_20": ["x"] * 50_000}}
    said = assert_failure(sent(api, f"{API}/predict", body), 422, "DATA_VALIDATION_ERROR")
    assert "50000 things" in said["message"]


def test_a_path_or_query_that_is_wrong_is_refused_whatever_the_body(api: httpx.Client) -> None:
    assert sent(api, f"{API}/predict?enqueue=sometimes", question(1500)).status_code == 422
    assert sent(api, "/api/v1/models/Small/predict", question(1500)).status_code == 422
    assert sent(api, "/api/v1/models/absent/predict", question(1500)).status_code == 404


def test_a_large_body_of_no_stated_length_is_read(api: httpx.Client) -> None:
    content = json.dumps(question(1500)).encode()
    pieces = (content[place : place + 10_000] for place in range(0, len(content), 10_000))
    answer = api.post(f"{API}/predict", content=pieces, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    endless = (b" " * 100_000 for _ in range(20))
    refused = api.post(f"{API}/predict", content=endless, headers={"Content-Type": "application/json"})
    assert_failure(refused, 413, "PAYLOAD_TOO_LARGE")
