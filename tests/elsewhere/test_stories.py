"""Whole trainings and searches by workers that have HTTP alone publish what local workers do, whoever is killed."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.service_process import SEED_TRAIN, ServiceProcess

ELSEWHERE = [sys.executable, "-m", "tests.elsewhere.service_elsewhere"]
KEY = "a-key-of-tests-only"
LINEAR: dict[str, Any] = {
    **SEED_TRAIN,
    "name": "Linear",
    "model_id": "linear",
    "family": "linear",
    "start_date": "2024-06-01T00:00:00Z",
    "hyperparameters": {},
}
LSTM: dict[str, Any] = {
    **SEED_TRAIN,
    "name": "Killed",
    "model_id": "killed",
    "start_date": "2024-06-01T00:00:00Z",
    "hyperparameters": {"lstm_units": 8, "epochs": 20, "batch_size": 64},
}
SEARCH: dict[str, Any] = {
    "name": "A search",
    "base": {**LINEAR, "name": "Searched", "model_id": "searched", "family": "lstm",
             "hyperparameters": {"lstm_units": 4, "epochs": 2, "batch_size": 256}},
    "search_space": {"learning_rate": {"choices": [0.001, 0.01, 0.03]}},
    "num_trials": 3,
    "seed": 7,
}  # fmt: skip
OF_ITS_TIME = {"created_at", "job_id", "quantization"}
"""The last tells how fast a smaller graph ran."""
PATIENCE_S = 240.0

pytestmark = [pytest.mark.more, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    running = ServiceProcess(tmp_path_factory.mktemp("elsewhere"), API_KEY=KEY, AGENT_AUTOSTART="false")
    running.client.headers["X-API-Key"] = KEY
    yield running.start(ELSEWHERE)
    running.close()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    running = ServiceProcess(tmp_path_factory.mktemp("local"), AGENT_AUTOSTART="false").start()
    yield running
    running.close()


def bundle(service: ServiceProcess, model_id: str) -> dict[str, Any]:
    """Every file of a version by its digest; the card and the recipe without what says when and by which job."""
    folder = service.folder / "registry" / model_id / "1.0.0"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    texts = {name: timeless(json.loads((folder / name).read_text())) for name in ("card.json", "recipe.json")}
    return {name: each["sha256"] for name, each in listed.items() if name not in texts} | texts


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: timeless(each) for name, each in value.items() if name not in OF_ITS_TIME}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def events(service: ServiceProcess, job_id: str) -> list[dict[str, Any]]:
    lines = (service.folder / "state" / "jobs" / job_id / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def worker_pid(service: ServiceProcess, job_id: str) -> int:
    return int(json.loads((service.folder / "state" / "jobs" / job_id / "worker.json").read_text())["pid"])


def step(service: ServiceProcess, job_id: str) -> int:
    return max(
        (each["data"].get("step", 0) for each in events(service, job_id) if each["type"] == "progress"), default=0
    )


def submitted(service: ServiceProcess, body: dict[str, Any], route: str = "models/train") -> str:
    answer = service.client.post(f"/api/v1/{route}", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def assert_whole(service: ServiceProcess, job_id: str) -> dict[str, Any]:
    """It succeeded, and its log has every step once and in order."""
    job = service.wait_for_job(job_id)
    assert job["status"] == "succeeded", (job["error"], log_of(service, job_id))
    found = events(service, job_id)
    assert [each["seq"] for each in found] == list(range(1, len(found) + 1))
    steps = [each["data"]["step"] for each in found if each["type"] == "progress" and "step" in each["data"]]
    assert steps == list(range(1, len(steps) + 1))
    return job


def log_of(service: ServiceProcess, job_id: str) -> str:
    return (service.folder / "state" / "jobs" / job_id / "worker.log").read_text()[-3000:]


def test_a_linear_training_publishes_what_a_local_one_does(elsewhere: ServiceProcess, local: ServiceProcess) -> None:
    job_id = submitted(elsewhere, LINEAR)
    local.train(LINEAR)
    assert_whole(elsewhere, job_id)
    assert bundle(elsewhere, "linear") == bundle(local, "linear")
    card = elsewhere.client.get("/api/v1/models/linear").json()
    assert card["certificate"]["status"] == "passed"
    assert (elsewhere.folder / "registry" / "linear" / "1.0.0" / "manifest.sig").exists()


def test_a_search_has_the_same_winner(elsewhere: ServiceProcess, local: ServiceProcess) -> None:
    jobs = {service: submitted(service, SEARCH, "experiments") for service in (elsewhere, local)}
    results = {service: assert_whole(service, job_id)["result"] for service, job_id in jobs.items()}
    for name in ("best_trial", "best_value", "best_params", "num_trials", "validation", "test_looks"):
        assert results[elsewhere][name] == results[local][name], name
    assert bundle(elsewhere, "searched") == bundle(local, "searched")
    assert trials(elsewhere, jobs[elsewhere]) == trials(local, jobs[local])


def trials(service: ServiceProcess, job_id: str) -> dict[int, dict[str, Any]]:
    """What came of each, by its number, as the control plane has it on disk."""
    file = service.folder / "state" / "jobs" / job_id / "checkpoint" / "trials.jsonl"
    told = [json.loads(line) for line in file.read_text().splitlines()]
    of_their_time = {"started_at", "finished_at", "curve_at_ms"}
    return {each["number"]: {name: each[name] for name in each.keys() - of_their_time} for each in told}


def test_killed_workers_and_a_killed_control_plane_change_nothing(
    elsewhere: ServiceProcess, local: ServiceProcess
) -> None:
    local_job = submitted(local, LSTM)
    job_id = submitted(elsewhere, LSTM)
    until(lambda: step(elsewhere, job_id) >= 3)
    checkpoint = elsewhere.folder / "state" / "jobs" / job_id / "checkpoint"
    until(lambda: any(checkpoint.rglob("checkpoint.safetensors")))
    os.kill(worker_pid(elsewhere, job_id), signal.SIGKILL)
    until(lambda: any(each["type"] == "started" and each["data"]["attempt"] == 2 for each in events(elsewhere, job_id)))
    for _ in range(2):
        seen = step(elsewhere, job_id)
        elsewhere.kill()
        time.sleep(0.5)
        elsewhere.start(ELSEWHERE)
        until(lambda seen=seen: step(elsewhere, job_id) > seen or events(elsewhere, job_id)[-1]["type"] == "succeeded")
    job = assert_whole(elsewhere, job_id)
    assert job["attempt"] == 2
    assert_whole(local, local_job)
    assert bundle(elsewhere, "killed") == bundle(local, "killed")


def test_parallel_trials_work_by_their_jobs_token(tmp_path: Path) -> None:
    """In processes of their own, each of which reads the bars and has no other way to the service."""
    service = ServiceProcess(tmp_path, AGENT_AUTOSTART="false", TRAINING_WORKERS="2").start(ELSEWHERE)
    try:
        job_id = submitted(service, SEARCH, "experiments")
        assert assert_whole(service, job_id)["result"]["num_trials"] == 3
        assert [each["state"] for each in trials(service, job_id).values()] == ["complete"] * 3
    finally:
        service.close()


def test_a_frozen_predecessor_that_wakes_says_and_publishes_nothing(elsewhere: ServiceProcess) -> None:
    job_id = submitted(elsewhere, {**LSTM, "model_id": "frozen"})
    until(lambda: step(elsewhere, job_id) >= 2)
    frozen = psutil.Process(worker_pid(elsewhere, job_id))
    record = elsewhere.folder / "state" / "jobs" / job_id / "worker.json"
    frozen.suspend()
    elsewhere.stop()
    unknown = {**json.loads(record.read_text()), "started_at": 1.0}  # nobody here can see that it lives
    record.write_text(json.dumps(unknown))
    elsewhere.start(ELSEWHERE)
    until(lambda: any(each["type"] == "started" and each["data"]["attempt"] == 2 for each in events(elsewhere, job_id)))
    frozen.resume()
    frozen.wait(timeout=30)
    assert "ends without a last word" in log_of(elsewhere, job_id)
    job = assert_whole(elsewhere, job_id)
    assert job["attempt"] == 2
    assert [each["type"] for each in events(elsewhere, job_id)].count("succeeded") == 1


def test_a_jobs_token_opens_nothing_else(elsewhere: ServiceProcess) -> None:
    job_id = submitted(elsewhere, {**LSTM, "model_id": "guarded"})
    until(lambda: step(elsewhere, job_id) >= 1)
    environment = psutil.Process(worker_pid(elsewhere, job_id)).environ()
    one_time, url = environment["ML_WORKBENCH_JOB_TOKEN"], environment["ML_WORKBENCH_JOB_URL"]
    assert KEY not in environment.values()
    for headers in ({"X-API-Key": one_time}, {"Authorization": f"Bearer {one_time}"}):
        assert httpx.get(f"{elsewhere.url}/api/v1/models", headers=headers, timeout=60).status_code == 401
        assert httpx.get(f"{url}/worker", headers=headers, timeout=60).status_code == 401
    again = httpx.put(f"{url}/worker/token", headers={"Authorization": f"Bearer {one_time}"},
                      json={"nonce": "0" * 32, "pid": 1, "started_at": 1.0}, timeout=60)  # fmt: skip
    assert again.status_code == 401
    assert "used already" in again.json()["message"]
    assert httpx.get(f"{url}/worker", headers={"X-API-Key": KEY}, timeout=60).status_code == 401
    elsewhere.client.post(f"/api/v1/jobs/{job_id}/cancel")
    asked_s = time.monotonic()
    assert elsewhere.wait_for_job(job_id)["status"] == "cancelled"
    assert time.monotonic() - asked_s < 5
