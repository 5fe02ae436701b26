"""Job folder: one job on disk, whose event log is the truth; `JobStore`: all of them, newest first.

    <root>/<job_id>/
        request.json    JobSpec, written before anything starts
        events.jsonl    the event log (jobs.event_log)
        cancel          marker: somebody asked to stop
        worker.json     pid, start time and attempt of the worker; `beat` is touched every second while it lives
        worker_grant.json  which attempt may work from elsewhere (jobs.worker_grant)
        worker.log      stdout and stderr of the worker, of which the newest part is kept (jobs.bounded_log)
        checkpoint/     the workflow's own; an experiment's trials.jsonl among it (jobs.trial_log), and a replay's rows
        tracking.json   how far the tracking server knows the job; written by the tracker alone
    <root>/deleted.jsonl    append-only: what is left of deleted jobs

A deletion is its line: from then on nobody sees the job, whatever of its folder is still there, and nobody makes
another of its id; the folder goes after it, or at the next start (`finish_deletions`).
A folder appears whole (staged, then renamed), so a job exists with its request and its `queued` event or not at all.
"""

import base64
import logging
import os
import re
import secrets
import shutil
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from common_lib.exceptions import ConflictError, DataValidationError, JobNotFoundError
from common_lib.redaction import redacted
from common_lib.storage import make_folder
from ml_workbench_service.contracts.contract import UtcDatetime, iso, utc_now
from ml_workbench_service.contracts.jobs import (
    DeletedJob,
    EventType,
    Job,
    JobEvent,
    JobKind,
    JobList,
    JobSpec,
    JobStatus,
    JobTracking,
)
from ml_workbench_service.jobs.durable_files import NewLines, append_line, clear_disk_errors, sync_folder, write_whole
from ml_workbench_service.jobs.event_log import EventLog, EventReader, encode, has_ended
from ml_workbench_service.jobs.folder_listing import NOWHERE, Listing, WatchedFolder
from ml_workbench_service.jobs.guarded_reading import SET_ASIDE, guarded, guarded_lines
from ml_workbench_service.jobs.job_projection import JobProjection
from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.jobs.trial_log import TRIALS_FILE, TrialLog
from ml_workbench_service.jobs.worker_grant import WorkerGrant
from ml_workbench_service.jobs.workers_folder import BegunAttempt

JOB_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
TRACKED_KINDS = frozenset({JobKind.TRAIN, JobKind.EXPERIMENT})  # those that the tracking server gets to know
FRESH_BEAT_S = 10.0
LOST = "worker_lost"
"""The `code` of the warning that the supervisor leaves for each worker that died and was followed by another."""
SERIES_FILE = "series.parquet"
"""What a replay said and earned, row by row."""
MAX_LIMIT = 200
WORKER_LOG = "worker.log"
LARGEST_LOG_BYTES = 256 * 1024
"""Of a worker's log that is handed out at once."""
LONGEST_SECRET_BYTES = 4096
DELETED_FILE = "deleted.jsonl"

log = logging.getLogger(__name__)


def new_job_id(created_at: datetime) -> str:
    """An id that sorts by time, such as `20260102T030405-abcdef12`."""
    return f"{created_at:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


class WorkerRecord(BegunAttempt):
    """`worker.json`: which process works at the job."""


class TrackingRecord(JobTracking):
    """`tracking.json`: what the tracking server has of the job. `last_seq` is the last event that was sent.

    `trial_runs` are the nested runs of the trials that were sent, by the trials' numbers.
    """

    last_seq: int = 0
    trial_runs: dict[int, str] = Field(default_factory=dict)
    model_version: str | None = None
    problem: str = ""
    updated_at: UtcDatetime | None = None


