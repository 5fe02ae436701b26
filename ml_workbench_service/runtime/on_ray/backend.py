"""Training backend of a Ray cluster: one submission a job and attempt, over the Jobs REST API of its head.

No call waits for the head: what is to happen there is noted, and a thread of the backend does it (`submissions`),
again and again while the head cannot be reached. A submission's id is derived from job and attempt, so one that was
not answered is found again, by this life of the service or the next, and never runs twice; a worker that a lost node
took along is followed by the next attempt, which finds the checkpoints.

A worker that is stopped gets SIGINT, which ends it at once, without a last word, as SIGKILL does on this machine: what
it leaves is the supervisor's to say. Whoever only asks leaves the cancel marker, which the worker sees itself.
"""

import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.market import OutsideThing
from ml_workbench_service.contracts.runners import Handle, WorkerState
from ml_workbench_service.elsewhere.environment import attempt_environment
from ml_workbench_service.integrations.ray_jobs import RayJobs, Submission
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.runtime.on_ray.submissions import Submissions, WatchedSubmission
from ml_workbench_service.runtime.training_backends import SINGLE_THREADED, exit_in_words

STOP_WAIT_S = 3
"""That Ray leaves a worker between SIGINT and SIGKILL."""
WORKER = "ml_workbench_service.runtime.on_ray.worker"
BYTES_PER_GB = 1_000_000_000
MOST_UNSEEN = 3
"""Attempts beyond those that are known to have begun among which a living one is looked for."""
LOG_BEGINS_AT = "worker_log_begins_at"
"""Metadata of a submission: where its first byte stands in its job's worker.log."""


@dataclass(frozen=True)
class RayWorkers:
    """What workers on the cluster are started with.

    Attributes:
        control_url: the service's address as the nodes reach it.
        python: their interpreter, by its name or path on the nodes.
        environment: of every worker; `OMP_NUM_THREADS` is set on top.
        image: that they run in; None: the node's own.
        working_dir: what Ray unpacks for them, as an address; None: nothing.
        num_cpus: CPUs, and threads, of a training and of each trial.
        num_gpus: of a training and of each trial; parts of one are allowed.
        log_bytes: that stay of what a worker prints.
    """

    control_url: str
    python: str
    environment: Mapping[str, str]
    image: str | None = None
    working_dir: str | None = None
    num_cpus: int = 1
    num_gpus: float = 0.0
    log_bytes: int = 20_000_000
    module: tuple[str, ...] = field(default=("-m", WORKER))

    def body(
        self, spec: JobSpec, granted: Mapping[str, str], submission_id: str, *, log_begins_at: int
    ) -> dict[str, Any]:
        """The request that submits a worker for a job; `granted` are the variables by which it finds the job.

        An experiment's worker leads trials that have CPUs of their own, and asks for none: two of them could otherwise
        hold all CPUs there are, and wait for their trials' for ever.
        """
        num_threads = 1 if spec.kind in SINGLE_THREADED else self.num_cpus
        leads_trials = spec.kind is JobKind.EXPERIMENT and "estimate" in spec.plan
        memory_gb = spec.plan.get("estimate", {}).get("memory_gb")
        env_vars = {
            **self.environment,
            **granted,
            "OMP_NUM_THREADS": str(num_threads),
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        }
        runtime_env: dict[str, Any] = {"env_vars": env_vars}
        if self.image is not None:
            runtime_env["image_uri"] = self.image
        if self.working_dir is not None:
            runtime_env["working_dir"] = self.working_dir
        return {
            "entrypoint": " ".join(["exec", *map(_quoted, (self.python, *self.module))]),
            "submission_id": submission_id,
            "runtime_env": runtime_env,
            "metadata": {"job_id": spec.id, "kind": spec.kind.value, LOG_BEGINS_AT: str(log_begins_at)},
            "entrypoint_num_cpus": 0 if leads_trials else num_threads,
            "entrypoint_num_gpus": 0 if spec.kind in SINGLE_THREADED else self.num_gpus,
            **({} if memory_gb is None or leads_trials else {"entrypoint_memory": int(memory_gb * BYTES_PER_GB)}),
        }


