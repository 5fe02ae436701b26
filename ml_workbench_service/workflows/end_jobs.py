"""Retention of jobs: those that ended long ago are deleted, but for what a version's lineage or MLflow still needs.

kept    a job that has not ended, or ended less than JOB_RETENTION_DAYS ago
        the job of a version that is in the registry, archived ones too: its card, its curves and its experiment
        are read from there; once the version is purged it may go
        a training or an experiment that the tracking server has not been sent yet
"""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from common_lib.exceptions import PlatformError
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.job import TRACKED_KINDS, JobFolder, JobStore

_log = logging.getLogger(__name__)


def delete_old_jobs(
    store: JobStore, registry: FolderModelRegistry, *, retention: timedelta, now: datetime
) -> list[str]:
    """Deletes what may go; the ids of the deleted jobs."""
    deleted = []
    for folder in list(_old(store, now - retention)):
        if not _is_needed(folder, registry):
            try:
                store.delete(folder.id)
            except PlatformError as error:  # a full disk, say; the next turn tries again
                _log.warning("job %s stays: %s", folder.id, error.message)
                continue
            deleted.append(folder.id)
    if deleted:
        _log.info("deleted %d jobs that ended more than %s ago", len(deleted), retention)
    return deleted


def _old(store: JobStore, before: datetime) -> Iterator[JobFolder]:
    for folder in store.folders():
        try:
            finished_at = folder.job().finished_at
        except PlatformError:  # gone since it was listed
            continue
        if finished_at is not None and finished_at < before:
            yield folder


def _is_needed(folder: JobFolder, registry: FolderModelRegistry) -> bool:
    plan = folder.spec.plan
    model_id, version = plan.get("model_id"), plan.get("version")
    if folder.spec.kind not in TRACKED_KINDS:
        return False
    has_version = isinstance(model_id, str) and version in registry.versions(model_id)
    return has_version or folder.tracking().status == "pending"
