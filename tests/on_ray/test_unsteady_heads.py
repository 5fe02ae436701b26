"""A head that is away, silent or new: every wait has an end, what was wished is kept, and nothing runs twice."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ml_workbench_service.contracts.jobs import JobKind, JobSpec, JobStatus
from ml_workbench_service.contracts.runners import Handle
from ml_workbench_service.integrations.ray_jobs import RayFault, RayJobs, RayRefused, RayUnreachable, Submission
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.runtime.job_supervisor import JobSupervisor, Limits
from ml_workbench_service.runtime.on_ray import submissions
from ml_workbench_service.runtime.on_ray.backend import RayBackend, RayWorkers, submission_id_of
from ml_workbench_service.runtime.on_ray.logs import FollowedLog
from tests.on_ray.head_for_tests import TOKEN, HeadForTests

CONTROL = "http://127.0.0.1:8005"
POLL_S = 0.02


@pytest.fixture
def head() -> Iterator[HeadForTests]:
    found = HeadForTests().start()
    yield found
    found.stop()


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs")


@pytest.fixture
def make_backend(store: JobStore, head: HeadForTests) -> Iterator[Callable[..., RayBackend]]:
    made: list[RayBackend] = []

    def make(*, token: str = TOKEN) -> RayBackend:
        jobs = RayJobs(head.address, token=token, timeout_s=1.0)
        made.append(RayBackend(store, jobs, RayWorkers(CONTROL, "python", {}), poll_s=POLL_S))
        return made[-1]

    yield make
    for each in made:
        each.close()


def spec(number: int = 1, kind: JobKind = JobKind.TRAIN) -> JobSpec:
    plan = {"estimate": {"memory_gb": 1.5}}
    return JobSpec(
        id=f"job-{number}", kind=kind, request={}, plan=plan, created_at=datetime(2026, 1, 2, tzinfo=UTC),
        correlation_id=f"c-{number}",
    )  # fmt: skip


def until(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def num_submitted(head: HeadForTests) -> int:
    return head.asked.count("POST /api/jobs/")


def test_what_a_head_answers_is_told_apart(head: HeadForTests) -> None:
    with closing(RayJobs(head.address, token=TOKEN, timeout_s=0.5)) as jobs:
        assert jobs.version() == "2.60.0"
        for status, error in ((500, RayFault), (400, RayRefused), (403, RayUnreachable)):
            head.fault = lambda method, path, status=status: (status, b"Traceback\nValueError: no\n")  # type: ignore[misc]
            with pytest.raises(error):
                jobs.submit({"submission_id": "a", "metadata": {}})
        head.fault = lambda method, path: None
        with pytest.raises(RayUnreachable) as unanswered:
            jobs.get("a")
        assert unanswered.value.was_sent
        head.fault = lambda method, path: (200, b"<html>")
        with pytest.raises(Exception, match="not Ray's dashboard"):
            jobs.all()
    head.fault = lambda method, path: HeadForTests.PASS
    with closing(RayJobs(head.address, token="another")) as jobs, pytest.raises(RayUnreachable, match="RAY_AUTH_TOKEN"):
        jobs.version()


def test_nobody_waits_for_a_head_that_is_away(
    store: JobStore, head: HeadForTests, make_backend: Callable[..., RayBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls return at once; the job says why it waits, readiness too; it begins when the head comes, once."""
    monkeypatch.setattr(submissions, "PATIENCE_S", 0.1)
    head.stop()
    backend, folder = make_backend(), store.create(spec())
    begun = time.monotonic()
    handle = backend.submit(folder.spec)
    assert backend.poll(handle).is_alive
    assert time.monotonic() - begun < 0.5
    until(lambda: backend.poll(handle).waits)
    assert "cannot be reached" in backend.poll(handle).waits
    assert backend.check().state == "down"
    head.start()
    until(lambda: handle.token in head.jobs)
    until(lambda: backend.check().state == "ok")
    assert num_submitted(head) == 1


