"""Conformance suite of training backends: what the supervisor relies on, whatever engine runs the workers.

    class TestMyEngine(TrainingBackendConformance):
        counts = {"steps": 10_000}
        ends = {"steps": 3}
        ignores = {"deaf": True}
        dies = {"crash_at": 1}

        def make_backend(self, store):
            return MyBackend(store, ...)

The four requests are what your worker is told to do (`JobSpec.request` of a training). Where it is the service's own
`runtime.job_worker`, give it a workflow that understands them.
"""

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ml_workbench_service.contracts.jobs import Job, JobKind, JobSpec, JobStatus
from ml_workbench_service.contracts.runners import Handle, TrainingBackend, WorkerState
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.runtime.job_supervisor import JobSupervisor, Limits

POLL_S = 0.01
LONG_S = 3600.0


class TrainingBackendConformance(ABC):
    """What every training backend keeps.

    Attributes:
        counts: reports steps, a moment apart, until it is cancelled.
        ends: reports some steps and succeeds.
        ignores: reports a step, and then never looks for a cancellation.
        dies: reports a step and dies without a last word, in every attempt.
        patience_s: how long the engine may take for whatever must happen.
    """

    counts: ClassVar[Mapping[str, Any]]
    ends: ClassVar[Mapping[str, Any]]
    ignores: ClassVar[Mapping[str, Any]]
    dies: ClassVar[Mapping[str, Any]]
    patience_s: ClassVar[float] = 60.0

    @abstractmethod
    def make_backend(self, store: JobStore) -> TrainingBackend:
        """A backend as a freshly started service makes it; called again for the same store, it is the service's next
        life, in which the engine's workers go on."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[JobStore]:
        """No jobs yet; no worker survives the test."""
        store = JobStore(tmp_path / "jobs")
        yield store
        backend = self.make_backend(store)
        for handle in backend.recover():
            backend.kill(handle)
            self.wait_for_end(backend, handle)

    @pytest.fixture
    def backend(self, store: JobStore) -> TrainingBackend:
        """The first service's."""
        return self.make_backend(store)

    def test_a_job_is_worked_to_its_final_event(self, store: JobStore, backend: TrainingBackend) -> None:
        """What a worker wrote can be read once `poll` says that it has ended."""
        folder, handle = _started(store, backend, self.ends)
        assert handle.job_id == folder.id
        self.wait_for_end(backend, handle)
        assert folder.job().status is JobStatus.SUCCEEDED

    def test_an_ended_worker_stays_ended(self, store: JobStore, backend: TrainingBackend) -> None:
        """Asking and ending it again changes nothing."""
        folder, handle = _started(store, backend, self.ends)
        self.wait_for_end(backend, handle)
        backend.kill(handle)
        backend.cancel(handle, grace_s=0.0)
        assert [backend.poll(handle).is_alive for _ in range(3)] == [False] * 3
        assert backend.memory_bytes(handle) == 0
        assert folder.job().status is JobStatus.SUCCEEDED

    def test_a_handle_outlives_its_backend(self, store: JobStore, backend: TrainingBackend) -> None:
        """Its token is text that a later instance understands."""
        folder, handle = _started(store, backend, self.counts)
        self.wait_for_step(folder)
        later, kept = self.make_backend(store), Handle(str(handle.job_id), str(handle.token))
        assert later.poll(kept).is_alive
        assert later.same_worker(kept, handle)
        assert later.memory_bytes(kept) >= 0

    def test_living_workers_are_recovered(self, store: JobStore, backend: TrainingBackend) -> None:
        """Those alone, whoever started them."""
        assert backend.recover() == []
        living, handle = _started(store, backend, self.counts)
        for request in (self.ends, self.dies):
            self.wait_for_end(backend, _started(store, backend, request)[1])
        self.wait_for_step(living)
        (found,) = self.make_backend(store).recover()
        assert found.job_id == living.id
        assert backend.same_worker(found, handle)

    def test_a_worker_goes_on_while_nobody_polls(self, store: JobStore, backend: TrainingBackend) -> None:
        """It belongs to its job, not to the backend."""
        folder, _ = _started(store, backend, self.counts)
        self.wait_for_step(folder)
        self.wait_for_step(folder, folder.job().progress.step + 3)

    def test_workers_are_told_apart(self, store: JobStore, backend: TrainingBackend) -> None:
        """Also two of one job, the second of which followed the first."""
        folder, first = _started(store, backend, self.dies)
        self.wait_for_end(backend, first)
        second = backend.submit(folder.spec)
        assert backend.same_worker(second, second)
        assert not backend.same_worker(first, second)
        self.wait_for_end(backend, second)

    def test_a_cancelled_worker_stops_at_its_next_report(self, store: JobStore, backend: TrainingBackend) -> None:
        """The marker is there at once; asking twice is asking once."""
        folder, handle = _started(store, backend, self.counts)
        self.wait_for_step(folder)
        for _ in range(2):
            backend.cancel(handle, grace_s=LONG_S)
            assert folder.cancel_requested
        self.wait_for_end(backend, handle)
        assert [event.type for event in folder.events()][-1] == "cancelled"

    @pytest.mark.parametrize("is_recovered", [False, True], ids=["its own", "recovered"])
    def test_force_follows_where_a_worker_does_not_listen(
        self, store: JobStore, backend: TrainingBackend, is_recovered: bool
    ) -> None:
        """After twice the grace, as long as it is polled; nobody writes an event for it."""
        folder, handle = _started(store, backend, self.ignores)
        self.wait_for_step(folder)
        if is_recovered:
            backend = self.make_backend(store)
            (handle,) = backend.recover()
        backend.cancel(handle, grace_s=0.1)
        self.wait_for_end(backend, handle)
        assert folder.job().status is JobStatus.CANCELLING

    def test_a_killed_worker_ends_alone(self, store: JobStore, backend: TrainingBackend) -> None:
        """At once and without an event; its neighbours go on."""
        neighbour, _ = _started(store, backend, self.counts)
        folder, handle = _started(store, backend, self.ignores)
        self.wait_for_step(folder)
        backend.kill(handle)
        self.wait_for_end(backend, handle)
        assert [event.type for event in folder.events()][-1] == "progress"
        self.wait_for_step(neighbour, neighbour.job().progress.step + 3)

    def test_an_end_is_described(self, store: JobStore, backend: TrainingBackend) -> None:
        """In words that go on a sentence, also of a worker whose end nobody saw."""
        _, handle = _started(store, backend, self.dies)
        for state in (self.wait_for_end(backend, handle), WorkerState(is_alive=False)):
            words = backend.describe_end(handle, state)
            assert words == words.strip(" .\n")
            assert words
            assert "\n" not in words

    def test_a_handle_without_a_token_is_of_no_worker(self, store: JobStore, backend: TrainingBackend) -> None:
        """It has ended, whatever is asked of it, and the job's real worker is left alone."""
        folder, handle = _started(store, backend, self.counts)
        self.wait_for_step(folder)
        nobody = Handle(folder.id)
        backend.kill(nobody)
        assert not backend.poll(nobody).is_alive
        assert backend.memory_bytes(nobody) == 0
        assert backend.describe_end(nobody, backend.poll(nobody))
        assert not backend.same_worker(nobody, handle)
        assert backend.poll(handle).is_alive

    def test_a_supervisor_works_off_its_queue(self, store: JobStore) -> None:
        """One training at a time, in order."""

        async def serve() -> list[Job]:
            supervisor = await self._supervisor(store)
            jobs = [await supervisor.submit(_spec(store, self.ends)) for _ in range(2)]
            done = [await self._final(store, job.id) for job in jobs]
            await supervisor.stop()
            return done

        first, second = asyncio.run(serve())
        assert (first.status, second.status) == (JobStatus.SUCCEEDED, JobStatus.SUCCEEDED)
        assert first.finished_at is not None
        assert second.started_at is not None
        assert first.finished_at <= second.started_at

    def test_a_supervisor_adopts_what_outlived_it(self, store: JobStore) -> None:
        """The same worker goes on and is cancelled by the next service."""

        async def serve() -> Job:
            before = await self._supervisor(store)
            job = await before.submit(_spec(store, self.counts))
            folder = store.folder(job.id)
            await self._until(lambda: folder.job().progress.step > 0)
            await before.stop()
            step = folder.job().progress.step
            after = await self._supervisor(store)
            await self._until(lambda: folder.job().progress.step > step)
            await after.cancel(job.id)
            done = await self._final(store, job.id)
            await after.stop()
            return done

        done = asyncio.run(serve())
        assert (done.status, done.attempt, done.warnings) == (JobStatus.CANCELLED, 1, ())

    def test_a_supervisor_replaces_the_dead(self, store: JobStore) -> None:
        """As often as it may; the log says each time how the worker ended."""

        async def serve() -> Job:
            supervisor = await self._supervisor(store, max_attempts=2)
            job = await supervisor.submit(_spec(store, self.dies))
            done = await self._final(store, job.id)
            await supervisor.stop()
            return done

        done = asyncio.run(serve())
        assert (done.status, done.attempt, len(done.warnings)) == (JobStatus.FAILED, 2, 1)
        assert done.warnings[0].startswith("The worker process ")
        assert done.error is not None
        assert done.error.error_code == "WORKER_LOST"

    def test_a_worker_that_died_between_two_services_is_replaced(self, store: JobStore) -> None:
        """The next one finds its job with no worker."""

        async def serve() -> Job:
            backend = self.make_backend(store)
            folder, handle = _started(store, backend, self.dies)
            await self._until(lambda: not backend.poll(handle).is_alive)
            supervisor = await self._supervisor(store, max_attempts=2)
            done = await self._final(store, folder.id)
            await supervisor.stop()
            return done

        done = asyncio.run(serve())
        assert (done.status, done.attempt, len(done.warnings)) == (JobStatus.FAILED, 2, 1)

    def wait_for_end(self, backend: TrainingBackend, handle: Handle) -> WorkerState:
        """Polls until the worker has ended."""
        states = [backend.poll(handle)]
        self._wait(lambda: not states[-1].is_alive, lambda: states.append(backend.poll(handle)))
        return states[-1]

    def wait_for_step(self, folder: JobFolder, step: int = 1) -> None:
        """Waits until the worker has reported that step."""
        self._wait(lambda: folder.job().progress.step >= step)

    def _wait(self, condition: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None) -> None:
        deadline = time.monotonic() + self.patience_s
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(POLL_S)
            meanwhile()

    async def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience_s
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            await asyncio.sleep(POLL_S)

    async def _final(self, store: JobStore, job_id: str) -> Job:
        await self._until(lambda: store.get(job_id).status.is_final)
        return store.get(job_id)

    async def _supervisor(self, store: JobStore, *, max_attempts: int = 1) -> JobSupervisor:
        limits = Limits(max_workers=1, max_memory_gb=64.0, max_attempts=max_attempts, grace_s=LONG_S, poll_s=POLL_S)
        supervisor = JobSupervisor(store, self.make_backend(store), limits)
        await supervisor.start()
        return supervisor


def _spec(store: JobStore, request: Mapping[str, Any]) -> JobSpec:
    number = sum(1 for _ in store.folders()) + 1
    return JobSpec(
        id=f"job-{number}",
        kind=JobKind.TRAIN,
        request=dict(request),
        created_at=datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=number),
        correlation_id=f"correlation-{secrets.token_hex(8)}",  # one engine may serve the stores of several tests
    )


def _started(store: JobStore, backend: TrainingBackend, request: Mapping[str, Any]) -> tuple[JobFolder, Handle]:
    folder = store.create(_spec(store, request))
    return folder, backend.submit(folder.spec)