class JobFolder:
    """One job's folder; reading it again is cheap where nothing changed. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.checkpoint = path / "checkpoint"
        self.worker_log = path / WORKER_LOG
        self.series = self.checkpoint / SERIES_FILE
        self.trials = TrialLog(self.checkpoint / TRIALS_FILE)
        self.grant = WorkerGrant(path)
        self._events = path / "events.jsonl"
        self._log = EventLog(self._events)
        self._places = tuple(f"{path}/{name}" for name in ("events.jsonl", "cancel", "tracking.json"))
        self._reader = EventReader(self._events)
        self._projection = JobProjection()
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] | None = None
        self._job: Job | None = None
        self._is_final = False
        self._spec: JobSpec | None = None

    @classmethod
    def create(cls, root: Path, spec: JobSpec) -> "JobFolder":
        """Makes the folder with its request and its `queued` event, on disk when this returns.

        Raises:
            ConflictError: a job of that id exists.
            UnavailableError: the disk is full.
        """
        if not JOB_ID_PATTERN.fullmatch(spec.id):
            raise DataValidationError.at("id", "A job id is letters, digits, '-' and '_', at most 64 of them.")
        make_folder(root)
        staged = root / f".{spec.id}.{secrets.token_hex(4)}"
        with clear_disk_errors(staged):
            staged.mkdir()
        try:
            write_whole(staged / "request.json", spec.model_dump_json(indent=1).encode(), durable=True)
            write_whole(staged / "events.jsonl", encode(1, "queued", {}, at=iso(spec.created_at)), durable=True)
            staged.rename(root / spec.id)
        except BaseException as error:
            for file in staged.iterdir():
                file.unlink()
            staged.rmdir()
            if isinstance(error, OSError) and (root / spec.id).exists():
                raise ConflictError(
                    f"A job {spec.id} exists already; ask for it at /api/v1/jobs/{spec.id}.",
                    details={"job_id": spec.id},
                ) from error
            raise
        sync_folder(root)
        return cls(root / spec.id)

    @property
    def spec(self) -> JobSpec:
        """The request; raises JobNotFoundError where the folder is gone or holds none."""
        if self._spec is None:
            self._spec = guarded(self.path / "request.json", JobSpec.model_validate_json)
            if self._spec is None:
                raise JobNotFoundError(f"There is no job {self.id}; list the jobs at /api/v1/jobs.")
        return self._spec

    @cached_property
    def created(self) -> str:
        """When, as a text that sorts."""
        return self.spec.created_at.isoformat(timespec="microseconds")

    def append(self, kind: EventType, /, **data: Any) -> int:
        """Adds one event and returns its number; final events are on disk when this returns.

        Raises:
            UnavailableError: the disk is full; the log stays readable.
        """
        return self._log.append(kind, data)

    def append_numbered(self, events: Sequence[JobEvent]) -> int:
        """Adds what a worker elsewhere has numbered; see `EventLog.append_numbered`."""
        return self._log.append_numbered(events)

    def events(self, after_seq: int = 0) -> list[JobEvent]:
        """The events after that number, oldest first."""
        return [event for event in self.reader().read() if event.seq > after_seq]

    def reader(self) -> EventReader:
        """A reader of one's own, which remembers how far it has come."""
        return EventReader(self._events)

    def job(self) -> Job:
        """What the event log says now; the very same object where nothing changed.

        Raises:
            JobNotFoundError: the folder is gone.
        """
        with self._lock:
            events, cancel, tracking = self._places
            seen = (_size(events), _stamp(cancel) is not None, _stamp(tracking))
            if self._job is None or seen != self._seen:
                for event in self._reader.read():
                    self._projection.add(event)
                self._job = self._projection.job(
                    self.spec, cancel_requested=self.cancel_requested, tracking=self._tracked()
                )
                self._seen = seen
            return self._job

    @property
    def num_log_bytes(self) -> int:
        """Size of the event log, which changes with each event; -1 where there is none."""
        return _size(self._places[0])

    @property
    def has_ended(self) -> bool:
        """Whether a final event is there, without reading the whole log; nothing follows one."""
        self._is_final = self._is_final or has_ended(self._events)
        return self._is_final

    @property
    def final_status(self) -> JobStatus | None:
        """How it ended, where that is known already; asks no file."""
        job = self._job
        return job.status if job is not None and job.status.is_final else None

    def request_cancel(self) -> None:
        """Leaves the marker that the worker sees at its next report."""
        (self.path / "cancel").touch()

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked to stop."""
        return _stamp(self._places[1]) is not None

    def worker(self) -> WorkerRecord | None:
        """The process that works, or worked, at the job; None where none has begun."""
        record = WorkerRecord.read(self.path / "worker.json")
        return record if isinstance(record, WorkerRecord) else None

    @property
    def next_attempt(self) -> int:
        """The number of the worker that is to begin."""
        return max(self.job().attempt, self.num_lost()) + 1

    def begin_attempt(self) -> WorkerRecord:
        """The worker says who it is, before it begins."""
        return self.record_worker(self.next_attempt)

    def record_worker(self, attempt: int, process: ProcessRecord | None = None) -> WorkerRecord:
        """This process works at the job, or another one that has said who it is."""
        about = process or ProcessRecord.of(os.getpid())
        record = WorkerRecord(**about.model_dump(), attempt=attempt)
        write_whole(self.path / "worker.json", record.model_dump_json().encode())
        return record

    def num_lost(self) -> int:
        """Workers that died in the middle and were, or are to be, followed by another; reads the whole log."""
        return sum(event.type == "warning" and event.data.get("code") == LOST for event in self.events())

    def beat(self) -> None:
        """The worker's sign of life; needs no disk space once the file is there."""
        (self.path / "beat").touch()

    @property
    def is_beating(self) -> bool:
        """Whether the worker gave a sign of life within the last seconds."""
        stamp = _stamp(f"{self.path}/beat")
        return stamp is not None and time.time() - stamp / 1e9 < FRESH_BEAT_S

    def tracking(self) -> TrackingRecord:
        """What the tracker wrote down; a fresh record where it has not come by, or where it cannot be read."""
        return guarded(self.path / "tracking.json", TrackingRecord.model_validate_json) or TrackingRecord()

    def write_tracking(self, record: TrackingRecord) -> None:
        """For the tracker alone."""
        write_whole(self.path / "tracking.json", record.model_dump_json().encode())

    def log_tail(self, *, num_chars: int = 2000) -> str:
        """The end of worker.log, for people, without secrets."""
        return (self._log_end(num_chars) or "").strip()

    def log_lines(self, num_lines: int) -> str | None:
        """The last lines of worker.log, without secrets and within `LARGEST_LOG_BYTES`; None where there is no log."""
        found = self._log_end(LARGEST_LOG_BYTES)
        return None if found is None else "".join(found.splitlines(keepends=True)[-num_lines:])

    def _log_end(self, num_bytes: int) -> str | None:
        """So many bytes from the end; secrets are looked for in more, lest one be cut in two and not be known."""
        try:
            with self.worker_log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes - LONGEST_SECRET_BYTES))
                text = redacted(file.read().lstrip(b"\0").decode("utf-8", "replace"))  # a hole reads as zeros
        except FileNotFoundError:
            return None
        return text[-num_bytes:]

    def _tracked(self) -> JobTracking:
        if self.spec.kind not in TRACKED_KINDS:
            return JobTracking(status="disabled")
        record = self.tracking()
        return JobTracking(status=record.status, run_id=record.run_id, url=record.url)


