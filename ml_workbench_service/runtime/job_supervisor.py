"""Job supervisor: starts queued jobs, adopts workers that outlived us, cancels, watches memory, replaces the dead.

Law: it writes events only before a worker's start and after its death. Workers outlive it: `stop` leaves them alone,
and the next `start` adopts them. A training or experiment whose worker died without a final event gets another one,
which finds the checkpoint; each such death is one warning in the log, and these warnings are the count. Everything that
touches disk or processes runs in a thread, one turn at a time.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal

from common_lib.exceptions import ConflictError, PlatformError, UnavailableError
from ml_workbench_service.contracts.contract import UtcDatetime, utc_now
from ml_workbench_service.contracts.jobs import DeletedJob, Job, JobEvent, JobKind, JobSpec, JobStatus
from ml_workbench_service.contracts.runners import Handle, TrainingBackend, WorkerState
from ml_workbench_service.jobs.event_log import FINAL_EVENTS
from ml_workbench_service.jobs.job import LOST, JobFolder, JobStore
from ml_workbench_service.runtime.waiting_room import WaitingRoom

LIMITED_KINDS = frozenset({JobKind.TRAIN, JobKind.EXPERIMENT})
OTHER_KINDS = frozenset(JobKind) - LIMITED_KINDS
RESUMED_KINDS = LIMITED_KINDS | {JobKind.IMPORTANCE}  # a replay would publish what it has published
BYTES_PER_GB = 1_000_000_000
SECONDS_PER_HOUR = 3600.0
WAITS = "worker_waits"
"""The `code` of the warning that says why an engine has not begun a job."""
MEMORY_PERIOD_S = 1.0
PRESS_AGAIN_S = 10.0
"""Between two tries to end a worker that lingers; a cluster's head may be away."""
FOLLOW_PERIOD_S = 0.2

log = logging.getLogger(__name__)

JobHook = Callable[[Job], None]


@dataclass(frozen=True)
class Limits:
    """What jobs may use, and how long the supervisor waits for them.

    Attributes:
        max_workers: trainings and experiments that may run at a time.
        max_others: replays and tests of resilience that may run beside them.
        max_waiting: jobs of one client that may wait for a worker.
        max_hours: after which a job is ended; None: never.
        max_memory_gb: resident memory (10⁹ bytes) of a worker and its descendants above which it is ended.
        max_attempts: workers that a training or an experiment may have; none follows one that was ended for its memory.
        grace_s: between asking a worker to stop and pressing it, and as long again until it is ended by force.
        poll_s: between two turns while there is something to watch.
    """

    max_workers: int
    max_memory_gb: float
    max_attempts: int = 3
    max_others: int = 8
    max_waiting: int = 100
    max_hours: float | None = None
    grace_s: float = 10.0
    poll_s: float = 0.2


@dataclass
class _Run:
    """A worker under watch."""

    folder: JobFolder
    handle: Handle
    status: JobStatus
    begun_at: UtcDatetime  # this attempt
    weighed_at: float = 0.0  # time.monotonic()
    ended_at: float | None = None  # when its final event was seen
    exit_code: int | None = None
    used_gb: float | None = None  # set where it was ended for its memory
    is_too_long: bool = False  # it was ended for its length
    waits: str = ""  # as the job's log has it
    pressed_at: float | None = None  # by time.monotonic(), when it was last ended for lingering


