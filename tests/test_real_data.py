"""The straight line on real prices: European Central Bank fixings, and hourly EUR/USD bars in a folder of files."""

import math
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more

FEATURES = ["sma_20", "rsi_14", "macd", "bb_width"]
QUICK = {"lstm_units": 16, "epochs": 4, "batch_size": 256}


def card_of(service: ServiceProcess, job: dict[str, Any]) -> dict[str, Any]:
    """The card that a training published."""
    card: dict[str, Any] = service.client.get(job["result"]["href"]).json()
    return card


@pytest.fixture
def fixings_service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service of this test alone: every evaluation that another test had charged to these fixings costs power."""
    running = ServiceProcess(tmp_path).start()
    yield running
    running.close()


def test_daily_fixings_of_26_years_train_predict_and_deploy(fixings_service: ServiceProcess) -> None:
    service = fixings_service
    body = {
        "name": "Daily fixings",
        "model_type": "time_series",
        "features": FEATURES,
        "target": "price_change_1d",
        "symbols": ["EUR/USD", "GBP/USD"],
        "start_date": "2000-01-01T00:00:00Z",
        "end_date": "2025-12-31T00:00:00Z",
        "hyperparameters": QUICK,
        "validation_split": 0.6,
    }
    card = card_of(service, service.train(body))
    assert (card["data_source"], card["timeframe"], card["fill"]) == ("ecb_daily", "1d", "next_close")
    assert card["certificate"]["status"] == "passed"
    assert card["evaluation"]["verdict"] == "no_skill", card["evaluation"]["reason"]
    assert card["evaluation"]["significance"]["power"] > 0.8, "it would have been found, storms of 2020 and all"
    assert card["evaluation"]["economic"] in ("unprofitable", "unproven")
    assert 0.87 <= card["metrics"]["interval_coverage"] <= 0.93
    assert abs(card["metrics"]["skill_mse_against_random_walk"]) < 0.03
    assert card["split"]["num_windows"]["test"] > 3900
    question = {"symbol": "EUR/USD", "timeframe": "1d", "as_of": "2025-06-10T20:00:00Z"}
    record = service.client.post("/api/v1/models/daily_fixings/predict", json=question).json()
    assert record["status"] == "ok", record
    assert record["price"] == pytest.approx(1.1429)  # the fixing of 10 June 2025
    assert record["sample"] == "historical"
    assert record["warnings"] == ["sample_clock"]
    deploy = {"version": "1.0.0", "deployment_target": "local"}
    assert service.client.post("/api/v1/models/daily_fixings/deploy", json=deploy).json()["status"] == "live"
    replay = {
        "model_id": "daily_fixings",
        "symbols": ["EUR/USD"],
        "start_date": "2025-01-01T00:00:00Z",
        "end_date": "2025-07-01T00:00:00Z",
    }
    job = service.wait_for_job(service.client.post("/api/v1/replays", json=replay).json()["id"])
    assert job["result"]["num_published"] == job["result"]["num_bars"] > 120


@pytest.fixture(scope="module")
def folder_service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service over a folder that holds the hourly file of the package gym-anytrading, as it is."""
    folder = tmp_path_factory.mktemp("folder_store")
    bars = folder / "bars"
    bars.mkdir()
    spec = find_spec("gym_anytrading")
    assert spec is not None
    assert spec.origin is not None
    shutil.copy(Path(spec.origin).parent / "datasets" / "data" / "FOREX_EURUSD_1H_ASK.csv", bars)
    running = ServiceProcess(folder, FEATURE_STORE_URL=f"file://{bars}", AGENT_AUTOSTART="false").start()
    yield running
    running.close()


def test_hourly_bars_of_a_folder_train_and_predict(folder_service: ServiceProcess) -> None:
    body = {
        "name": "Hourly file",
        "model_type": "time_series",
        "family": "gru",
        "features": [*FEATURES, "volume"],
        "target": "log_return_1h",
        "symbols": ["EURUSD"],
        "start_date": "2017-02-01T00:00:00Z",
        "end_date": "2017-12-21T00:00:00Z",
        "hyperparameters": {"gru_units": 16, "epochs": 4, "batch_size": 128},
    }
    card = card_of(folder_service, folder_service.train(body))
    assert card["data_source"] == "file"
    assert card["symbols"] == ["EUR/USD"]
    assert 0.85 <= card["metrics"]["interval_coverage"] <= 0.95
    assert card["split"]["num_dropped"]["label_spans_closure"] == 46  # one Friday evening a week
    question = {"symbol": "EUR/USD", "timeframe": "1h", "as_of": "2017-12-12T12:00:00Z"}
    record = folder_service.client.post("/api/v1/models/hourly_file/predict", json=question).json()
    assert record["status"] == "ok", record
    assert math.isfinite(record["prediction"])
    assert 1.17 < record["price"] < 1.19
    assert "unconditional_interval" not in record["warnings"]


def test_another_symbol_is_refused_and_never_replaced_by_sample_data(folder_service: ServiceProcess) -> None:
    body = {
        "name": "Absent",
        "model_type": "time_series",
        "features": FEATURES,
        "target": "log_return_1h",
        "symbols": ["USD/JPY"],
        "start_date": "2017-02-01T00:00:00Z",
        "end_date": "2017-12-21T00:00:00Z",
        "hyperparameters": QUICK,
    }
    refused = folder_service.client.post("/api/v1/models/train", json=body)
    assert refused.status_code == 422
    assert refused.json()["error_code"] == "DATA_VALIDATION_ERROR"
    [error] = refused.json()["details"]["errors"]
    assert (error["path"], error["code"]) == ("body.symbols", "unknown_symbol")
    assert error["message"] == "the folder has no bars of USD/JPY; it has EUR/USD"
    jobs = folder_service.client.get("/api/v1/jobs").json()["jobs"]
    assert "Absent" not in [job["request"]["name"] for job in jobs]
