"""Retention of jobs: those that ended long ago are deleted, but for what a version's lineage or MLflow still needs.

kept    a job that has not ended, or ended less than JOB_RETENTION_DAYS ago and has room below JOBS_MAX_GB
        the job of a version that is in the registry, archived ones too: its card, its curves and its experiment
        are read from there; once the version is purged it may go
        the newest importance of such a version, which its figure is drawn from
        a training or an experiment that the tracking server has not been sent yet

Each removal has its two lines in the audit log, as one that somebody asked for has.
"""

import logging
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from common_lib.exceptions import PlatformError
from common_lib.storage import check_there
from ml_workbench_service.access.audit_log import AuditLog, Who
from ml_workbench_service.contracts.jobs import JobKind, JobStatus
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.bounded_log import num_kept_bytes
from ml_workbench_service.jobs.job import TRACKED_KINDS, JobFolder, JobStore

DELETED = "job deleted by"

_log = logging.getLogger(__name__)


def delete_old_jobs(
    store: JobStore,
    registry: FolderModelRegistry,
    *,
    audit: AuditLog,
    retention: timedelta | None,
    most_bytes: float | None = None,
    now: datetime,
) -> list[str]:
    """Deletes what may go; the ids of the deleted jobs.

    Args:
        retention: how long jobs stay after their end; None: for ever.
        most_bytes: of all job folders together, beyond which those that ended first go; None: however many.
        now: the time of day.

    Raises:
        FolderGoneError: the registry is away, so that nobody knows what is needed.
    """
    if retention is None and most_bytes is None:
        return []
    check_there(registry.root)
    every = list(_ended(store))
    drawn = _newest_importance(every)
    ended = [each for each in every if not _is_needed(each.folder, registry, drawn)]
    deleted = []
    if retention is not None:
        old = [each for each in ended if each.finished_at < now - retention]
        deleted = [each.folder.id for each in old if _delete(store, each.folder, audit, why="JOB_RETENTION_DAYS")]
    if most_bytes is not None:
        deleted += _delete_beyond(most_bytes, store, [each for each in ended if each.folder.id not in deleted], audit)
    if deleted:
        _log.info("deleted %d jobs that had ended", len(deleted))
    return deleted


class _Ended(NamedTuple):
    finished_at: datetime
    status: JobStatus
    folder: JobFolder


def _delete_beyond(most_bytes: float, store: JobStore, ended: list[_Ended], audit: AuditLog) -> list[str]:
    sizes = {folder.id: _size(folder.path) for folder in store.folders()}
    total, deleted = sum(sizes.values()), []
    for each in sorted(ended, key=lambda one: one.finished_at):
        if total <= most_bytes:
            break
        if _delete(store, each.folder, audit, why="JOBS_MAX_GB"):
            total -= sizes.get(each.folder.id, 0)
            deleted.append(each.folder.id)
    if total > most_bytes:
        _log.warning("the jobs that are still needed take %.2f GB, more than JOBS_MAX_GB", total / 1e9)
    return deleted


def _delete(store: JobStore, folder: JobFolder, audit: AuditLog, *, why: str) -> bool:
    """Whether it is gone."""
    try:
        job = folder.job()
        before = {"kind": job.kind, "status": job.status, "finished_at": job.finished_at, "result": job.result}
        with audit.change(f"{DELETED} {why}", Who("service"), on=folder.id, before=before) as change:
            change.after = store.delete(folder.id).model_dump(mode="json")
    except PlatformError as error:  # a full disk, say; the next turn tries again
        _log.warning("job %s stays: %s", folder.id, error.message)
        return False
    _log.info("job %s is deleted by %s", folder.id, why)
    return True


def _ended(store: JobStore) -> Iterator[_Ended]:
    """In the store's order, by which the figure knows the newest too."""
    for folder in list(store.folders()):
        try:
            job = folder.job()
        except PlatformError:  # gone since it was listed
            continue
        if job.finished_at is not None:
            yield _Ended(job.finished_at, job.status, folder)


def _size(path: Path) -> int:
    """Bytes of the files below; what goes meanwhile is left out."""
    total = 0
    for each in path.rglob("*"):
        with suppress(FileNotFoundError):
            total += num_kept_bytes(each.stat())
    return total


def _newest_importance(ended: Iterable[_Ended]) -> set[str]:
    """The jobs of which a version's figure is drawn: the newest that succeeded of each version, of the oldest first."""
    newest: dict[tuple[object, object], str] = {}
    for each in ended:
        if each.folder.spec.kind is JobKind.IMPORTANCE and each.status is JobStatus.SUCCEEDED:
            newest[_version_of(each.folder)] = each.folder.id
    return set(newest.values())


def _version_of(folder: JobFolder) -> tuple[object, object]:
    asked = folder.spec.request if folder.spec.kind is JobKind.IMPORTANCE else folder.spec.plan
    return asked.get("model_id"), asked.get("version")


def _is_needed(folder: JobFolder, registry: FolderModelRegistry, drawn: Set[str]) -> bool:
    model_id, version = _version_of(folder)
    if folder.spec.kind not in TRACKED_KINDS and folder.id not in drawn:
        return False
    has_version = isinstance(model_id, str) and version in registry.versions(model_id)
    return has_version or (folder.spec.kind in TRACKED_KINDS and folder.tracking().status == "pending")
