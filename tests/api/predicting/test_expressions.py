"""A model of expressions over HTTP: trained, asked in each of the three ways, by several processes and by `/v2`."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more
TEXTS = (
    "zscore(close, 50)", "close / delay(close, 24) - 1", 'ret("GBP/USD", 1)', 'at("4h", rsi_14)', "rsi_14",
)  # fmt: skip
BODY: dict[str, Any] = {
    "name": "Written", "model_type": "time_series", "family": "linear", "target": "price_change_1h",
    "symbols": ["EUR/USD"], "start_date": "2024-09-01T00:00:00Z", "end_date": "2025-03-01T00:00:00Z",
    "features": list(TEXTS), "hyperparameters": {"lookback": 4, "epochs": 3},
}  # fmt: skip
AS_OF = "2025-02-19T12:00:00Z"
NEWEST = {"symbol": "EUR/USD", "timeframe": "1h", "as_of": AS_OF}


@pytest.fixture(scope="module", params=["0", "2"], ids=["one process", "two predict workers"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    found = ServiceProcess(tmp_path_factory.mktemp("written"), PREDICT_WORKERS=request.param, AGENT_AUTOSTART="false")
    found.start()
    found.train(BODY)
    yield found
    found.close()


def asked(running: ServiceProcess, path: str, body: dict[str, Any]) -> Any:
    answer = running.client.post(f"/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def columns(running: ServiceProcess, names: list[str], num: int) -> dict[str, list[float]]:
    body = {"symbols": ["EUR/USD"], "timeframe": "1h", "features": names, "as_of": AS_OF}
    (found,) = asked(running, "api/v1/features/batch", {**body, "start_date": "2025-02-01T00:00:00Z"})["results"]
    return {name: values[-num:] for name, values in found["features"].items()}


def test_however_it_is_asked_it_answers_the_same(running: ServiceProcess) -> None:
    card = running.client.get("/api/v1/models/written/versions/1.0.0").json()
    assert card["features"][2] == 'ret(of("GBP/USD", close), 1)'
    fetched = asked(running, "api/v1/models/written/predict", NEWEST)
    assert fetched["status"] == "ok", fetched
    by_text = columns(running, list(TEXTS), 4)
    by_column = columns(running, card["base_columns"], 4 + card["history"])
    for sent in (by_text, by_column):
        record = asked(running, "api/v1/models/written/predict", {**NEWEST, "features": sent})
        assert record["outputs"] == fetched["outputs"]
        body = {"items": [{**NEWEST, "features": sent}, NEWEST]}
        batch = asked(running, "api/v1/models/written/predict/batch", body)
        assert [each["outputs"] for each in batch["predictions"]] == [fetched["outputs"]] * 2
    tensors = [
        {"name": name, "datatype": "FP64", "shape": [1, len(values)], "data": values}
        for name, values in zip(card["features"], by_text.values(), strict=True)
    ]
    found = asked(running, "v2/models/written/infer", {"inputs": tensors, "parameters": {"as_of": AS_OF}})
    outputs = {each["name"]: each["data"] for each in found["outputs"]}
    assert outputs["outputs.price_change_1h"] == [fetched["outputs"]["price_change_1h"]]


def test_too_few_rows_are_refused_with_what_is_needed(running: ServiceProcess) -> None:
    card = running.client.get("/api/v1/models/written/versions/1.0.0").json()
    sent = columns(running, card["base_columns"], card["history"])
    answer = running.client.post("/api/v1/models/written/predict", json={**NEWEST, "features": sent})
    assert answer.status_code == 422
    assert "zscore(close, 50) needs 50 bars in a row" in answer.json()["message"]
