"""A training backend without processes: workers are generators that one thread advances in turn, a step at a time."""

import itertools
import threading
import time
from collections.abc import Iterator

from common_lib.exceptions import JobCancelled
from ml_workbench_service.contracts.jobs import JobSpec
from ml_workbench_service.contracts.runners import Handle, WorkerState
from ml_workbench_service.jobs.event_report import EventReport
from ml_workbench_service.jobs.job import JobFolder, JobStore

STEP_S = 0.002
Worker = Iterator[None]


class Engine:
    """Where workers live, by their names: it outlives every service that uses it, until it is closed."""

    def __init__(self) -> None:
        self._workers: dict[str, tuple[str, Worker]] = {}
        self._numbers = itertools.count(1)
        self._turn = threading.RLock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._advance, name="engine", daemon=True)
        self._thread.start()

    def begin(self, job_id: str, worker: Worker) -> str:
        """The name of a new worker."""
        with self._turn:
            name = f"worker number {next(self._numbers)}"
            self._workers[name] = job_id, worker
            return name

    def end(self, name: str) -> None:
        """Forgets a worker, which takes no further step."""
        with self._turn:
            self._workers.pop(name, None)

    def living(self) -> dict[str, str]:
        """Each living worker's job."""
        with self._turn:
            return {name: job_id for name, (job_id, _) in self._workers.items()}

    def close(self) -> None:
        """Ends everything."""
        self._closed.set()
        self._thread.join()

    def _advance(self) -> None:
        while not self._closed.wait(STEP_S):
            for name in self.living():
                with self._turn:
                    if name in self._workers and next(self._workers[name][1], self) is self:
                        del self._workers[name]


class InMemoryBackend:
    """Satisfies `TrainingBackend`; a handle's token is the worker's name in the engine."""

    def __init__(self, store: JobStore, engine: Engine) -> None:
        self._store = store
        self._engine = engine
        self._forced_from: dict[str, float] = {}  # by time.monotonic()

    def submit(self, spec: JobSpec) -> Handle:
        return Handle(spec.id, self._engine.begin(spec.id, work(self._store.folder(spec.id))))

    def poll(self, handle: Handle) -> WorkerState:
        if time.monotonic() >= self._forced_from.get(handle.token, float("inf")):
            self.kill(handle)
        return WorkerState(is_alive=handle.token in self._engine.living())

    def cancel(self, handle: Handle, grace_s: float) -> None:
        self._store.folder(handle.job_id).request_cancel()
        self._forced_from.setdefault(handle.token, time.monotonic() + 2 * grace_s)

    def kill(self, handle: Handle) -> None:
        self._engine.end(handle.token)

    def memory_bytes(self, handle: Handle) -> int:
        return 0

    def recover(self) -> list[Handle]:
        unfinished = {folder.id for folder in self._store.unfinished()}
        return [Handle(job_id, name) for name, job_id in self._engine.living().items() if job_id in unfinished]

    def same_worker(self, one: Handle, other: Handle) -> bool:
        return one.token == other.token != ""

    def describe_end(self, handle: Handle, state: WorkerState) -> str:
        return f"took no further step ({handle.token or 'no name'})"


def work(folder: JobFolder) -> Worker:
    """One worker's life, as `runtime.job_worker` lives it."""
    record = folder.record_worker(max(folder.job().attempt, folder.num_lost()) + 1)
    report = EventReport(folder)
    request = folder.spec.request
    folder.append("started", pid=record.pid, attempt=record.attempt)
    try:
        for step in itertools.count(folder.job().progress.step + 1):
            report(step, request["steps"])
            yield
            if request.get("dies"):
                return
            while request.get("ignores"):
                yield
            if step >= request["steps"]:
                break
    except JobCancelled:
        folder.append("cancelled")
        return
    folder.append("succeeded", result={"steps": request["steps"]})
