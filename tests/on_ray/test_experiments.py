"""Experiments on a real cluster: trials are its tasks, and nothing but the place where they are made is another."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.jobs.trial_log import TRIALS_FILE, TrialLog
from tests.on_ray.ray_cluster import RayCluster
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more
BASE: dict[str, Any] = {
    "name": "tuned",
    "model_type": "time_series",
    "features": ["return_1", "rsi_14"],
    "target": "price_change_1h",
    "symbols": ["EUR/USD"],
    "start_date": "2023-01-01T00:00:00Z",
    "end_date": "2024-01-01T00:00:00Z",
    "hyperparameters": {"lstm_units": 8, "epochs": 6, "batch_size": 64, "lookback": 12},
}
RATES = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}
SERIAL = {"name": "tuned", "base": BASE, "search_space": RATES, "num_trials": 8, "pruner": "median"}
GRID = {
    "name": "grid",
    "base": {**BASE, "name": "grid"},
    "search_space": {
        "learning_rate": {"choices": [3e-4, 1e-3, 3e-3, 1e-2]},
        "dropout": {"choices": [0.0, 0.1]},
    },
    "sampler": "grid",
}
ONE_CPU = ["taskset", "-c", "0", sys.executable, "-m", "tests.clocked_service"]


def on_ray(folder: Path, cluster: RayCluster, **more: str) -> ServiceProcess:
    """A service whose trainings go to the cluster, one thread each."""
    about = {"TRAINING_BACKEND": "ray", "RAY_ADDRESS": cluster.address, "RAY_AUTH_TOKEN": cluster.token}
    return ServiceProcess(folder, **about, **more)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service on one CPU of this machine."""
    found = ServiceProcess(tmp_path / "local").start(ONE_CPU)
    yield found
    found.close()


def begun(service: ServiceProcess, body: dict[str, Any]) -> str:
    accepted = service.client.post("/api/v1/experiments", json=body)
    assert accepted.status_code == 202, accepted.text
    return str(accepted.json()["job_id"])


def trials_of(service: ServiceProcess, job_id: str) -> list[TrialRecord]:
    return TrialLog(service.folder / "state" / "jobs" / job_id / "checkpoint" / TRIALS_FILE).trials()


def lines_of(service: ServiceProcess, job_id: str) -> Counter[int]:
    """How often each trial stands in the log as ended."""
    file = service.folder / "state" / "jobs" / job_id / "checkpoint" / TRIALS_FILE
    records = (TrialRecord.model_validate_json(line) for line in file.read_text().splitlines())
    return Counter(each.number for each in records if each.is_finished)


def told(trial: TrialRecord) -> tuple[object, ...]:
    return trial.number, trial.state, trial.params, trial.value, trial.curve


def weights(service: ServiceProcess, result: dict[str, Any]) -> bytes:
    return (service.folder / "registry" / result["model_id"] / result["version"] / "weights.safetensors").read_bytes()


def test_a_serial_search_is_the_local_one_to_the_bit(
    cluster: RayCluster, local: ServiceProcess, tmp_path: Path
) -> None:
    """Same trials in the same order, same curves, same pruning, same best, same weights of the winner."""
    service = on_ray(tmp_path / "on_ray", cluster).start()
    try:
        here, there = begun(local, SERIAL), begun(service, SERIAL)
        jobs = [each.wait_for_job(job_id) for each, job_id in ((local, here), (service, there))]
        assert [each["status"] for each in jobs] == ["succeeded"] * 2, jobs[1]
        made = [[told(each) for each in trials_of(*found)] for found in ((local, here), (service, there))]
        assert made[0] == made[1]
        assert {each[1] for each in made[0]} == {"complete", "pruned"}
        results = [each["result"] for each in jobs]
        assert [each["best_trial"] for each in results] == [results[0]["best_trial"]] * 2
        assert weights(local, results[0]) == weights(service, results[1])
        log = (service.folder / "state" / "jobs" / there / "worker.log").read_text()
        assert "Running entrypoint for job ml-workbench-" in log, "what Ray says of it is followed"
        assert service.client.get("/health/ready").json()["things"]["ray"]["state"] == "ok"
    finally:
        service.close()


def test_a_node_killed_in_the_middle_costs_what_was_under_way(local: ServiceProcess, tmp_path: Path) -> None:
    """Every trial ends once, whether a trial or the experiment's own worker was there, and the winner is the same."""
    cluster = RayCluster()
    service = on_ray(tmp_path / "on_ray", cluster, TRAINING_WORKERS="2").start()
    try:
        nodes = [cluster.add_node(), cluster.add_node()]
        here, there = begun(local, GRID), begun(service, GRID)
        deadline = time.monotonic() + 200
        while sum(each.is_finished for each in trials_of(service, there)) < 2:
            assert time.monotonic() < deadline, service.client.get(f"/api/v1/jobs/{there}").json()
            time.sleep(0.1)
        cluster.kill(nodes[0])
        jobs = [each.wait_for_job(job_id) for each, job_id in ((local, here), (service, there))]
        assert [each["status"] for each in jobs] == ["succeeded"] * 2, jobs[1]
        made = [{each[0]: each for each in map(told, trials_of(*found))} for found in ((local, here), (service, there))]
        assert made[0] == made[1]
        assert lines_of(service, there) == Counter(dict.fromkeys(range(8), 1))
        results = [each["result"] for each in jobs]
        assert [each["best_trial"] for each in results] == [results[0]["best_trial"]] * 2
        assert weights(local, results[0]) == weights(service, results[1])
    finally:
        service.close()
        cluster.stop()