def test_the_jobs_log_says_why_it_waits(
    store: JobStore, head: HeadForTests, make_backend: Callable[..., RayBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and a job that nobody has begun can be cancelled while the head is away."""
    monkeypatch.setattr(submissions, "PATIENCE_S", 0.1)
    head.stop()

    async def serve() -> None:
        limits = Limits(max_workers=1, max_memory_gb=1.0, poll_s=0.01)
        supervisor = JobSupervisor(store, make_backend(), limits)
        await supervisor.start()
        job = await supervisor.submit(spec())
        while not store.get(job.id).warnings:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        (warning,) = store.get(job.id).warnings
        assert "cannot be reached" in warning
        await supervisor.cancel(job.id)
        while store.get(job.id).status is not JobStatus.CANCELLED:
            await asyncio.sleep(0.01)
        await supervisor.stop()

    asyncio.run(asyncio.wait_for(serve(), timeout=20))
    head.start()
    assert head.jobs == {}


def test_a_submit_without_an_answer_is_not_doubled(
    store: JobStore, head: HeadForTests, make_backend: Callable[..., RayBackend]
) -> None:
    """Neither by this life of the service nor by the next."""
    head.after = lambda method, path: (method, path) != ("POST", "/api/jobs/")
    backend, folder = make_backend(), store.create(spec())
    handle = backend.submit(folder.spec)
    until(lambda: "GET /api/jobs/" + handle.token in head.asked)
    assert num_submitted(head) == 1
    backend.close()
    head.after = lambda method, path: True
    later = make_backend()
    assert later.recover() == [handle]
    assert later.submit(folder.spec) == handle
    until(lambda: num_submitted(head) == 2)
    assert list(head.jobs) == [handle.token]


def begin(folder: JobFolder) -> None:
    """As a worker does that begins."""
    folder.append("started", pid=1, attempt=folder.begin_attempt().attempt)


def test_whoever_began_is_taken_to_live_while_nobody_can_be_asked(
    store: JobStore, head: HeadForTests, make_backend: Callable[..., RayBackend]
) -> None:
    folder = store.create(spec())
    store.create(spec(2))
    begin(folder)
    head.stop()
    backend = make_backend()
    (found,) = backend.recover()
    assert found == Handle(folder.id, submission_id_of(folder.spec, 1))
    assert backend.poll(found).is_alive
    head.start()
    until(lambda: not backend.poll(found).is_alive)
    assert "not known" in backend.describe_end(found, backend.poll(found))


def test_one_that_found_no_room_in_rays_patience_goes_on_waiting(
    store: JobStore, head: HeadForTests, make_backend: Callable[..., RayBackend]
) -> None:
    backend, folder = make_backend(), store.create(spec())
    handle = backend.submit(folder.spec)
    until(lambda: handle.token in head.jobs)
    head.jobs[handle.token] |= {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"}
    until(lambda: num_submitted(head) == 2)
    until(lambda: head.jobs[handle.token]["status"] == "PENDING")
    assert backend.poll(handle).is_alive


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ({"status": "FAILED", "driver_exit_code": -9}, "was ended by SIGKILL (often the system ran out of memory)"),
        ({"status": "FAILED", "driver_exit_code": 3}, "ended with exit code 3"),
        ({"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "It died.\n"},
         "was lost with its node (It died)"),
        ({"status": "FAILED", "error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": "no image"},
         "ended on the Ray cluster (RUNTIME_ENV_SETUP_FAILURE: no image)"),
        ({"status": "STOPPED"}, "was stopped on the Ray cluster"),
    ],
)  # fmt: skip
def test_ends_are_told_in_words(
    store: JobStore, head: HeadForTests, make_backend: Callable[..., RayBackend], ended: dict[str, object], words: str
) -> None:
    backend, folder = make_backend(), store.create(spec())
    handle = backend.submit(folder.spec)
    until(lambda: handle.token in head.jobs)
    head.jobs[handle.token] |= ended
    until(lambda: not backend.poll(handle).is_alive)
    assert backend.describe_end(handle, backend.poll(handle)) == words


def test_each_byte_of_a_log_stands_once(head: HeadForTests, tmp_path: Path) -> None:
    """After what an earlier attempt printed, however often it is read, and by whichever life of the service."""
    file = tmp_path / "worker.log"
    file.write_bytes(b"an earlier attempt\n")
    found = Submission(submission_id="a", status="FAILED", driver_node_id="node")
    for lines in (b"one\n", b"one\ntwo\n", b"one\ntwo\n"):
        head.log = lines
        with closing(RayJobs(head.address, token=TOKEN)) as jobs:
            FollowedLog(jobs, file, begins_at=19, most_bytes=1000).finish(found)
        assert file.read_bytes() == b"an earlier attempt\n" + lines
    head.fault = lambda method, path: (500, b"no such node")
    with closing(RayJobs(head.address, token=TOKEN)) as jobs:
        FollowedLog(jobs, file, begins_at=19, most_bytes=1000).finish(found)
    assert file.read_text().endswith("out of reach: its node is gone]\n")


def test_workers_ask_for_what_the_estimate_says() -> None:
    """Of a node; of the service's environment they get what says how to work, and their job's address and token."""
    workers = RayWorkers(CONTROL, "python", {"LOG_LEVEL": "INFO"}, image="desk/train:1", num_cpus=4, num_gpus=0.5)
    training = workers.body(spec(), {"TOKEN": "one"}, "id-1", log_begins_at=7)
    assert (training["entrypoint_num_cpus"], training["entrypoint_num_gpus"]) == (4, 0.5)
    assert training["entrypoint_memory"] == 1_500_000_000
    assert training["runtime_env"]["image_uri"] == "desk/train:1"
    assert training["runtime_env"]["env_vars"] == {
        "LOG_LEVEL": "INFO", "TOKEN": "one", "OMP_NUM_THREADS": "4", "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "3",
    }  # fmt: skip
    search = workers.body(spec(kind=JobKind.EXPERIMENT), {}, "id-2", log_begins_at=0)
    assert search["entrypoint_num_cpus"] == 0, "its trials have CPUs of their own"
    single = workers.body(spec(kind=JobKind.IMPORTANCE), {}, "id-3", log_begins_at=0)
    assert (single["entrypoint_num_cpus"], single["entrypoint_num_gpus"]) == (1, 0)


def test_a_service_with_a_cluster_imports_no_ray() -> None:
    """Neither the app nor what talks to the cluster."""
    code = (
        "import sys, ml_workbench_service.app, ml_workbench_service.runtime.on_ray.backend as backend\n"
        "assert backend.RayBackend and not {'ray', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
