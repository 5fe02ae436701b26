"""A training whose worker died goes on from its checkpoint with another worker, some times, and says so."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import psutil

from ml_workbench_service.contracts.jobs import JobKind, JobSpec, JobStatus
from ml_workbench_service.jobs.job import LOST, JobFolder, JobStore, WorkerRecord
from ml_workbench_service.runtime.job_supervisor import JobSupervisor, Limits
from ml_workbench_service.runtime.training_backends import LocalBackend
from tests.runtime.test_job_supervisor import no_worker_survives as no_worker_survives
from tests.runtime.test_job_supervisor import until, until_final, until_step

Make = Callable[..., JobSpec]
MAX_ATTEMPTS = Limits.max_attempts
KILL_THEMSELVES = (sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)")


def story(folder: JobFolder) -> list[Any]:
    """The log in short: progress by its step, started by its attempt, warnings by their code."""
    keys = {"progress": "step", "started": "attempt", "warning": "code"}
    return [(each.type, each.data[keys[each.type]]) if each.type in keys else each.type for each in folder.events()]


async def kill_worker(folder: JobFolder) -> None:
    """SIGKILL, and a wait until the worker is gone or a zombie."""
    worker = folder.worker()
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: not worker.is_alive)


async def test_a_killed_training_goes_on_where_its_checkpoint_was_left(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    async with serve() as service:
        job = await service.supervisor.submit(make_spec(do="persist", steps=5, dies_at=[2, 4]))
        following = await service.supervisor.submit(make_spec(do="count", steps=1))
        done = await until_final(store, job.id)
        after = await until_final(store, following.id)
        assert after.status is JobStatus.SUCCEEDED
        assert after.started_at >= done.finished_at, "its place is its own, also between two workers"
        await until(lambda: len(service.finished) == 2)
    assert story(store.folder(job.id)) == [
        "queued",
        ("started", 1),
        *[("progress", 1), ("progress", 2), ("warning", LOST), ("started", 2)],
        *[("progress", 3), ("progress", 4), ("warning", LOST), ("started", 3)],
        *[("progress", 5), "succeeded"],
    ]
    assert (done.attempt, done.result) == (3, {"first": 5})
    assert "SIGKILL" in done.warnings[0]
    assert [words.rpartition(": ")[2] for words in done.warnings] == ["attempt 2 of 3.", "attempt 3 of 3."]
    assert [finished.id for finished in service.finished] == [job.id, following.id]


async def test_a_training_that_dies_each_time_is_lost_after_its_last_attempt(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    async with serve() as service:
        job = await service.supervisor.submit(make_spec(do="persist", steps=9, dies_at=[1, 2, 3]))
        done = await until_final(store, job.id)
        await until(lambda: bool(service.finished))
    assert (done.status, done.attempt, done.progress.step) == (JobStatus.FAILED, MAX_ATTEMPTS, MAX_ATTEMPTS)
    assert done.error is not None
    assert (done.error.error_code, done.error.details["attempt"]) == ("WORKER_LOST", MAX_ATTEMPTS)
    assert "SIGKILL" in done.error.message
    assert "(attempt 3)" in done.error.message
    assert len(done.warnings) == MAX_ATTEMPTS - 1


async def test_a_worker_that_dies_before_its_first_word_counts_too(store: JobStore, make_spec: Make) -> None:
    backend = LocalBackend(store, environment=dict(os.environ), command=KILL_THEMSELVES)
    supervisor = JobSupervisor(store, backend, Limits(1, 16, poll_s=0.02))
    await supervisor.start()
    job = await supervisor.submit(make_spec())
    done = await until_final(store, job.id)
    await supervisor.stop()
    assert story(store.folder(job.id)) == ["queued", *[("warning", LOST)] * (MAX_ATTEMPTS - 1), "failed"]
    assert done.error is not None
    assert done.error.error_code == "WORKER_LOST"


async def test_a_replay_is_not_resumed_since_it_would_publish_twice(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    async with serve() as service:
        job = await service.supervisor.submit(make_spec(JobKind.REPLAY, do="persist", steps=3, dies_at=[2]))
        done = await until_final(store, job.id)
    assert story(store.folder(job.id)) == ["queued", ("started", 1), ("progress", 1), ("progress", 2), "failed"]
    assert done.error is not None
    assert done.error.error_code == "WORKER_LOST"


async def test_a_cancelled_training_is_not_resumed(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve(grace_s=0.1) as service:
        job = await service.supervisor.submit(make_spec(do="ignore"))
        await until_step(store.folder(job.id))
        await service.supervisor.cancel(job.id)
        await kill_worker(store.folder(job.id))
        done = await until_final(store, job.id)
        following = await service.supervisor.submit(make_spec(do="count", steps=1))
        assert (await until_final(store, following.id)).status is JobStatus.SUCCEEDED, "its place is free again"
    assert (done.status, done.attempt, done.warnings) == (JobStatus.CANCELLED, 1, ())


async def test_a_training_that_waits_for_its_next_worker_can_be_cancelled(
    store: JobStore, make_spec: Make, make_backend: Callable[[], LocalBackend]
) -> None:
    supervisor = JobSupervisor(store, make_backend(), Limits(0, 16, poll_s=0.02))  # nothing starts
    folder = dead_training(store, make_spec)
    await supervisor.start()
    assert (await supervisor.cancel(folder.id)).status is JobStatus.CANCELLED
    await supervisor.stop()
    assert story(folder) == ["queued", ("started", 1), ("warning", LOST), "cancelled"]


async def test_a_training_is_resumed_after_the_machine_was_away(store: JobStore, make_spec: Make, serve: Any) -> None:
    folder = dead_training(store, make_spec)
    async with serve():
        done = await until_final(store, folder.id)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2)
    assert "The worker process disappeared" in done.warnings[0]


async def test_a_death_is_counted_once_though_the_service_died_before_it_started_the_next_worker(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    folder = dead_training(store, make_spec)
    folder.append("warning", code=LOST, message="noted by a service that was killed then", exit_code=-9)
    async with serve(max_attempts=2):
        done = await until_final(store, folder.id)
    assert (done.status, done.attempt, len(done.warnings)) == (JobStatus.SUCCEEDED, 2, 1)
    worker = folder.worker()
    assert worker is not None
    assert worker.attempt == 2


async def test_a_worker_counts_predecessors_that_never_spoke(store: JobStore, make_spec: Make, serve: Any) -> None:
    folder = store.create(make_spec(do="persist", steps=1, dies_at=[]))
    for _ in range(2):
        folder.append("warning", code=LOST, message="died before it said who it was", exit_code=1)
    async with serve():
        await until_final(store, folder.id)
    assert story(folder)[3:] == [("started", 3), ("progress", 1), "succeeded"]
    worker = folder.worker()
    assert worker is not None
    assert worker.attempt == 3


def dead_training(store: JobStore, make_spec: Make) -> JobFolder:
    """A training whose worker had begun when the machine went away: the pid is somebody else's by now."""
    folder = store.create(make_spec(do="persist", steps=2, dies_at=[]))
    folder.append("started", pid=os.getpid(), attempt=1)
    record = WorkerRecord(pid=os.getpid(), started_at=psutil.boot_time() - 1000.0, attempt=1)
    (folder.path / "worker.json").write_text(record.model_dump_json())
    return folder
