"""Real worker processes under the supervisor: started, adopted, cancelled, weighed, and replaced when they die."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from common_lib.exceptions import JobNotFoundError, RateLimitError, StorageFullError
from ml_workbench_service.contracts.jobs import Job, JobKind, JobSpec, JobStatus
from ml_workbench_service.contracts.runners import Handle, WorkerState
from ml_workbench_service.jobs.bounded_log import num_kept_bytes
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.runtime.job_supervisor import JobSupervisor, Limits, _last_start
from ml_workbench_service.runtime.training_backends import LocalBackend

Make = Callable[..., JobSpec]
MakeBackend = Callable[[], LocalBackend]
PATIENCE_S = 200.0


@pytest.fixture(autouse=True)
def no_worker_survives(store: JobStore) -> Any:
    yield
    for folder in store.folders():
        worker = folder.worker()
        process = worker.process() if worker is not None else None
        if process is not None:
            process.kill()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that must come true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


async def until_final(store: JobStore, job_id: str) -> Job:
    await until(lambda: store.get(job_id).status.is_final)
    return store.get(job_id)


async def until_step(folder: JobFolder, step: int = 1) -> None:
    await until(lambda: folder.job().progress.step >= step)


async def test_a_job_runs_from_queued_to_succeeded(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve() as service:
        job = await service.supervisor.submit(make_spec(do="count", steps=3))
        assert job.status is JobStatus.QUEUED
        seen = [event.type async for event in service.supervisor.follow(job.id)]
        done = await until_final(store, job.id)
        await until(lambda: bool(service.finished))
    assert seen == ["queued", "started", "progress", "progress", "progress", "progress", "warning", "succeeded"]
    expected = {"workbench": "the workbench", "correlation_id": "corr-1", "num_threads": "2"}
    assert (done.result, done.attempt, done.warnings) == (expected, 1, ("few rows",))
    assert (store.folder(job.id).checkpoint / "kept").exists()
    assert [finished.id for finished in service.finished] == [job.id]
    assert service.activity[0] == (job.id, JobStatus.QUEUED)
    assert service.activity[-1] == (job.id, JobStatus.SUCCEEDED)


@pytest.mark.parametrize(
    ("do", "code", "words"),
    [
        ("refuse", "DATA_VALIDATION_ERROR", "ask for another range"),
        ("stumble", "TRAINING_ERROR", "ZeroDivisionError"),
        ("devour", "WORKER_OUT_OF_MEMORY", "no memory left"),
    ],
)
async def test_a_failure_says_why(store: JobStore, make_spec: Make, serve: Any, do: str, code: str, words: str) -> None:
    async with serve() as service:
        job = await service.supervisor.submit(make_spec(do=do))
        done = await until_final(store, job.id)
    assert done.status is JobStatus.FAILED
    assert done.error is not None
    assert done.error.error_code == code
    assert words in done.error.message
    tail = store.folder(job.id).log_tail(num_chars=20_000)
    assert f"job {job.id} failed" in tail
    assert ("Traceback" in tail) == (do != "refuse"), "what was foreseen needs no traceback"


async def test_trainings_wait_for_each_other_in_order_and_replays_do_not(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    async with serve() as service:
        first, second = [
            await service.supervisor.submit(make_spec(do="count", steps=100_000, pause_s=0.01)) for _ in "12"
        ]
        await until_step(store.folder(first.id))
        replay = await service.supervisor.submit(make_spec(JobKind.REPLAY, do="count", steps=1))
        assert (await until_final(store, replay.id)).result["num_threads"] == "1"
        assert store.get(second.id).status is JobStatus.QUEUED
        await service.supervisor.cancel(first.id)
        await until_step(store.folder(second.id))
        assert store.get(first.id).status is JobStatus.CANCELLED
        await service.supervisor.cancel(second.id)
        await until_final(store, second.id)


async def test_a_queued_job_is_cancelled_at_once_and_never_starts(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve() as service:
        first = await service.supervisor.submit(make_spec(do="ignore"))
        second = await service.supervisor.submit(make_spec(do="count", steps=1))
        assert (await service.supervisor.cancel(second.id)).status is JobStatus.CANCELLED
        assert (await service.supervisor.cancel(second.id)).status is JobStatus.CANCELLED
        assert store.folder(second.id).worker() is None
        assert [event.type for event in store.folder(second.id).events()] == ["queued", "cancelled"]
        with pytest.raises(JobNotFoundError):
            await service.supervisor.cancel("nobody")
        await service.supervisor.cancel(first.id)
        await until_final(store, first.id)


async def test_a_running_job_stops_at_its_next_report(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve(grace_s=30.0) as service:
        job = await service.supervisor.submit(make_spec(do="count", steps=10_000, pause_s=0.005))
        await until_step(store.folder(job.id), 3)
        assert (await service.supervisor.cancel(job.id)).status in (JobStatus.CANCELLING, JobStatus.CANCELLED)
        done = await until_final(store, job.id)
        assert (await service.supervisor.cancel(job.id)).status is JobStatus.CANCELLED
    assert done.status is JobStatus.CANCELLED
    types = [event.type for event in store.folder(job.id).events()]
    assert types.count("cancelled") == 1


async def test_a_job_that_does_not_listen_is_ended_by_force(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve(grace_s=0.2) as service:
        job = await service.supervisor.submit(make_spec(do="ignore"))
        await until_step(store.folder(job.id))
        worker = store.folder(job.id).worker()
        await service.supervisor.cancel(job.id)
        done = await until_final(store, job.id)
    assert done.status is JobStatus.CANCELLED
    assert worker is not None
    assert not worker.is_alive


async def test_a_dead_worker_is_noticed_and_the_next_job_starts(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve(max_attempts=1) as service:
        job = await service.supervisor.submit(make_spec(do="ignore"))
        following = await service.supervisor.submit(make_spec(do="count", steps=1))
        await until_step(store.folder(job.id))
        worker = store.folder(job.id).worker()
        assert worker is not None
        with store.folder(job.id).worker_log.open("a") as log:
            log.write("last words\n")
        os.kill(worker.pid, signal.SIGKILL)
        done = await until_final(store, job.id)
        assert (await until_final(store, following.id)).status is JobStatus.SUCCEEDED
        await until(lambda: len(service.finished) == 2)
    assert done.error is not None
    assert done.error.error_code == "WORKER_LOST"
    assert "SIGKILL" in done.error.message
    assert done.error.details["log_tail"].endswith("last words")
    assert [finished.id for finished in service.finished] == [job.id, following.id]


async def test_a_worker_over_the_memory_limit_is_ended_with_its_children(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    async with serve(max_memory_gb=0.15) as service:
        job = await service.supervisor.submit(make_spec(do="swell"))
        done = await until_final(store, job.id)
    assert done.error is not None
    assert done.error.error_code == "WORKER_OUT_OF_MEMORY"
    assert done.error.details["used_gb"] > 0.15
    assert "MAX_TRAINING_MEMORY" in done.error.message
    assert (done.attempt, done.warnings) == (1, ()), "another worker would grow as large"
    child = int(done.progress.metrics["child"] or 0)
    await until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


async def test_a_job_that_runs_too_long_is_ended_and_says_so(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve(max_hours=0.1 / 3600) as service:
        job = await service.supervisor.submit(make_spec(do="ignore"))
        done = await until_final(store, job.id)
    assert done.error is not None
    assert (done.error.error_code, done.attempt) == ("JOB_TOO_LONG", 1)
    assert "MAX_JOB_HOURS" in done.error.message


def test_hours_count_from_the_attempt_that_is_under_way(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    for attempt in (1, 2):
        folder.append("started", pid=1, attempt=attempt)
    first, second = (each.at for each in folder.events() if each.type == "started")
    assert _last_start(folder) == second >= first


async def test_what_is_beyond_the_waiting_room_leaves_nothing(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve(max_workers=0, max_waiting=1) as service:
        await service.supervisor.submit(make_spec())
        with pytest.raises(RateLimitError):
            await service.supervisor.submit(make_spec())
        await service.supervisor.submit(make_spec().model_copy(update={"client": "another"}))
    assert len(list(store.folders())) == 2


async def test_replays_beyond_their_places_wait(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve(max_workers=0, max_others=1) as service:
        first, second = [await service.supervisor.submit(make_spec(JobKind.REPLAY, do="wait")) for _ in "12"]
        await until_step(store.folder(first.id))
        assert store.get(second.id).status is JobStatus.QUEUED
        (store.folder(first.id).checkpoint / "told").touch()
        await until_step(store.folder(second.id))
        (store.folder(second.id).checkpoint / "told").touch()
        await until_final(store, second.id)


async def test_a_worker_outlives_the_service_and_is_adopted(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve() as before:
        job = await before.supervisor.submit(make_spec(do="count", steps=10_000, pause_s=0.005))
        await until_step(store.folder(job.id))
        worker = store.folder(job.id).worker()
    assert worker is not None
    step = store.get(job.id).progress.step
    await until_step(store.folder(job.id), step + 5)
    async with serve() as after:
        assert store.folder(job.id).worker() == worker
        await after.supervisor.cancel(job.id)
        done = await until_final(store, job.id)
        await until(lambda: bool(after.finished))
    assert (done.status, done.attempt) == (JobStatus.CANCELLED, 1)
    assert [finished.id for finished in after.finished] == [job.id]


async def test_an_adopted_worker_succeeds(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve() as before:
        job = await before.supervisor.submit(make_spec(do="wait"))
        await until_step(store.folder(job.id))
    async with serve() as after:
        assert store.get(job.id).status is JobStatus.RUNNING
        (store.folder(job.id).checkpoint / "told").touch()
        done = await until_final(store, job.id)
        await until(lambda: bool(after.finished))
    assert (done.status, done.attempt, [each.id for each in after.finished]) == (JobStatus.SUCCEEDED, 1, [job.id])
    assert done.result is not None
    assert done.result["steps"] >= 1


@pytest.mark.timeout(240)
async def test_what_a_worker_prints_without_end_is_bounded_whoever_supervises_it(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    def num_kept() -> int:
        return num_kept_bytes(folder.worker_log.stat())

    async with serve() as before:
        job = await before.supervisor.submit(make_spec(do="shout"))
        folder = store.folder(job.id)
        await until_step(folder)
        await until(lambda: folder.worker_log.stat().st_size > 50_000_000)
        assert num_kept() < 40_000_000
    written = folder.worker_log.stat().st_size
    await until(lambda: folder.worker_log.stat().st_size > written + 50_000_000)  # while nobody supervises it
    assert num_kept() < 40_000_000
    async with serve() as after:
        (folder.checkpoint / "told").touch()
        done = await until_final(store, job.id)
        await until(lambda: bool(after.finished))
    assert done.result is not None
    num = done.result["num_lines"]
    own = [line for line in (folder.log_lines(10_000) or "").splitlines() if not line.startswith("c")]
    assert own[-1] == f"the last of {num} lines"
    numbers = [int(line.split()[1]) for line in own[1:-1] if len(line) == 515]
    assert numbers == list(range(num - len(numbers) + 1, num + 1)), "of what is kept no line is missing"
    assert numbers


async def test_a_worker_is_known_by_its_beat_after_the_clock_was_set(
    store: JobStore, make_spec: Make, make_backend: MakeBackend, serve: Any
) -> None:
    async with serve() as before:
        job = await before.supervisor.submit(make_spec(do="count", steps=10_000, pause_s=0.005))
        await until_step(store.folder(job.id))
    folder = store.folder(job.id)
    worker = folder.worker()
    assert worker is not None
    shifted = worker.model_copy(update={"started_at": worker.started_at - 3600})
    (folder.path / "worker.json").write_text(shifted.model_dump_json())
    await until(lambda: folder.is_beating)
    backend = make_backend()
    (handle,) = backend.recover()
    assert backend.same_worker(handle, Handle(job.id, worker.token))
    assert backend.poll(handle).is_alive
    os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_ZOMBIE)
    assert make_backend().recover() == []


async def test_a_worker_that_died_while_the_service_was_away_is_lost(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    async with serve() as before:
        job = await before.supervisor.submit(make_spec(do="ignore"))
        await until_step(store.folder(job.id))
    worker = store.folder(job.id).worker()
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)  # our own child: it stays a zombie, and a zombie is dead
    await until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_ZOMBIE)
    async with serve(max_attempts=1) as after:
        done = store.get(job.id)
        assert done.error is not None
        assert done.error.error_code == "WORKER_LOST"
        assert [finished.id for finished in after.finished] == [job.id]


async def test_a_pid_that_belongs_to_somebody_else_now_is_not_our_worker(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    folder = store.create(make_spec(do="ignore"))
    folder.append("started", pid=os.getpid(), attempt=1)
    folder.record_worker(1)  # this very process …
    record = ProcessRecord.of(os.getpid()).model_dump() | {"attempt": 1, "started_at": 1000.0}
    (folder.path / "worker.json").write_text(json.dumps(record))  # … but long ago
    async with serve(max_attempts=1):
        done = await until_final(store, folder.id)
    assert done.error is not None
    assert done.error.error_code == "WORKER_LOST"


async def test_jobs_queued_before_a_restart_start_after_it(store: JobStore, make_spec: Make, serve: Any) -> None:
    waiting, unwanted = store.create(make_spec(do="count", steps=1)), store.create(make_spec(do="count", steps=1))
    unwanted.request_cancel()
    async with serve():
        assert (await until_final(store, waiting.id)).status is JobStatus.SUCCEEDED
        assert (await until_final(store, unwanted.id)).status is JobStatus.CANCELLED


async def test_a_second_worker_of_one_job_leaves_and_the_first_is_adopted(
    store: JobStore, make_spec: Make, make_backend: MakeBackend, serve: Any
) -> None:
    spec = make_spec(do="count", steps=10_000, pause_s=0.005)
    folder = store.create(spec)
    predecessor = make_backend()
    predecessor.submit(spec)
    await until_step(folder)
    worker = folder.worker()
    hidden = (folder.path / "worker.json").rename(folder.path / "hidden.json")  # as if not yet written
    async with serve() as service:
        await until(lambda: "has a worker already" in folder.log_tail())
        hidden.rename(folder.path / "worker.json")
        await asyncio.sleep(0.2)
        assert folder.job().status is JobStatus.RUNNING
        await service.supervisor.cancel(folder.id)
        done = await until_final(store, folder.id)
    assert folder.worker() == worker
    assert (done.status, done.attempt) == (JobStatus.CANCELLED, 1)


async def test_following_begins_after_a_number_and_ends_when_the_service_stops(
    store: JobStore, make_spec: Make, serve: Any
) -> None:
    stopping = asyncio.Event()
    async with serve() as service:
        job = await service.supervisor.submit(make_spec(do="count", steps=10_000, pause_s=0.005))
        seqs = []
        async for event in service.supervisor.follow(job.id, 3, stopping=stopping):
            seqs.append(event.seq)
            if len(seqs) == 5:
                stopping.set()
        with pytest.raises(JobNotFoundError):
            service.supervisor.follow("nobody")
        await service.supervisor.cancel(job.id)
        done = await until_final(store, job.id)
    assert seqs[:5] == [4, 5, 6, 7, 8]
    assert done.status is JobStatus.CANCELLED
    last = store.folder(job.id).events()[-1].seq
    assert [event async for event in service.supervisor.follow(job.id, last)] == []


async def test_a_hook_that_fails_costs_nothing(store: JobStore, make_spec: Make, make_backend: MakeBackend) -> None:
    def fail(job: Job) -> None:
        raise RuntimeError("hook")

    supervisor = JobSupervisor(store, make_backend(), Limits(1, 16, poll_s=0.02), on_finished=fail, on_activity=fail)
    await supervisor.start()
    job = await supervisor.submit(make_spec(do="count", steps=1))
    assert (await until_final(store, job.id)).status is JobStatus.SUCCEEDED
    after = await supervisor.submit(make_spec(do="count", steps=1))
    assert (await until_final(store, after.id)).status is JobStatus.SUCCEEDED, "its place is free again"
    await supervisor.stop()


async def test_a_command_that_cannot_run_fails_the_job(store: JobStore, make_spec: Make) -> None:
    backend = LocalBackend(store, environment=dict(os.environ), command=("/nowhere/python",))
    supervisor = JobSupervisor(store, backend, Limits(1, 16, poll_s=0.02))
    await supervisor.start()
    job = await supervisor.submit(make_spec())
    done = await until_final(store, job.id)
    await supervisor.stop()
    assert done.error is not None
    assert "could not be started" in done.error.message


async def test_a_job_that_the_disk_has_no_room_to_start_waits_and_starts(
    store: JobStore, make_spec: Make, make_backend: MakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend = make_backend()
    submit, num_refused = backend.submit, 3

    def refuse(spec: JobSpec) -> Handle:
        nonlocal num_refused
        if num_refused:
            num_refused -= 1
            raise StorageFullError("the disk is full")
        return submit(spec)

    backend.submit = refuse  # type: ignore[method-assign]
    supervisor = JobSupervisor(store, backend, Limits(1, 16, poll_s=0.02))
    await supervisor.start()
    job = await supervisor.submit(make_spec(do="count", steps=1))
    assert (await until_final(store, job.id)).status is JobStatus.SUCCEEDED
    await supervisor.stop()
    assert num_refused == 0
    assert sum("cannot be started just now" in each.message for each in caplog.records) == 1, "said once"


async def test_a_jobs_token_ends_with_its_job(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve() as service:
        job = await service.supervisor.submit(make_spec(do="count", steps=1))
        folder = store.folder(job.id)
        folder.grant.issue(1)
        await until_final(store, job.id)
        await until(lambda: not folder.grant.is_given)


async def test_sigterm_cancels_at_the_next_report(store: JobStore, make_spec: Make, serve: Any) -> None:
    async with serve() as service:
        job = await service.supervisor.submit(make_spec(do="count", steps=10_000, pause_s=0.005))
        await until_step(store.folder(job.id))
        worker = store.folder(job.id).worker()
        assert worker is not None
        os.kill(worker.pid, signal.SIGTERM)
        assert (await until_final(store, job.id)).status is JobStatus.CANCELLED


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (-9, "was ended by SIGKILL (often the system ran out of memory)"),
        (-11, "was ended by SIGSEGV"),
        (3, "ended with exit code 3"),
        (None, "disappeared"),
    ],
)
def test_how_a_worker_ended_is_said_in_words(make_backend: MakeBackend, exit_code: int | None, words: str) -> None:
    state = WorkerState(is_alive=False, exit_code=exit_code)
    assert make_backend().describe_end(Handle("job"), state) == words
