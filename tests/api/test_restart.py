"""Stopping, restarting and killing the service: trainings go on, nothing is left behind twice, data are there again.

One service over one folder lives through the tests in their order; each leaves it running.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import SMALL_TRAIN, registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import SEED_PREDICT, ServiceProcess

TRAIN = "/api/v1/models/train"
LONG: dict[str, Any] = {
    **SMALL_TRAIN,
    "model_id": "restarted",
    "symbols": ["EUR/USD"],
    "start_date": "2024-11-01T00:00:00Z",
    "hyperparameters": {"lstm_units": 4, "batch_size": 256, "epochs": 10_000, "patience": 10_000},
}
MODULES = ("ml_workbench_service.", "tests.clocked_service")  # the service of tests, and what it starts


@pytest.fixture(scope="module")
def mortal(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that may be killed."""
    folder = tmp_path_factory.mktemp("mortal")
    copy_version(registry_of(service) / "small" / "1.0.0", folder / "registry", "small", "1.0.0")
    running = ServiceProcess(folder)
    try:
        running.start()
        yield running
    finally:
        running.close()
        for pid in set().union(*processes_of(running).values()):
            psutil.Process(pid).kill()  # a training of a test that failed


def processes_of(service: ServiceProcess) -> dict[str, set[int]]:
    """Pids of everything that runs for this service's STATE_DIR, by what it is."""
    state_dir = str(service.folder / "state")
    socket = f"ml_workbench-{hashlib.sha256(state_dir.encode()).hexdigest()[:16]}/redis.sock"
    found: dict[str, set[int]] = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            modules = [word.rpartition(".")[2] for word in words if word.startswith(MODULES)]
            if modules and process.environ().get("STATE_DIR") == state_dir:
                found.setdefault(modules[0], set()).add(process.pid)
        except psutil.Error:
            continue
        if any(socket in word for word in words):  # Redis writes its title over its environment
            found.setdefault("redis", set()).add(process.pid)
    return found


def until(service: ServiceProcess, path: str, condition: Any, *, timeout_s: float = 200) -> dict[str, Any]:
    """What a path answers once a condition holds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = service.client.get(path)
        if answer.status_code == 200 and condition(answer.json()):
            body: dict[str, Any] = answer.json()
            return body
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come to that within {timeout_s} s: {answer.text}")


def worker_pid(service: ServiceProcess, job_id: str) -> int:
    """The process that works at a job."""
    return int(json.loads((service.folder / "state" / "jobs" / job_id / "worker.json").read_text())["pid"])


def test_sigterm_ends_the_service_though_a_client_follows_a_job_and_the_training_goes_on(
    mortal: ServiceProcess,
) -> None:
    job_id = mortal.client.post(TRAIN, json=LONG).json()["job_id"]
    until(mortal, f"/api/v1/jobs/{job_id}", lambda job: job["status"] == "running")
    pid = worker_pid(mortal, job_id)
    told: list[str] = []
    following = threading.Event()

    def follow() -> None:
        with httpx.stream("GET", f"{mortal.url}/api/v1/jobs/{job_id}/events", timeout=60) as stream:
            for line in stream.iter_lines():
                told.append(line)
                following.set()

    client = threading.Thread(target=follow)
    client.start()
    assert following.wait(120)
    began = time.monotonic()
    mortal.stop()
    assert time.monotonic() - began < 90, "the follower would have kept it until the training's end, or for good"
    client.join(timeout=120)
    assert not client.is_alive()
    assert "event: started" in told
    assert set(processes_of(mortal)) == {"job_worker"}

    mortal.start()
    job = mortal.client.get(f"/api/v1/jobs/{job_id}").json()
    assert job["status"] == "running"
    assert worker_pid(mortal, job_id) == pid
    assert f"adopting the worker of job {job_id}" in (mortal.folder / "logs" / "service.log").read_text()
    step = job["progress"]["step"]
    until(mortal, f"/api/v1/jobs/{job_id}", lambda job: job["progress"]["step"] > step)
    mortal.client.post(f"/api/v1/jobs/{job_id}/cancel")
    job = mortal.wait_for_job(job_id, timeout_s=120)
    assert (job["status"], job["attempt"]) == ("cancelled", 1)


def test_after_a_kill_nothing_runs_twice_and_nothing_is_lost(mortal: ServiceProcess) -> None:
    client = mortal.client
    deployment = client.post(
        "/api/v1/models/small/deploy", json={"version": "1.0.0", "deployment_target": "local"}
    ).json()
    for _ in range(7):
        assert client.post("/api/v1/models/small/predict", json=SEED_PREDICT).json()["role"] == "champion"
    agent = until(mortal, "/api/v1/agents/default", lambda agent: agent["num_applied"] == 7)
    accounting = until(mortal, "/api/v1/queue", lambda accounting: accounting["acked"] == 7)
    job_id = client.post(TRAIN, json=LONG).json()["job_id"]
    until(mortal, f"/api/v1/jobs/{job_id}", lambda job: job["status"] == "running")
    before = processes_of(mortal)
    assert {kind: len(pids) for kind, pids in before.items()} == dict.fromkeys(
        ("clocked_service", "redis", "agent_worker", "job_worker"), 1
    )
    mortal.kill()
    assert set(processes_of(mortal)) >= {"redis", "job_worker"}

    mortal.start()
    until(mortal, "/api/v1/agents/default", lambda agent: agent["status"] == "running")
    after = processes_of(mortal)
    assert Counter({kind: len(pids) for kind, pids in after.items()}) == Counter(before.keys())
    assert after["job_worker"] == before["job_worker"]
    for kind in ("clocked_service", "redis", "agent_worker"):
        assert after[kind].isdisjoint(before[kind]), kind

    assert client.get("/api/v1/agents/default").json()["num_applied"] == agent["num_applied"]
    kept = client.get("/api/v1/queue").json()
    assert (kept["enqueued"], kept["acked"], kept["balance"]) == (accounting["enqueued"], 7, 0)
    assert client.get(f"/api/v1/deployments/{deployment['id']}").json() == deployment
    assert client.post("/api/v1/models/small/predict", json=SEED_PREDICT).json()["role"] == "champion"
    until(mortal, "/api/v1/agents/default", lambda agent: agent["num_applied"] == 8)
    client.post(f"/api/v1/jobs/{job_id}/cancel")
    assert mortal.wait_for_job(job_id)["status"] == "cancelled"


def test_after_a_stop_nothing_is_left(mortal: ServiceProcess) -> None:
    mortal.stop()
    deadline = time.monotonic() + 60
    while (left := processes_of(mortal)) and time.monotonic() < deadline:
        assert set(left) == {"job_worker"}  # that of the test before, whose interpreter takes its time to end
        time.sleep(0.1)
    assert left == {}
    assert not list((mortal.folder / "state").rglob("server.json"))