class JobStore:
    """All job folders below `root`. Ids are checked before they touch a path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, JobFolder] = {}
        self._root = WatchedFolder(root)
        self._ordered: tuple[Listing, list[JobFolder]] = (NOWHERE, [])
        self._deleted: dict[str, DeletedJob] = {}
        self._deletions = NewLines(root / DELETED_FILE)
        self._reading = threading.Lock()

    def create(self, spec: JobSpec) -> JobFolder:
        """A new job, on disk; see `JobFolder.create`. An id stays taken once its job was deleted."""
        if self.deleted(spec.id) is not None:
            raise ConflictError(f"A job {spec.id} was deleted, and its id is never used again; send another one.")
        folder = JobFolder.create(self.root, spec)
        return self._folders.setdefault(spec.id, folder)

    def folder(self, job_id: str) -> JobFolder:
        """The job's folder; raises JobNotFoundError."""
        if not JOB_ID_PATTERN.fullmatch(job_id):
            raise JobNotFoundError("There is no job of that id; list the jobs at /api/v1/jobs.")
        folder = self._folders.get(job_id) or JobFolder(self.root / job_id)
        if (deleted := self.deleted(job_id)) is not None:
            self._folders.pop(job_id, None)
            raise JobNotFoundError(
                f"Job {job_id} was deleted on {deleted.deleted_at:%Y-%m-%d}; list the jobs at /api/v1/jobs."
            )
        if not folder.path.is_dir():
            self._folders.pop(job_id, None)
            raise JobNotFoundError(f"There is no job {job_id}; list the jobs at /api/v1/jobs.")
        _ = folder.spec
        return self._folders.setdefault(job_id, folder)

    def listed(self, job_id: str) -> JobFolder:
        """The folder of a job that a page has just shown: nobody looks for it again."""
        return self._folders.get(job_id) or self.folder(job_id)

    def deleted(self, job_id: str) -> DeletedJob | None:
        """What is left of a deleted job; None of any other. Cheap where nothing was deleted since."""
        with self._reading:
            lines = self._deletions.read()  # one torn by a kill: that deletion did not happen
            for each in guarded_lines(self._deletions.path, lines, DeletedJob.model_validate_json):
                self._deleted[each.id] = each
            return self._deleted.get(job_id)

    def delete(self, job_id: str) -> DeletedJob:
        """Deletes an ended job's folder; idempotent.

        Raises:
            JobNotFoundError: no such job.
            ConflictError: it has not ended.
            UnavailableError: the disk is full; the job is as it was.
        """
        if (before := self.deleted(job_id)) is not None:
            return before
        folder = self.folder(job_id)
        job = folder.job()
        if not job.status.is_final:
            raise ConflictError(
                f"Job {job_id} is {job.status.value}; cancel it first (POST /api/v1/jobs/{job_id}/cancel), or wait for "
                "its end, then delete it."
            )
        left = DeletedJob(
            id=job_id,
            kind=job.kind,
            status=job.status,
            created_at=job.created_at,
            deleted_at=utc_now(),
            run_id=folder.tracking().run_id,
            idempotency_key=folder.spec.idempotency_key,
            body_digest=folder.spec.body_digest,
        )
        append_line(self.root / DELETED_FILE, left.model_dump_json())
        self._folders.pop(job_id, None)
        _remove(folder.path)
        return left

    def finish_deletions(self) -> None:
        """At start: removes the folders of deleted jobs, where a kill came in between."""
        for name in os.listdir(self.root) if self.root.is_dir() else []:
            if JOB_ID_PATTERN.fullmatch(name) and self.deleted(name) is not None:
                _remove(self.root / name)

    def get(self, job_id: str) -> Job:
        """The job as it stands; raises JobNotFoundError."""
        return self.folder(job_id).job()

    def page(
        self,
        *,
        kind: JobKind | None = None,
        status: JobStatus | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobList:
        """Jobs, newest first. `cursor` is the `next_cursor` of the page before.

        Raises:
            DataValidationError: a cursor that no page gave.
        """
        before = _decode_cursor(cursor) if cursor else None
        jobs: list[Job] = []
        ordered = self._oldest_first()
        end = len(ordered) if before is None else bisect_left(ordered, before, key=_order)
        for folder in reversed(ordered[:end]):
            if (kind and folder.spec.kind is not kind) or (status and folder.final_status not in (None, status)):
                continue
            try:
                job = folder.job()
            except JobNotFoundError:  # deleted since the folders were listed
                continue
            if status and job.status is not status:
                continue
            if len(jobs) == min(limit, MAX_LIMIT):
                return JobList(jobs=tuple(jobs), next_cursor=_encode_cursor(jobs[-1]))
            jobs.append(job)
        return JobList(jobs=tuple(jobs))

    def unfinished(self) -> list[JobFolder]:
        """Jobs without a final event, oldest first."""
        return [folder for folder in self._oldest_first() if not folder.has_ended]

    def folders(self) -> Iterator[JobFolder]:
        """Every readable job folder, oldest first; a broken one is logged and left alone."""
        yield from self._oldest_first()

    def _oldest_first(self) -> list[JobFolder]:
        """All folders, put in order again only where a job came or went."""
        self.deleted("")  # reads what was deleted since, by whomever
        listing = self._root.look()
        as_of, known = self._ordered
        if as_of is not listing:
            for gone in set(self._folders) - listing.names:
                self._folders.pop(gone, None)
            known = sorted(self._readable(listing.names), key=_order)
            num_there = sum(map(bool, map(JOB_ID_PATTERN.fullmatch, listing.names - self._deleted.keys())))
            self._ordered = (listing if len(known) == num_there else NOWHERE, known)  # a broken one may be mended
        return [each for each in known if each.id not in self._deleted] if self._deleted else known

    def _readable(self, names: Iterable[str]) -> Iterator[JobFolder]:
        for name in names:
            if not JOB_ID_PATTERN.fullmatch(name) or name in self._deleted:
                continue
            try:
                yield self._folders.get(name) or self.folder(name)
                SET_ASIDE.mended(self.root / name)
            except JobNotFoundError:
                SET_ASIDE.note(self.root / name, "it has no request.json that can be read; restore it, or move it away")


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:  # nobody sees it any more
        log.warning("files of the deleted job %s stay until the next start: %s", path.name, error)


def _order(folder: JobFolder) -> tuple[str, str]:
    """By time of creation; ids made from an idempotency key do not sort by themselves."""
    return folder.created, folder.id


def _encode_cursor(job: Job) -> str:
    text = f"{job.created_at.isoformat(timespec='microseconds')}|{job.id}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode_cursor(cursor: str) -> tuple[str, str]:
    try:
        created_at, _, job_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition("|")
        datetime.fromisoformat(created_at)
    except ValueError as error:
        raise DataValidationError.at(
            "query.cursor", "This cursor is not one of ours; start again without a cursor."
        ) from error
    return created_at, job_id


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # pathlib's costs twice as much, and lists ask for hundreds
    except FileNotFoundError:
        return -1


def _stamp(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return None
