"""docs/api.md shows a train request for each of the five types; each is trained, listed, predicted with, deployed and
queued here as it stands there, on the real daily rates of the European Central Bank. So do its experiments run."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.data.scaling import RowScaler
from ml_workbench_service.serving.model import load_model
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def bodies(heading: str) -> list[dict[str, Any]]:
    """The JSON blocks below a heading of the page."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", section, re.S | re.M)]


REQUESTS = bodies("One request for each type")
SEARCH, GRID = bodies("Experiments")
TYPES = {"time_series", "classification", "anomaly_detection", "feature_engineering", "reinforcement_learning"}
APPLIED_WITHIN_S = 30
SYNCED_WITHIN_S = 200
JUDGED = ("skill", "no_skill", "insufficient_data", "unverified")

every_request = pytest.mark.parametrize("request_body", REQUESTS, ids=[body["name"] for body in REQUESTS])


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that has trained every request of the page; the last one reads the feature set of the one before."""
    running = ServiceProcess(
        tmp_path_factory.mktemp("five_types"), TRAINING_WORKERS="2", EXPERIMENT_TRACKING_URI="embedded"
    ).start()
    accepted = [running.client.post("/api/v1/models/train", json=body).raise_for_status() for body in REQUESTS[:-1]]
    for answer in accepted:
        job = running.wait_for_job(answer.json()["job_id"])
        assert job["status"] == "succeeded", job["error"]
    running.train(REQUESTS[-1])
    yield running
    running.close()


def model_of(body: dict[str, Any]) -> str:
    return str(body["name"]).lower().replace(" ", "_")


def test_the_page_has_every_type_and_a_model_that_reads_the_feature_set() -> None:
    assert {body["model_type"] for body in REQUESTS} == TYPES
    assert any(name.startswith("@") for body in REQUESTS for name in body.get("features", []))


@every_request
def test_it_is_listed_with_its_type_and_judged_on_real_rates(
    request_body: dict[str, Any], workbench: ServiceProcess
) -> None:
    name = model_of(request_body)
    listed = workbench.client.get("/api/v1/models", params={"model_type": request_body["model_type"]}).json()["models"]
    assert name in [each["id"] for each in listed]
    card = workbench.client.get(f"/api/v1/models/{name}").json()
    assert card["data_source"] == "ecb_daily"
    assert card["timeframe"] == "1d"
    assert card["outputs"]
    bets = request_body["model_type"] not in ("anomaly_detection", "feature_engineering")
    assert card["evaluation"]["verdict"] in (
        ("skill", "no_skill", "insufficient_data") if bets else ("not_applicable",)
    )
    assert card["evaluation"]["reason"]
    assert card["certificate"]["status"] == "passed", card["certificate"]
    assert bool(card["evaluation"]["comparisons"]) == bets
    assert card["evaluation"]["test"]


@every_request
def test_it_predicts_from_the_services_own_features(request_body: dict[str, Any], workbench: ServiceProcess) -> None:
    name = model_of(request_body)
    for symbol in request_body["symbols"]:
        asked = {"symbol": symbol, "timeframe": "1d"}
        record = workbench.client.post(f"/api/v1/models/{name}/predict", json=asked).raise_for_status().json()
        card = workbench.client.get(f"/api/v1/models/{name}").json()
        assert set(record["outputs"]) == set(card["outputs"])
        assert record["status"] == "ok", record["abstain_reasons"]
        assert record["prediction"] is not None
        assert all(isinstance(value, float | int) for value in record["outputs"].values())


@every_request
def test_it_deploys_and_its_live_predictions_reach_the_agent(
    request_body: dict[str, Any], workbench: ServiceProcess
) -> None:
    name, client = model_of(request_body), workbench.client
    body = {"version": "1.0.0", "deployment_target": "local", "scaling_factor": 1.0, "monitoring_level": "high"}
    assert client.post(f"/api/v1/models/{name}/deploy", json=body).raise_for_status().json()["status"] == "live"
    before = client.get("/api/v1/agents/default").json()["num_applied"]
    asked = {"symbol": request_body["symbols"][0], "timeframe": "1d"}
    assert client.post(f"/api/v1/models/{name}/predict", json=asked).json()["role"] == "champion"
    deadline = time.monotonic() + APPLIED_WITHIN_S
    while client.get("/api/v1/agents/default").json()["num_applied"] == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert client.get("/api/v1/agents/default").json()["num_applied"] == before + 1
    accounting = client.get("/api/v1/queue").json()
    assert accounting["groups"][0]["balance"] == 0
    assert accounting["groups"][0]["dead_lettered"] == 0


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # MLflow, of its own classes
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow on SQLAlchemy 2.1
@every_request
def test_its_mlflow_model_answers_as_the_services_network_does(
    request_body: dict[str, Any], workbench: ServiceProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    name = model_of(request_body)
    card = ModelCard.model_validate(workbench.client.get(f"/api/v1/models/{name}/versions/1.0.0").json())
    deadline = time.monotonic() + SYNCED_WITHIN_S
    while (job := workbench.client.get(f"/api/v1/jobs/{card.lineage.job_id}").json())["tracking"]["status"] != "synced":
        assert time.monotonic() < deadline, job["tracking"]
        time.sleep(0.2)
    store = f"sqlite:///{workbench.folder / 'state' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", store)
    run = mlflow.MlflowClient(store, store).get_run(job["tracking"]["run_id"])
    assert {each.tags[0].value for each in run.inputs.dataset_inputs} >= {"training", "test"}
    bundle = workbench.folder / "registry" / name / "1.0.0"
    served = load_model(bundle, card)
    if card.type == "feature_engineering":
        assert run.data.tags["network"].startswith("none: its family makes no network")
        return
    loaded = mlflow.pyfunc.load_model(f"models:/{name}/1")
    assert isinstance(served.scaler, RowScaler)
    asked = loaded.input_example
    chance = np.random.default_rng(0)
    for symbol, scale in served.scaler.symbols.items():
        moved_NTF = scale.center_F + scale.scale_F * chance.normal(0, 1.0, (40, card.lookback, len(card.features)))
        rows_NTF = np.where(served.scaler.is_level_F, np.exp(np.minimum(moved_NTF, 30.0)), moved_NTF)
        inputs = {"features": rows_NTF}
        held_N = chance.integers(-1, 2, 40).astype(np.float32)
        if "symbol" in asked:
            inputs["symbol"] = np.array([symbol] * 40)
        if "positions" in asked:
            inputs["positions"] = held_N[:, None]
        found = loaded.predict(inputs)
        wanted = served.float32.predict(np.stack([served.scaler.rows(symbol, each) for each in rows_NTF]), held_N)
        np.testing.assert_allclose(found["outputs"], wanted.outputs_NK, rtol=1e-6, atol=1e-6)


def test_the_search_of_the_page_finds_trains_and_judges_a_winner(workbench: ServiceProcess) -> None:
    accepted = workbench.client.post("/api/v1/experiments", json=SEARCH).raise_for_status()
    job = workbench.wait_for_job(accepted.json()["job_id"])
    assert job["status"] == "succeeded", job["error"]
    found = workbench.client.get(accepted.headers["Location"]).raise_for_status().json()
    assert {each["state"] for each in found["trials"]} <= {"complete", "pruned"}
    assert len(found["trials"]) == SEARCH["num_trials"]
    assert found["best_trial"]["value"] == max(each["value"] for each in found["trials"] if each["value"] is not None)
    card = workbench.client.get(found["result"]["href"]).raise_for_status().json()
    assert card["hyperparameters"]["learning_rate"] == found["best_trial"]["params"]["learning_rate"]
    assert card["evaluation"]["validation"]["num_trials"] >= SEARCH["num_trials"]
    assert card["evaluation"]["verdict"] in JUDGED


def test_the_agent_grid_of_the_page_ranks_27_settings_by_their_mean(workbench: ServiceProcess) -> None:
    accepted = workbench.client.post("/api/v1/experiments", json=GRID).raise_for_status()
    job = workbench.wait_for_job(accepted.json()["job_id"])
    assert job["status"] == "succeeded", job["error"]
    found = workbench.client.get(accepted.headers["Location"]).raise_for_status().json()
    assert len({json.dumps(each["params"], sort_keys=True) for each in found["trials"]}) == 27
    assert all(each["spread"] is not None for each in found["trials"])
    assert found["best_trial"]["value"] == max(each["value"] for each in found["trials"])
