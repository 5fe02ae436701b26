"""Where workers run: the protocol `TrainingBackend`, and `LocalBackend`, one subprocess a job on this machine.

A backend starts, watches and ends workers; it writes no events. The worker is the same command everywhere:
`python -m ml_workbench_service.runtime.job_worker <job folder>`.

A worker and its descendants: one session, whose id is the worker's pid, ended and weighed as a whole.

Every process of ours is the leader of its own session (`start_new_session=True`). The kernel does not give a pid away
while a session of that number has members, so what a dead leader left behind can be told for certain.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil

from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.jobs.process_record import ProcessRecord


def terminate_leader(record: ProcessRecord) -> None:
    """Asks the leader alone to end (SIGTERM); it knows best what to do with its children."""
    if record.is_alive:
        _send(record.pid, signal.SIGTERM)


def kill_session(record: ProcessRecord) -> None:
    """Ends the leader and everything in its session at once (SIGKILL)."""
    if record.is_alive:
        _send(record.pid, signal.SIGKILL)
    kill_orphans(record)


def kill_orphans(record: ProcessRecord) -> None:
    """Ends what is left of the session; asks only after the leader was ended or died."""
    for pid in psutil.pids():
        if pid != record.pid and _session_of(pid) == record.pid:
            _send(pid, signal.SIGKILL)


def resident_bytes(record: ProcessRecord) -> int:
    """Resident memory of the leader and all its descendants; 0 where it is gone."""
    leader = record.process()
    if leader is None:
        return 0
    try:
        return _resident(leader) + sum(_resident(child) for child in leader.children(recursive=True))
    except psutil.NoSuchProcess:
        return 0


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


SINGLE_THREADED = frozenset({JobKind.REPLAY, JobKind.RESILIENCE})
WORKER_COMMAND = (sys.executable, "-m", "ml_workbench_service.runtime.job_worker")


@dataclass(frozen=True)
class Handle:
    """A worker in the hands of a backend."""

    job_id: str
    process: ProcessRecord


@dataclass(frozen=True)
class WorkerState:
    """Whether the worker lives; its exit code where this process was its parent (negative: ended by that signal)."""

    is_alive: bool
    exit_code: int | None = None


class TrainingBackend(Protocol):
    """What the supervisor relies on; every call returns at once."""

    def submit(self, spec: JobSpec) -> Handle:
        """Starts the worker of a job whose folder exists; raises OSError where the machine refuses."""
        ...

    def poll(self, handle: Handle) -> WorkerState:
        """How the worker is; also what carries a cancellation on from asking to force, so call it regularly."""
        ...

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """Asks the worker to stop; SIGTERM after `grace_s`, SIGKILL after as long again. Idempotent."""
        ...

    def kill(self, handle: Handle) -> None:
        """Ends the worker and all its descendants now."""
        ...

    def memory_bytes(self, handle: Handle) -> int:
        """Resident memory of the worker and its descendants."""
        ...

    def recover(self) -> list[Handle]:
        """The workers of unfinished jobs that live, whoever started them."""
        ...


class LocalBackend:
    """Workers as subprocesses in sessions of their own: they outlive this process, which adopts them when it is back.

    Args:
        environment: of every worker; `OMP_NUM_THREADS` is set on top: one for a replay, all CPUs for the rest.
        command: the worker's command, to which the job folder is appended.
        num_threads: threads of a training; by default the CPUs this process may use.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        environment: Mapping[str, str],
        command: Sequence[str] = WORKER_COMMAND,
        num_threads: int | None = None,
    ) -> None:
        self._store = store
        self._environment = dict(environment)
        self._command = tuple(command)
        self._num_threads = num_threads or len(os.sched_getaffinity(0))
        self._children: dict[str, int] = {}  # pids that are ours to reap
        self._cancellations: dict[str, _Cancellation] = {}

    def submit(self, spec: JobSpec) -> Handle:
        """Starts the worker; its output goes to worker.log."""
        folder = self._store.folder(spec.id)
        num_threads = 1 if spec.kind in SINGLE_THREADED else self._num_threads
        with folder.worker_log.open("ab") as log:
            child = subprocess.Popen(
                [*self._command, str(folder.path.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment, "OMP_NUM_THREADS": str(num_threads)},
                start_new_session=True,
            )
        child.returncode = 0  # reaped by pid below: Popen complains where a service leaves its children alive
        self._children[spec.id] = child.pid
        return Handle(spec.id, ProcessRecord.of(child.pid))

    def poll(self, handle: Handle) -> WorkerState:
        """Reaps our own child, whose end `waitpid` alone decides; tells an adopted worker by pid and start time.

        A killed child is a zombie while its last threads end, and has no exit code until then.
        """
        is_ours = self._children.get(handle.job_id) == handle.process.pid
        has_ended, exit_code = _reap(handle.process.pid) if is_ours else (not handle.process.is_alive, None)
        if not has_ended:
            self._press(handle)
            return WorkerState(is_alive=True)
        if is_ours:
            kill_orphans(handle.process)
            del self._children[handle.job_id]
        self._cancellations.pop(handle.job_id, None)
        return WorkerState(is_alive=False, exit_code=exit_code)

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """Leaves the marker now; `poll` sends the signals."""
        self._store.folder(handle.job_id).request_cancel()
        self._cancellations.setdefault(handle.job_id, _Cancellation(time.monotonic(), grace_s))

    def kill(self, handle: Handle) -> None:
        """SIGKILL to the worker and its whole session."""
        kill_session(handle.process)

    def memory_bytes(self, handle: Handle) -> int:
        """Resident memory; shared pages count once for each process."""
        return resident_bytes(handle.process)

    def recover(self) -> list[Handle]:
        """Living workers, by the worker.json of each unfinished job."""
        folders = self._store.unfinished()
        found = ((folder.id, _living_worker(folder)) for folder in folders)
        return [Handle(job_id, process) for job_id, process in found if process is not None]

    def _press(self, handle: Handle) -> None:
        """From asking to force, one step at a time."""
        cancellation = self._cancellations.get(handle.job_id)
        if cancellation is None:
            return
        elapsed_s = time.monotonic() - cancellation.asked_at
        if elapsed_s >= 2 * cancellation.grace_s:
            self.kill(handle)
        elif elapsed_s >= cancellation.grace_s and not cancellation.terminated:
            cancellation.terminated = True
            terminate_leader(handle.process)


@dataclass
class _Cancellation:
    asked_at: float  # time.monotonic()
    grace_s: float
    terminated: bool = False


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
        is_worker = folder.is_beating and str(folder.path.resolve()) in process.cmdline()
        return ProcessRecord.of(record.pid) if is_worker else None
    except psutil.NoSuchProcess:
        return None
