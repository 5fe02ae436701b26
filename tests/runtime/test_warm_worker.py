"""Warm workers: the next training finds a process that has loaded everything, which never outlives its service."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ml_workbench_service.runtime import warm_worker
from ml_workbench_service.runtime.warm_worker import WarmWorkers
from tests.runtime.child_processes import children_running
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more

WAITS = "a warm worker waits"
DAILY_TRAIN = {
    "name": "warm",
    "model_type": "time_series",
    "family": "linear",
    "features": ["return_1", "rsi_14"],
    "target": "price_change_1d",
    "symbols": ["EUR/USD"],
    "start_date": "2016-01-01T00:00:00Z",
    "end_date": "2020-01-01T00:00:00Z",
}
ECHO = "import sys; folder = sys.stdin.readline().strip(); open(folder + '/done', 'w') if folder else None"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    running = ServiceProcess(tmp_path, WARM_WORKER="true", AGENT_AUTOSTART="false").start()
    yield running
    running.close()


def waiting(service: ServiceProcess) -> list[psutil.Process]:
    """Warm workers of the service that have said that they wait, and have no job."""
    assert service.process is not None
    return children_running(warm_worker.MODULE, of=service.process.pid)


def num_said(service: ServiceProcess) -> int:
    return (service.folder / "logs" / "service.log").read_text().count(WAITS)


def test_a_training_is_done_by_the_worker_that_waits_and_no_worker_outlives_its_service(
    service: ServiceProcess,
) -> None:
    wait_until(lambda: num_said(service) == 1)
    [warm] = waiting(service)
    job = service.client.post("/api/v1/models/train", json=DAILY_TRAIN).json()
    folder = service.folder / "state" / "jobs" / job["job_id"]
    ended = service.wait_for_job(job["job_id"])
    assert ended["status"] == "succeeded"
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    assert [event["data"]["pid"] for event in events if event["type"] == "started"] == [warm.pid]
    assert (folder / "worker.log").exists()
    wait_until(lambda: num_said(service) == 2)  # the next one
    [heir] = waiting(service)
    assert heir.pid != warm.pid
    service.kill()
    wait_until(lambda: not heir.is_running() or heir.status() == psutil.STATUS_ZOMBIE)


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WarmWorkers]:
    """Workers that touch `done` in the folder they are given."""
    real = warm_worker.spawn
    monkeypatch.setattr(
        warm_worker, "spawn", lambda _, *rest, **named: real((sys.executable, "-c", ECHO), *rest, **named)
    )
    found = WarmWorkers(dict(os.environ), tmp_path / "warm.log")
    yield found
    found.close()


def test_one_waits_at_most_and_whoever_takes_it_has_it_alone(workers: WarmWorkers, tmp_path: Path) -> None:
    assert workers.take(tmp_path) is None
    workers.keep()
    workers.keep()
    wait_until(lambda: len(children()) == 1)
    [child] = children()
    pid = workers.take(tmp_path)
    assert pid == child.pid
    assert workers.take(tmp_path) is None
    assert os.waitpid(pid, 0) == (pid, 0)
    assert (tmp_path / "done").exists()


def test_one_that_died_is_nobodys_worker(workers: WarmWorkers, tmp_path: Path) -> None:
    workers.keep()
    wait_until(lambda: len(children()) == 1)
    [child] = children()
    child.kill()
    wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE)
    assert workers.take(tmp_path) is None
    workers.keep()
    pid = workers.take(tmp_path)
    assert pid is not None
    assert os.waitpid(pid, 0) == (pid, 0)


def test_none_is_started_where_memory_is_short_or_after_the_end(
    workers: WarmWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as short:
        short.setattr(warm_worker, "FREE_SHARE", 1.1)
        workers.keep()
    assert children() == []
    workers.close()
    workers.keep()
    assert children() == []


def children() -> list[psutil.Process]:
    """Ours that run the echo."""
    return children_running(ECHO)


def wait_until(condition: Callable[[], bool], *, limit_s: float = 200.0) -> None:
    """Waits for what happens in other processes."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)