class JobSupervisor:
    """The life of every job between its folder and its final event; see `JobRunner`.

    Args:
        on_finished: called in the event loop, once for each job whose final event appeared.
        on_activity: called in the event loop whenever a job's status changed, the final ones included.
        publish: publishes what a worker has handed in, if anything; called in a thread at each turn of a job's watch.
    """

    def __init__(
        self,
        store: JobStore,
        backend: TrainingBackend,
        limits: Limits,
        *,
        on_finished: JobHook | None = None,
        on_activity: JobHook | None = None,
        publish: Callable[[JobFolder], None] | None = None,
    ) -> None:
        self._publish = publish
        self.store = store
        self._backend = backend
        self._limits = limits
        self._on_finished = on_finished
        self._on_activity = on_activity
        self._waiting = WaitingRoom(limits.max_waiting)
        self._runs: dict[str, _Run] = {}
        self._later: list[JobFolder] = []  # those that could not be started in this turn
        self._unstarted: set[str] = set()
        self._news: list[Job] = []
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def is_idle(self) -> bool:
        """Whether no job runs, and none waits."""
        return not self._runs and not self._waiting

    async def start(self) -> None:
        """Adopts living workers, replaces dead ones or says that they are lost, and begins to start what is queued."""
        self._stopping = False
        await self._in_turn(self._adopt)
        self._task = asyncio.create_task(self._watch_over(), name="job supervisor")

    async def stop(self) -> None:
        """Ends the watch after the turn at hand; workers go on, and the next `start` adopts them."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def submit(self, spec: JobSpec) -> Job:
        """On disk before it is queued; see `JobRunner.submit`."""
        await self._in_turn(lambda: self._accept(spec))
        self._wake.set()
        return self.store.get(spec.id)

    async def delete(self, job_id: str) -> DeletedJob:
        """Waits for a worker that has written its final event and is just leaving; see `JobRunner.delete`."""
        if self.store.deleted(job_id) is None and self.store.get(job_id).status.is_final:
            until = time.monotonic() + self._limits.grace_s + PRESS_AGAIN_S
            while job_id in self._runs:  # the watch ends one that lingers
                if time.monotonic() > until:
                    raise ConflictError(
                        f"the worker of job {job_id} has written its last event, and is not known to be gone: delete "
                        "the job again once `/health/ready` says that its cluster is there"
                    )
                await asyncio.sleep(self._limits.poll_s / 4)
        await self._in_turn(lambda: self._delete(job_id))
        left = self.store.deleted(job_id)
        assert left is not None
        return left

    async def cancel(self, job_id: str) -> Job:
        """Asks through the backend, or writes the end of a job that no worker has; see `JobRunner.cancel`."""
        folder = self.store.folder(job_id)
        await self._in_turn(lambda: self._cancel(folder))
        self._wake.set()
        return folder.job()

    def follow(
        self, job_id: str, after_seq: int = 0, *, stopping: asyncio.Event | None = None
    ) -> AsyncIterator[JobEvent]:
        """Reads the log itself, so that any number may follow one job; see `JobRunner.follow`."""
        return _follow(self.store.folder(job_id), after_seq, stopping or asyncio.Event())

    async def _watch_over(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                await self._in_turn(self._take_turn)
            except Exception:  # the watch must outlive one bad turn; the next one tries again
                log.exception("a turn of the job supervisor failed; it goes on with the next")
            await _pause(self._wake, self._limits.poll_s if self._runs or len(self._waiting) else None)

    async def _in_turn(self, work: Callable[[], None]) -> None:
        """Does work in a thread while nobody else does, then tells the hooks; a caller who leaves does not break it."""
        task = asyncio.create_task(self._locked(work))
        await asyncio.shield(task)

    async def _locked(self, work: Callable[[], None]) -> None:
        async with self._turn:
            try:
                await asyncio.to_thread(work)
            finally:
                news, self._news = self._news, []
                self._tell(news)

    def _adopt(self) -> None:
        living = {handle.job_id: handle for handle in self._backend.recover()}
        for folder in self.store.unfinished():
            record = folder.worker()
            has_begun = record is not None and record.attempt > folder.num_lost()  # else its death is noted already
            if not has_begun and folder.id not in living:
                self._waiting.enter(folder)
                continue
            handle = living.get(folder.id) or Handle(folder.id)
            self._runs[folder.id] = _Run(folder, handle, folder.job().status, _last_start(folder))
            if folder.id in living:
                log.info("adopting the worker of job %s", folder.id)
        for run in self._runs.values():
            self._pass_on_cancel(run)
        self._take_turn()

    def _accept(self, spec: JobSpec) -> None:
        self._waiting.check_room(spec.client)
        folder = self.store.create(spec)
        self._waiting.enter(folder)
        self._news.append(folder.job())

    def _delete(self, job_id: str) -> None:
        self.store.delete(job_id)

    def _take_turn(self) -> None:
        for run in list(self._runs.values()):
            self._look_at(run)
        self._start_queued()

    def _look_at(self, run: _Run) -> None:
        state = self._backend.poll(run.handle)  # before the log, so that a final event written before death is seen
        self._note(run)
        if self._publish is not None and not run.status.is_final:
            self._publish_of(run.folder)
        if state.is_alive:
            self._tell_wait(run, state.waits)
            self._weigh(run)
            return
        run.exit_code = run.exit_code if state.exit_code is None else state.exit_code
        if not run.status.is_final:
            other = self._other_worker(run)
            if other is not None:
                run.handle = other
                self._pass_on_cancel(run)
                return
            if not self._finish(run):
                return
        run.folder.grant.revoke()  # of one that ended in order: its token has done what it was for
        del self._runs[run.folder.id]

    def _tell_wait(self, run: _Run, why: str) -> None:
        """Once an attempt: whoever follows the job sees why it waits."""
        if not why or run.waits or run.status.is_final:
            return
        if self._write(run.folder, "warning", code=WAITS, message=f"No worker has begun yet: {why}. The job waits."):
            run.waits = why

    def _publish_of(self, folder: JobFolder) -> None:
        """A version that cannot be published now holds up no other job: its worker waits for the next turn."""
        assert self._publish is not None
        try:
            self._publish(folder)
        except (PlatformError, OSError) as error:
            log.error("what job %s handed in waits: %s", folder.id, error)

    def _pass_on_cancel(self, run: _Run) -> None:
        if run.folder.cancel_requested:
            self._backend.cancel(run.handle, self._limits.grace_s)

    def _note(self, run: _Run) -> None:
        job = run.folder.job()
        if job.status is run.status:
            return
        if run.status is JobStatus.QUEUED:
            run.begun_at = utc_now()  # what it waited on the engine is nobody's work
        run.status = job.status
        if job.status.is_final:
            run.ended_at = time.monotonic()
        self._news.append(job)

    def _other_worker(self, run: _Run) -> Handle | None:
        """A predecessor of ours may have started a worker just before it was killed; ours then left at once."""
        others = (handle for handle in self._backend.recover() if handle.job_id == run.folder.id)
        return next((each for each in others if not self._backend.same_worker(each, run.handle)), None)

    def _weigh(self, run: _Run) -> None:
        """Ends a worker that uses too much memory or time, or lingers after its final event."""
        now = time.monotonic()
        if run.ended_at is not None:
            since = run.ended_at + self._limits.grace_s if run.pressed_at is None else run.pressed_at + PRESS_AGAIN_S
            if now > since:
                log.warning("the worker of job %s lingers and is killed", run.folder.id)
                run.pressed_at = now
                self._backend.kill(run.handle)
            return
        if now - run.weighed_at < MEMORY_PERIOD_S:
            return
        run.weighed_at = now
        used_gb = self._backend.memory_bytes(run.handle) / BYTES_PER_GB
        if used_gb > self._limits.max_memory_gb:
            run.used_gb = used_gb
            self._backend.kill(run.handle)
        elif self._is_too_long(run):
            run.is_too_long = True
            self._backend.kill(run.handle)

    def _is_too_long(self, run: _Run) -> bool:
        if self._limits.max_hours is None or run.status is JobStatus.QUEUED:
            return False
        return (utc_now() - run.begun_at).total_seconds() > self._limits.max_hours * SECONDS_PER_HOUR

    def _start_queued(self) -> None:
        for folder in self._waiting:
            if folder.cancel_requested:
                self._cancel(folder)
        for kinds, most in ((LIMITED_KINDS, self._limits.max_workers), (OTHER_KINDS, self._limits.max_others)):
            running = Counter(run.folder.spec.client for run in self._runs.values() if run.folder.spec.kind in kinds)
            while running.total() < most and (chosen := self._waiting.next(kinds, running)) is not None:
                running[chosen.spec.client] += self._start(chosen)
        later, self._later = self._later, []
        for each in later:
            self._waiting.enter_again(each)

    def _start(self, folder: JobFolder) -> bool:
        try:
            handle = self._backend.submit(folder.spec)
        except UnavailableError as error:  # a full disk, as a rule: the next turn may go well
            if folder.id not in self._unstarted:  # said once, not at each turn
                log.error("job %s cannot be started just now: %s", folder.id, error.message)
            self._unstarted.add(folder.id)
            self._later.append(folder)
            return False
        except (OSError, PlatformError) as error:
            if not self._write(folder, "failed", **_failure("WORKER_LOST", _NOT_STARTED.format(error=error))):
                self._later.append(folder)
            return False
        self._unstarted.discard(folder.id)
        self._runs[folder.id] = _Run(folder, handle, folder.job().status, utc_now())
        return True

    def _cancel(self, folder: JobFolder) -> None:
        if folder.job().status.is_final:
            return
        run = self._runs.get(folder.id)
        if run is not None:
            self._backend.cancel(run.handle, self._limits.grace_s)
            self._note(run)
            return
        folder.request_cancel()
        if self._write(folder, "cancelled"):
            self._waiting.leave(folder)

    def _finish(self, run: _Run) -> bool:
        """What becomes of a job whose worker died; False where the disk does not let us say it, to try again."""
        folder = run.folder
        folder.grant.revoke()  # it may only be frozen, on a machine that nobody reaches
        how = self._backend.describe_end(run.handle, WorkerState(is_alive=False, exit_code=run.exit_code))
        if folder.cancel_requested:
            return self._write(folder, "cancelled")
        if run.used_gb is not None:
            message = _TOO_LARGE.format(used_gb=run.used_gb, limit_gb=self._limits.max_memory_gb)
            weight = {"used_gb": round(run.used_gb, 3), "limit_gb": self._limits.max_memory_gb}
            return self._write(folder, "failed", **_failure("WORKER_OUT_OF_MEMORY", message, **weight))
        if run.is_too_long:
            message = _TOO_LONG.format(limit=self._limits.max_hours)
            return self._write(
                folder, "failed", **_failure("JOB_TOO_LONG", message, limit_hours=self._limits.max_hours)
            )
        attempt = folder.num_lost() + 1
        if folder.spec.kind in RESUMED_KINDS and attempt < self._limits.max_attempts:
            message = _RESUMED.format(ending=how, attempt=attempt + 1, most=self._limits.max_attempts)
            if not self._write(folder, "warning", code=LOST, message=message, exit_code=run.exit_code):
                return False
            if folder.path.is_dir():
                self._waiting.enter_again(folder)
            return True
        message = _LOST.format(ending=how, attempt=f" (attempt {attempt})" if attempt > 1 else "")
        lost = _failure("WORKER_LOST", message, exit_code=run.exit_code, attempt=attempt, log_tail=folder.log_tail())
        return self._write(folder, "failed", **lost)

    def _write(self, folder: JobFolder, kind: Literal["warning", "failed", "cancelled"], **data: object) -> bool:
        """Adds an event to the log of a job that has no worker; False where the disk does not take it, to try again."""
        try:
            folder.append(kind, **data)
        except (UnavailableError, FileNotFoundError) as error:
            log.error("what became of job %s could not be written: %s", folder.id, error)
            return isinstance(error, FileNotFoundError)  # the folder is gone: nothing to try again
        if kind != "cancelled":
            log.log(logging.ERROR if kind == "failed" else logging.WARNING, "job %s: %s", folder.id, data["message"])
        self._news.append(folder.job())
        return True

    def _tell(self, news: list[Job]) -> None:
        """Passes the news to the hooks; a hook that fails is logged and costs nothing else."""
        for job in news:
            for hook in (self._on_activity, self._on_finished if job.status.is_final else None):
                try:
                    if hook is not None:
                        hook(job)
                except Exception:
                    log.exception("a hook failed for job %s", job.id)


def _failure(code: str, message: str, **details: object) -> dict[str, object]:
    """The data of a `failed` event where a worker could not say itself why it ended."""
    return {"error_type": "TrainingError", "error_code": code, "message": message, "details": details}


_NOT_STARTED = "The worker could not be started ({error}): free memory or processes, then start the job again."
_TOO_LARGE = (
    "The job was ended because it used {used_gb:.2f} GB of memory, over the limit of {limit_gb:g} GB: lower batch_size "
    "or lookback, ask for fewer symbols or a shorter range, or raise MAX_TRAINING_MEMORY."
)
_TOO_LONG = (
    "The job was ended because it ran for longer than {limit:g} h (MAX_JOB_HOURS): ask for fewer symbols, a shorter "
    "range, or fewer epochs, seeds or trials, or raise MAX_JOB_HOURS."
)
_LOST = (
    "The worker process {ending} before it could finish the job{attempt}: details.log_tail and worker.log in the job's "
    "folder hold its last words; start the job again."
)
_RESUMED = "The worker process {ending}; the job goes on from what it has saved: attempt {attempt} of {most}."


async def _follow(folder: JobFolder, after_seq: int, stopping: asyncio.Event) -> AsyncIterator[JobEvent]:
    reader = folder.reader()
    while not stopping.is_set():
        for event in reader.read():
            if event.seq > after_seq:
                yield event
            if event.type in FINAL_EVENTS:
                return
        await _pause(stopping, FOLLOW_PERIOD_S)


async def _pause(event: asyncio.Event, timeout_s: float | None) -> None:
    """Waits for the event, or for that long."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


def _last_start(folder: JobFolder) -> UtcDatetime:
    """When the attempt began that is under way: how long a service was away between two is nobody's work."""
    return max((each.at for each in folder.events() if each.type == "started"), default=utc_now())
