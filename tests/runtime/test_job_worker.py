"""The worker's own main, as the backend starts it: settings from the environment, logs, lock, and an orderly end."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_workbench_service.contracts.jobs import JobSpec, JobStatus
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.runtime.job_worker import EXIT_LOCKED
from ml_workbench_service.runtime.training_backends import WORKER_COMMAND

Make = Callable[..., JobSpec]


def run_worker_process(folder: JobFolder, logs: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "LOG_DIR": str(logs), "STATE_DIR": str(logs.parent)}
    command = [*WORKER_COMMAND, str(folder.path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_job_cancelled_before_its_worker_came_up_ends_as_cancelled(
    store: JobStore, make_spec: Make, tmp_path: Path
) -> None:
    folder = store.create(make_spec(name="x"))
    folder.request_cancel()
    done = run_worker_process(folder, tmp_path / "logs")
    assert done.returncode == 0, done.stderr
    assert folder.job().status is JobStatus.CANCELLED
    assert folder.worker() is not None
    assert (folder.path / "beat").exists()
    again = run_worker_process(folder, tmp_path / "logs")
    assert again.returncode == 0
    assert [event.type for event in folder.events()] == ["queued", "cancelled"]


def test_a_second_worker_leaves_without_a_trace(store: JobStore, make_spec: Make, tmp_path: Path) -> None:
    folder = store.create(make_spec(name="x"))
    with (folder.path / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_worker_process(folder, tmp_path / "logs")
    assert done.returncode == EXIT_LOCKED, done.stderr
    assert "has a worker already" in (tmp_path / "logs" / "service.log").read_text()
    assert [event.type for event in folder.events()] == ["queued"]
    assert folder.worker() is None


@pytest.mark.parametrize("module", ["agent_supervisor", "child_process", "job_supervisor", "training_backends"])
def test_what_the_api_process_imports_of_runtime_is_light(module: str) -> None:
    code = (
        f"import sys, ml_workbench_service.runtime.{module}; print({{'torch', 'mlflow', 'pandas'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
