"""Housekeeping: what grows by itself is kept within its settings, and what a kill left behind is removed.

    ended jobs      older than JOB_RETENTION_DAYS, and the oldest beyond JOBS_MAX_GB (`end_jobs`)
    drafts          of versions that nobody finishes any more, untouched for DRAFT_RETENTION_DAYS
    workers' logs   of ended jobs, beyond JOB_LOG_MAX_MB: the end is kept, which says how it ended; of those that run
                    the worker itself keeps as much (`jobs.bounded_log`)

Each removal is named in the service's log; jobs have their lines in the audit log too. What is live is left alone: a
draft is its job's for as long as that job has not ended, however old it is, since a worker may wait in front of it.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from common_lib.exceptions import JobNotFoundError
from ml_workbench_service.access.audit_log import AuditLog
from ml_workbench_service.integrations.model_registry import STAGING, FolderModelRegistry
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.housekeeping.end_jobs import delete_old_jobs

BYTES_PER_GB = 1e9
LEAVES_WITHIN = timedelta(hours=1)
"""After its final event a worker has long left, and writes into no log."""

ROOM_FOR_FIRST_LINE = 128
LONGEST_LINE = 4096
"""Of a log, whose rest is left out with its beginning."""

_FIRST_LINE = re.compile(rb"\(([\d,]+) bytes before this were removed: JOB_LOG_MAX_MB\)\n")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HouseRules:
    """What is kept; None: everything.

    Attributes:
        retention: how long jobs stay after their end.
        jobs_bytes: of all job folders together.
        log_bytes: of one worker's log.
        drafts: how long a draft stays that nobody touches.
    """

    retention: timedelta | None
    jobs_bytes: float | None
    log_bytes: int
    drafts: timedelta

    @classmethod
    def of(cls, settings: Settings) -> "HouseRules":
        """In the settings' words."""
        days, most_gb = settings.JOB_RETENTION_DAYS, settings.JOBS_MAX_GB
        return cls(
            retention=None if days is None else timedelta(days=days),
            jobs_bytes=None if most_gb is None else most_gb * BYTES_PER_GB,
            log_bytes=settings.job_log_bytes,
            drafts=timedelta(days=settings.DRAFT_RETENTION_DAYS),
        )


def keep_house(
    store: JobStore, registry: FolderModelRegistry, audit: AuditLog, rules: HouseRules, *, now: datetime
) -> None:
    """One turn."""
    delete_old_jobs(store, registry, audit=audit, retention=rules.retention, most_bytes=rules.jobs_bytes, now=now)
    remove_drafts(registry.root / STAGING, store, untouched_since=now - rules.drafts)
    registry.sweep(untouched_since=now - rules.drafts)
    shorten_logs(store, most_bytes=rules.log_bytes, ended_before=now - LEAVES_WITHIN)


def remove_drafts(staging: Path, store: JobStore, *, untouched_since: datetime) -> list[str]:
    """Removes drafts without a job that goes on; their names."""
    removed = []
    for draft in sorted(staging.iterdir()) if staging.is_dir() else []:
        touched_s = max(_touched(draft), default=None)
        if touched_s is None or touched_s >= untouched_since.timestamp() or _is_wanted(draft.name, store):
            continue
        try:
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        except OSError as error:  # the next turn tries again
            _log.warning("the draft %s stays: %s", draft.name, error.strerror)
            continue
        _log.info("the draft %s is removed: nobody finishes it", draft.name)
        removed.append(draft.name)
    return removed


def shorten_logs(store: JobStore, *, most_bytes: int, ended_before: datetime) -> list[str]:
    """Keeps the end of logs that are too long; the ids of their jobs."""
    shortened = []
    for folder in store.folders():
        size = _size(folder.worker_log)
        if size <= most_bytes:
            continue
        with suppress(JobNotFoundError, FileNotFoundError):  # it was deleted meanwhile
            finished_at = folder.job().finished_at
            if finished_at is not None and finished_at < ended_before:
                _keep_end(folder, size - most_bytes)
                shortened.append(folder.id)
    return shortened


def _is_wanted(name: str, store: JobStore) -> bool:
    return any(folder.id == name for folder in store.unfinished())


def _touched(draft: Path) -> Iterator[float]:
    """When each of its files and folders was last changed; what goes meanwhile is left out."""
    for path in (draft, *draft.rglob("*")):
        with suppress(FileNotFoundError):
            yield path.stat().st_mtime


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _keep_end(folder: JobFolder, num_bytes: int) -> None:
    """Without the first bytes, and the rest of the line that they end in; in one step.

    The first line says how many are missing, those of earlier times too.
    """
    file = folder.worker_log
    staged = file.with_name(f".{file.name}.{os.getpid()}")
    with file.open("rb") as old, staged.open("wb") as new:
        head = old.readline(ROOM_FOR_FIRST_LINE)
        before = _FIRST_LINE.fullmatch(head)
        earlier = int(before[1].replace(b",", b"")) - len(head) if before else 0
        begin = num_bytes + ROOM_FOR_FIRST_LINE
        old.seek(begin)
        if not old.readline(LONGEST_LINE).endswith(b"\n"):  # a progress bar is one line without end
            old.seek(begin)
        new.write(f"({earlier + old.tell():,} bytes before this were removed: JOB_LOG_MAX_MB)\n".encode())
        shutil.copyfileobj(old, new)
    staged.replace(file)
    _log.info("the log of job %s is shortened by %d bytes: JOB_LOG_MAX_MB", folder.id, num_bytes)
