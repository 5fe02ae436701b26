"""A whole service over a real S3 server: train, deploy, predict, the store away, a start without a cache."""

import time
from pathlib import Path

import pytest

from tests.conftest import SMALL_TRAIN
from tests.integrations.object_store import ObjectStore
from tests.service_process import SEED_PREDICT, ServiceProcess

pytestmark = pytest.mark.more

DEPLOYING = {"version": "1.0.0", "deployment_target": "local", "gates": {"skill": False}}
SMALLEST = {**SMALL_TRAIN, "hyperparameters": {"lstm_units": 4, "epochs": 1, "batch_size": 256}}


def until_state(running: ServiceProcess, state: str) -> str:
    """Waits for the registry's state in readiness; what it says."""
    deadline_s = time.monotonic() + 30
    while True:
        found = running.client.get("/health/ready").json()["things"]["model_registry"]
        if found["state"] == state:
            return str(found["detail"])
        assert time.monotonic() < deadline_s, found
        time.sleep(0.2)


def test_a_service_over_a_bucket_trains_deploys_and_answers(tmp_path: Path, object_store: ObjectStore) -> None:
    place = {"MODEL_REGISTRY_PATH": object_store.new_bucket(), **object_store.environment}
    running = ServiceProcess(tmp_path, REGISTRY_CACHE_DIR=str(tmp_path / "cache"), **place).start()
    try:
        running.train(SMALLEST)
        client = running.client
        assert client.get("/api/v1/models").json()["models"][0]["id"] == "small"
        client.post("/api/v1/models/small/deploy", json=DEPLOYING).raise_for_status()
        answer = client.post("/api/v1/models/small/predict", json=SEED_PREDICT).raise_for_status().json()
        until_state(running, "ok")
        object_store.freeze()
        try:
            refused = client.post("/api/v1/models/small/deploy", json=DEPLOYING)
            assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
            assert "does not answer" in refused.json()["message"]
            begun_s = time.monotonic()
            again = client.post("/api/v1/models/small/predict", json=SEED_PREDICT).raise_for_status().json()
            assert client.get("/api/v1/models/small").status_code == 200
            assert time.monotonic() - begun_s < 5, "what is cached waits for nothing"
            assert again["outputs"] == answer["outputs"]
            assert "cached here is served" in until_state(running, "degraded")
        finally:
            object_store.thaw()
        until_state(running, "ok")
        running.stop()
        assert object_store.environment["AWS_SECRET_ACCESS_KEY"] not in running.output.read_text()
    finally:
        running.close()
    elsewhere = ServiceProcess(tmp_path, REGISTRY_CACHE_DIR=str(tmp_path / "another_machine"), **place).start()
    try:
        client = elsewhere.client
        again = client.post("/api/v1/models/small/predict", json=SEED_PREDICT).raise_for_status().json()
        assert (again["version"], again["outputs"]) == ("1.0.0", answer["outputs"])
        archived = client.delete("/api/v1/models/small/versions/1.0.0")
        assert archived.status_code == 409, "it is deployed"
    finally:
        elsewhere.close()
