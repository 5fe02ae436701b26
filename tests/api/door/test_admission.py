"""Admission over HTTP: a full waiting room, jobs that would take too long, and a priority, each for one key alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ml_workbench_service.access.keys import KEYS_FILE, KeyFile
from ml_workbench_service.access.operations import Scope
from tests.api.failures import assert_failure
from tests.conftest import SMALL_TRAIN
from tests.service_process import ServiceProcess

TRAIN = "/api/v1/models/train"
LONG = {**SMALL_TRAIN, "hyperparameters": {"lstm_units": 8, "epochs": 300, "patience": 300}}
ENDLESS = {**SMALL_TRAIN, "hyperparameters": {"lstm_units": 512, "epochs": 10_000, "patience": 10_000}}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    """Two clients with keys of their own, of a service in which one job of each may wait, and none for long."""
    folder: Path = tmp_path_factory.mktemp("admission")
    (folder / "state").mkdir()
    file = KeyFile(folder / "state" / KEYS_FILE)
    keys = {name: file.create(name, [Scope.TRAIN, Scope.READ])[0] for name in ("one", "other")}
    service = ServiceProcess(folder, MAX_WAITING_JOBS="1", MAX_JOB_HOURS="1", AGENT_AUTOSTART="false")
    service.client.headers["X-API-Key"] = keys["one"]
    service.start()
    opened = {
        name: httpx.Client(base_url=service.url, headers={"X-API-Key": key}, timeout=60) for name, key in keys.items()
    }
    yield opened
    for client in opened.values():
        client.close()
    service.close()


def asked(client: httpx.Client, body: dict[str, Any], number: int) -> httpx.Response:
    return client.post(TRAIN, json={**body, "model_id": f"asked_{number}"})


def test_a_key_has_one_waiting_room_and_others_theirs(clients: dict[str, httpx.Client]) -> None:
    answers = [asked(clients["one"], {**LONG, "priority": "high"}, number) for number in range(4)]
    try:
        refused = next(each for each in answers if each.status_code != 202)
        assert_failure(refused, 429, "RATE_LIMIT")
        assert int(refused.headers["Retry-After"]) > 0
        assert "cancel" in refused.json()["message"]
        other = asked(clients["other"], LONG, 10)
        assert other.status_code == 202, other.text
        answers.append(other)
        job = clients["one"].get(answers[0].headers["Location"]).json()
        assert job["request"]["priority"] == "high"
    finally:
        for each in answers:
            if each.status_code == 202:
                clients["one"].post(f"/api/v1/jobs/{each.json()['job_id']}/cancel").raise_for_status()


def test_a_training_that_would_take_too_long_is_refused_with_its_estimate(clients: dict[str, httpx.Client]) -> None:
    refused = asked(clients["other"], ENDLESS, 20)
    assert_failure(refused, 422, "DATA_VALIDATION_ERROR")
    details = refused.json()["details"]
    assert details["duration_s"] > details["limit_s"] == 3600
    assert [each["code"] for each in details["errors"]] == ["too_long"]


def test_a_search_is_measured_by_all_its_trials(clients: dict[str, httpx.Client]) -> None:
    body = {
        "name": "Searched", "base": {**LONG, "model_id": "searched"}, "num_trials": 5000, "sampler": "random",
        "search_space": {"learning_rate": {"low": 0.001, "high": 0.1}},
    }  # fmt: skip
    refused = clients["other"].post("/api/v1/experiments", json=body)
    assert_failure(refused, 422, "DATA_VALIDATION_ERROR")
    assert refused.json()["details"]["errors"][0]["code"] == "too_long"
    bounded = clients["other"].post("/api/v1/experiments", json={**body, "timeout_s": 60})
    assert bounded.status_code == 202, bounded.text
    clients["other"].post(f"/api/v1/jobs/{bounded.json()['experiment_id']}/cancel").raise_for_status()


def test_a_priority_belongs_to_the_experiment(clients: dict[str, httpx.Client]) -> None:
    body = {
        "name": "Searched", "base": {**LONG, "priority": "low"}, "search_space": {"learning_rate": {"choices": [0.1]}},
    }  # fmt: skip
    refused = clients["other"].post("/api/v1/experiments", json=body)
    assert_failure(refused, 422, "DATA_VALIDATION_ERROR")
    assert "beside `base`" in refused.text
