"""Training backend of this machine: one subprocess a job, `python -m ml_workbench_service.runtime.job_worker <folder>`.

A worker is the leader of a session of its own (`start_new_session=True`), which is ended and weighed as a whole. The
kernel does not give a pid away while a session of that number has members, so what a dead leader left behind can be
told for certain.

A training is given to the warm worker that waits, where there is one (`warm_worker`).
"""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ml_workbench_service.contracts.extras import is_installed
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.runners import Handle, WorkerState
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.jobs.process_record import ProcessRecord, spawn
from ml_workbench_service.runtime.session_memory import session_bytes, session_of
from ml_workbench_service.runtime.warm_worker import MODULE as WARM
from ml_workbench_service.runtime.warm_worker import WarmWorkers

NEEDS = {JobKind.TRAIN: "training", JobKind.EXPERIMENT: "training", JobKind.REPLAY: "data", JobKind.IMPORTANCE: "data"}
"""The extra that a job of this kind cannot do without where its worker runs."""
SINGLE_THREADED = frozenset({JobKind.REPLAY, JobKind.IMPORTANCE, JobKind.RESILIENCE})
WORKER_COMMAND = (sys.executable, "-m", "ml_workbench_service.runtime.job_worker")


class LocalBackend:
    """Workers as subprocesses in sessions of their own: they outlive this process, which adopts them when it is back.

    Args:
        environment: of every worker; `OMP_NUM_THREADS` is set on top: one for a replay, all CPUs for the rest.
        command: the worker's command, to which the job folder is appended.
        num_threads: threads of a training; by default the CPUs this process may use.
        warm_log: what a warm worker says while it waits; None: there are none.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        environment: Mapping[str, str],
        command: Sequence[str] = WORKER_COMMAND,
        num_threads: int | None = None,
        warm_log: Path | None = None,
    ) -> None:
        self._store = store
        self._environment = dict(environment)
        self._command = tuple(command)
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        if warm_log is not None and not is_installed("training"):
            warm_log = None
        self._warm = None if warm_log is None else WarmWorkers(self._environment_of(JobKind.TRAIN), warm_log)
        self._children: dict[str, int] = {}  # pids that are ours to reap
        self._cancellations: dict[str, _Cancellation] = {}

    def submit(self, spec: JobSpec) -> Handle:
        """Starts the worker, or gives the job to the one that waits; its output goes to worker.log."""
        path = self._store.folder(spec.id).path.resolve()
        pid = self._warm.take(path) if self._warm is not None and spec.kind is JobKind.TRAIN else None
        if pid is None:
            pid = self._start(spec, path)
        self._children[spec.id] = pid
        return Handle(spec.id, ProcessRecord.of(pid).token)

    def keep_warm(self) -> None:
        """The next training will find a worker that waits. For times in which nothing is trained."""
        if self._warm is not None:
            self._warm.keep()

    def close(self) -> None:
        """Ends the worker that waits for a job; those that have one go on."""
        if self._warm is not None:
            self._warm.close()

    def poll(self, handle: Handle) -> WorkerState:
        """Reaps our own child, whose end `waitpid` alone decides; tells an adopted worker by pid and start time.

        A killed child is a zombie while its last threads end, and has no exit code until then.
        """
        has_ended, exit_code = self._end_of(handle)
        if not has_ended:
            self._press(handle)
            return WorkerState(is_alive=True)
        self._cancellations.pop(handle.job_id, None)
        return WorkerState(is_alive=False, exit_code=exit_code)

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """Leaves the marker now; `poll` sends the signals, SIGTERM and SIGKILL."""
        self._store.folder(handle.job_id).request_cancel()
        self._cancellations.setdefault(handle.job_id, _Cancellation(time.monotonic(), grace_s))

    def kill(self, handle: Handle) -> None:
        """SIGKILL to the worker and its whole session."""
        worker = _process_of(handle)
        if worker is not None:
            _kill_session(worker)

    def memory_bytes(self, handle: Handle) -> int:
        """Of the worker's session; see `session_memory`."""
        worker = _process_of(handle)
        return 0 if worker is None else session_bytes(worker)

    def recover(self) -> list[Handle]:
        """Living workers, by the worker.json of each unfinished job."""
        found = ((folder.id, _living_worker(folder)) for folder in self._store.unfinished())
        return [Handle(job_id, worker.token) for job_id, worker in found if worker is not None]

    def same_worker(self, one: Handle, other: Handle) -> bool:
        """By pid alone: an earlier version's record says the start time of the same process differently."""
        first, second = _process_of(one), _process_of(other)
        return first is not None and second is not None and first.pid == second.pid

    def describe_end(self, handle: Handle, state: WorkerState) -> str:
        """By its exit code."""
        return exit_in_words(state.exit_code)

    def _start(self, spec: JobSpec, path: Path) -> int:
        with self._store.folder(spec.id).worker_log.open("ab") as log:
            child = spawn([*self._command, str(path)], log, self._environment_of(spec.kind))
        child.returncode = 0  # reaped by pid below: Popen complains where a service leaves its children alive
        return child.pid

    def _environment_of(self, kind: JobKind) -> dict[str, str]:
        num_threads = 1 if kind in SINGLE_THREADED else self._num_threads
        return {**self._environment, "OMP_NUM_THREADS": str(num_threads)}

    def _end_of(self, handle: Handle) -> tuple[bool, int | None]:
        worker = _process_of(handle)
        if worker is None or self._children.get(handle.job_id) != worker.pid:
            return worker is None or not worker.is_alive, None
        has_ended, exit_code = _reap(worker.pid)
        if has_ended:
            _kill_orphans(worker)
            del self._children[handle.job_id]
        return has_ended, exit_code

    def _press(self, handle: Handle) -> None:
        """From asking to force, one step at a time; SIGTERM goes to the leader alone, which knows its children best."""
        cancellation, worker = self._cancellations.get(handle.job_id), _process_of(handle)
        if cancellation is None or worker is None:
            return
        elapsed_s = time.monotonic() - cancellation.asked_at
        if elapsed_s >= 2 * cancellation.grace_s:
            _kill_session(worker)
        elif elapsed_s >= cancellation.grace_s and not cancellation.terminated:
            cancellation.terminated = True
            if worker.is_alive:
                _send(worker.pid, signal.SIGTERM)