class RayBackend:
    """Satisfies `TrainingBackend`; a handle's token is the submission's id.

    Args:
        jobs: the cluster's.
        workers: what they are started with.
        poll_s: between two looks at the cluster.
    """

    def __init__(self, store: JobStore, jobs: RayJobs, workers: RayWorkers, *, poll_s: float = 0.5) -> None:
        self._store, self._jobs, self._workers = store, jobs, workers
        self._submissions = Submissions(jobs, poll_s=poll_s)
        self._pressed_at: dict[str, float] = {}  # by time.monotonic(), from when on a worker is stopped
        self._lock = threading.Lock()

    def submit(self, spec: JobSpec) -> Handle:
        """Grants the next attempt, and notes it; it is submitted as soon as the head can be reached."""
        folder = self._store.folder(spec.id)
        submission_id = self._next_id(folder)
        begins_at = folder.worker_log.stat().st_size if folder.worker_log.exists() else 0
        granted = attempt_environment(folder, control_url=self._workers.control_url)
        body = self._workers.body(spec, granted, submission_id, log_begins_at=begins_at)
        self._submissions.watch(self._watched(folder, submission_id, body=body))
        return Handle(spec.id, submission_id)

    def poll(self, handle: Handle) -> WorkerState:
        """As the cluster was last seen; one that nobody has looked at yet counts as living."""
        watched = self._of(handle)
        if watched is None:
            return WorkerState(is_alive=False)
        if time.monotonic() >= self._pressed_at.get(handle.token, float("inf")):
            self._submissions.stop(watched)
        if watched.has_ended:
            self._pressed_at.pop(handle.token, None)
        return WorkerState(is_alive=not watched.has_ended, exit_code=watched.exit_code, waits=watched.waits)

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """Leaves the marker now; twice the grace later the worker is stopped, and one that never began at once."""
        self._store.folder(handle.job_id).request_cancel()
        self._pressed_at.setdefault(handle.token, time.monotonic() + 2 * grace_s)
        watched = self._of(handle)
        if watched is not None:
            self._submissions.withdraw(watched)

    def kill(self, handle: Handle) -> None:
        """Has Ray stop the worker and all that it started; its tasks elsewhere end with it."""
        watched = self._of(handle)
        if watched is not None:
            self._submissions.stop(watched)

    def memory_bytes(self, handle: Handle) -> int:
        """Ray weighs nodes, not submissions, and ends what is too much for one: always 0."""
        return 0

    def recover(self) -> list[Handle]:
        """The living submissions of unfinished jobs. Where the head cannot be reached, whoever began is taken to live
        until it can.
        """
        folders = {folder.id: folder for folder in self._store.unfinished()}
        begun = {job_id: _num_begun(folder) for job_id, folder in folders.items()}
        try:
            living = {each.submission_id for each in self._jobs.all() if each.is_living} if folders else set()
        except PlatformError as error:
            self._submissions.note(error)
            there = {job_id: num for job_id, num in begun.items() if num > folders[job_id].num_lost()}
            for job_id, folder in folders.items():
                if job_id not in there and folder.grant.is_given:
                    there[job_id] = folder.next_attempt  # it may wait there, with a token that another grant would end
            return [Handle(each, submission_id_of(folders[each].spec, num)) for each, num in there.items()]
        possible = {
            submission_id_of(folder.spec, attempt): job_id
            for job_id, folder in folders.items()
            for attempt in range(max(begun[job_id], 1), begun[job_id] + 1 + MOST_UNSEEN)
        }
        return [Handle(job_id, each) for each, job_id in possible.items() if each in living]

    def same_worker(self, one: Handle, other: Handle) -> bool:
        """By the submission's id."""
        return one.token == other.token != ""

    def describe_end(self, handle: Handle, state: WorkerState) -> str:
        """In Ray's words where it has some: `was lost with its node (Job supervisor actor died …)`."""
        watched = self._of(handle)
        if watched is None or watched.ending is None:
            return exit_in_words(state.exit_code)
        return watched.ending

    def check(self) -> OutsideThing:
        """The cluster as readiness shows it."""
        fault, version = self._submissions.fault, self._submissions.version
        num = self._submissions.num_living
        state: Literal["ok", "down"] = "down" if fault else "ok"
        if fault:
            detail = f"{fault}; workers there go on by themselves, and {num} jobs wait to hear of it"
        else:
            detail = f"Ray {version} at {self._jobs.address}, {num} jobs there" if version else "not asked yet"
        return OutsideThing(mode="remote", state=state, detail=detail)

    def close(self) -> None:
        """Looks no longer at the cluster; workers there go on."""
        self._submissions.close()

    def _next_id(self, folder: JobFolder) -> str:
        """The next attempt's; past those that ended before they could say that they had begun."""
        ids = (submission_id_of(folder.spec, attempt) for attempt in count(folder.next_attempt))
        return next(each for each in ids if (known := self._submissions.get(each)) is None or not known.has_ended)

    def _of(self, handle: Handle) -> WatchedSubmission | None:
        """The submission that a token names, also one that an earlier life of the service has sent."""
        if not handle.token:
            return None
        with self._lock:
            found = self._submissions.get(handle.token)
            if found is None:
                folder = self._store.folder(handle.job_id)
                found = self._watched(folder, handle.token, body=None)
                self._submissions.watch(found)
            return found

    def _watched(self, folder: JobFolder, submission_id: str, *, body: dict[str, Any] | None) -> WatchedSubmission:
        return WatchedSubmission(
            submission_id, body=body, log_file=folder.worker_log, log_bytes=self._workers.log_bytes,
            log_begins_at=_log_begins_at,
        )  # fmt: skip


def submission_id_of(spec: JobSpec, attempt: int) -> str:
    """The id under which that worker of a job is known to the cluster, whoever submits it and how often."""
    told = f"{spec.id} {spec.created_at.isoformat()} {spec.correlation_id}"
    return f"ml-workbench-{spec.id}-{hashlib.sha256(told.encode()).hexdigest()[:8]}-{attempt}"


def _num_begun(folder: JobFolder) -> int:
    """Workers that began, or whose loss was noted before they could."""
    return folder.next_attempt - 1


def _log_begins_at(found: Submission) -> int:
    text = (found.metadata or {}).get(LOG_BEGINS_AT, "0")
    return int(text) if text.isdigit() else 0


def _quoted(word: str) -> str:
    """For the shell by which Ray starts a worker."""
    return "'" + word.replace("'", "'\\''") + "'"
