"""Backup and restore: a service that works is copied as one consistent state, and goes on from it elsewhere."""

import os
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.contracts.contract import iso
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.jobs.job import LOST, JobFolder
from ml_workbench_service.workflows.back_up_state import OF_PROCESSES, back_up
from ml_workbench_service.workflows.restore_state import restore
from tests.ledger_entries import awaited
from tests.previous_version import reading
from tests.service_process import SEED_TRAIN, ServiceProcess
from tests.workflows.agents_at_work import timeless

pytestmark = pytest.mark.more

LONG: dict[str, Any] = {
    **SEED_TRAIN,
    "model_id": "long",
    "hyperparameters": {"lstm_units": 16, "batch_size": 256, "epochs": 10_000, "patience": 10_000},
}
(ASKED,) = (
    each["body"]
    for each in reading.load("expected.json")["records"]
    if (each["model_id"], each["body"]["version"], each["body"]["symbol"]) == ("price_lstm", "1.1.0", "EUR/USD")
)


class Caller:
    """Asks for one bar after the other, each answer in the stream before the next; `records` are the answers."""

    def __init__(self, service: ServiceProcess) -> None:
        self.records: list[PredictionRecord] = []
        self._service = service
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            number = len(self.records)
            moment = datetime.fromisoformat(ASKED["as_of"]) + timedelta(hours=number)
            self._service.clock.set(moment)
            body = {**ASKED, "as_of": iso(moment), "price": ASKED["price"] * (1 + 0.0004 * ((number * 7) % 5 - 2))}
            answer = self._service.client.post(
                "/api/v1/models/price_lstm/predict", json=body, params={"enqueue": "guaranteed"}
            ).raise_for_status()
            self.records.append(PredictionRecord.model_validate(answer.json()))


@pytest.fixture
def working(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service with live models, whose state is new."""
    shutil.copytree(reading.DATA / "registry", tmp_path / "here" / "registry")
    service = ServiceProcess(tmp_path / "here", PREDICTION_QUEUE_CAPACITY="10000")
    try:
        yield service.start()
    finally:
        service.close()
        end_workers(tmp_path)


def end_workers(folder: Path) -> None:
    """Ends the trainings that outlived their service."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if process.pid != os.getpid() and any(word.startswith(f"{folder}/") for word in words):
            process.kill()
            process.wait(30)


def ledger_ids(service: ServiceProcess) -> set[str]:
    """Predictions in the ledger."""
    rows = service.client.get("/api/v1/predictions", params={"limit": 200}).raise_for_status().json()["predictions"]
    return {row["prediction_id"] for row in rows}


def first_step_after_loss(job: Path) -> int | None:
    """Where the training's second worker began; None where it has not come so far."""
    events = JobFolder(job).events()
    lost = [each.seq for each in events if each.type == "warning" and each.data.get("code") == LOST]
    steps = [each.data["step"] for each in events if lost and each.seq > lost[0] and "step" in each.data]
    return steps[0] if steps else None


def learnt(records: list[PredictionRecord]) -> Checkpoint:
    """What the default agent knows once it has applied these, each once."""
    agent = QLearningAgent("default")
    for number, record in enumerate(records):
        agent.apply(f"{number + 1}-0", record)
    return timeless(agent.checkpoint())


def test_a_service_at_work_is_backed_up_and_goes_on_elsewhere(working: ServiceProcess, tmp_path: Path) -> None:
    running, queued = (
        working.client.post("/api/v1/models/train", json=LONG).raise_for_status().json()["job_id"] for _ in range(2)
    )
    state = tmp_path / "here" / "state"
    awaited(lambda: any((state / "jobs" / running / "checkpoint").rglob("*.safetensors")), timeout_s=180)
    caller = Caller(working)
    awaited(lambda: len(caller.records) > 20, timeout_s=120)
    rows_before = ledger_ids(working)
    manifest = back_up(state, tmp_path / "here" / "registry", tmp_path / "backup.tar.gz")
    num_then = len(caller.records)
    awaited(lambda: len(caller.records) > num_then + 5, timeout_s=120)
    caller.stop()
    working.stop()
    end_workers(tmp_path / "here")
    assert (manifest.queue, manifest.damaged) == ("included", ())

    there = tmp_path / "there"
    assert restore(tmp_path / "backup.tar.gz", there / "state", there / "registry") == manifest
    in_checkpoint = Checkpoint.load(there / "state" / "agents" / "default")
    assert in_checkpoint is not None
    restored = ServiceProcess(there, PREDICTION_QUEUE_CAPACITY="10000").start()
    try:
        get = restored.client.get
        awaited(lambda: first_step_after_loss(there / "state" / "jobs" / running) is not None, timeout_s=120)
        assert (first_step_after_loss(there / "state" / "jobs" / running) or 0) > 1, "it goes on from its checkpoint"
        assert {job["id"]: job["status"] for job in get("/api/v1/jobs").json()["jobs"]} == {
            running: "running", queued: "queued",
        }  # fmt: skip
        (group,) = reading.accounting_at_rest(restored)["groups"]
        rows = ledger_ids(restored)
        live = [each for each in get("/api/v1/deployments").json()["deployments"] if each["status"] == "live"]
        for job in (queued, running):
            restored.client.post(f"/api/v1/jobs/{job}/cancel").raise_for_status()
            assert restored.wait_for_job(job)["status"] == "cancelled"
    finally:
        restored.close()
        end_workers(there)
    deployments = {each["model_id"]: each["version"] for each in live}
    assert deployments == {"price_lstm": "1.1.0", "dqn_trader": "1.0.0", "direction_gru": "1.0.0"}
    assert (group["balance"], group["dropped_oldest"], group["duplicates"]) == (0, 0, 0)
    assert set() < rows_before <= rows <= {each.prediction_id for each in caller.records[: num_then + 1]}
    num_applied = max(in_checkpoint.counters.num_applied, group["enqueued"])
    assert 20 < num_applied <= num_then + 1
    assert timeless(Checkpoint.load(there / "state" / "agents" / "default")) == learnt(caller.records[:num_applied])


@pytest.mark.parametrize(
    "name", ["process.json", "attendant.json", "tracker.json", "page.json", "beat", "signing_key.pem"]
)
def test_what_names_a_process_or_signs_stays_behind(name: str) -> None:
    """A restored service on the same machine would end the agents and the page of the one that was backed up."""
    assert OF_PROCESSES.fullmatch(name)