def exit_in_words(exit_code: int | None) -> str:
    """Such as `was ended by SIGKILL (often the system ran out of memory)`.

    An exit code below 0 is the signal that ended the process; there is none where nobody saw it end, as after a restart
    of the machine.
    """
    if exit_code is None:
        return "disappeared"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = " (often the system ran out of memory)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


@dataclass
class _Cancellation:
    asked_at: float  # time.monotonic()
    grace_s: float
    terminated: bool = False


def _process_of(handle: Handle) -> ProcessRecord | None:
    """The process that our token names; None where it names none."""
    return ProcessRecord.of_token(handle.token) if handle.token else None


def _reap(pid: int) -> tuple[bool, int | None]:
    """Whether our child has ended, and its exit code (negative: the signal that ended it; None: nobody knows)."""
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # somebody else's wait took it
        return True, None
    return bool(reaped), os.waitstatus_to_exitcode(status) if reaped else None


def _living_worker(folder: JobFolder) -> ProcessRecord | None:
    """The job's worker by pid and start time; where these do not tell any more, by beat, pid and command line.

    That is so of a record of an earlier version after the clock was set, and where there is no /proc.
    """
    record = folder.worker()
    if record is None or record.is_alive:
        return record
    try:
        process = psutil.Process(record.pid)
        is_worker = folder.is_beating and {str(folder.path.resolve()), WARM} & set(process.cmdline())
        return ProcessRecord.of(record.pid) if is_worker else None
    except psutil.NoSuchProcess:
        return None


def _kill_session(leader: ProcessRecord) -> None:
    """Ends the leader and everything in its session at once."""
    if leader.is_alive:
        _send(leader.pid, signal.SIGKILL)
    _kill_orphans(leader)


def _kill_orphans(leader: ProcessRecord) -> None:
    """Ends what is left of the session; asks only after the leader was ended or died."""
    for pid in psutil.pids():
        if pid != leader.pid and session_of(pid) == leader.pid:
            _send(pid, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
