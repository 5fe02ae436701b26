"""Restore: a verified backup into an empty STATE_DIR and an empty model registry.

    verify the archive → write everything into `.restoring` in both places → say so in the audit log that came along →
    rename it into place → remove `.restoring`

A service refuses to start while there is a `.restoring` in its STATE_DIR: a restore that was killed leaves no half of a
state that looks whole. So the line of the audit log needs no second one: it comes with the state, or neither does.
"""

import os
import shutil
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from common_lib.exceptions import ConflictError, UnavailableError
from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog, Who
from ml_workbench_service.integrations.backup_archive import BackupManifest, extract, verified
from ml_workbench_service.integrations.experiment_tracker.tracker import move_artifacts
from ml_workbench_service.jobs.durable_files import sync_folder

RESTORING = ".restoring"
RESTORED = "state restored from a backup"
BY_COMMAND = Who("command_line")
LOCK_TIMEOUT_S = 15.0


def own_state(state_dir: Path) -> FileLock:
    """The lock of the one service that works in STATE_DIR, taken; the folder is made where it is missing.

    Raises:
        UnavailableError: another service works in it, or a restore was interrupted there.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state_dir / "service.lock", thread_local=False)
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout as error:
        raise UnavailableError(
            f"another service works in {state_dir}; stop it, or give this one a STATE_DIR of its own"
        ) from error
    if (state_dir / RESTORING).exists():
        lock.release()
        raise UnavailableError(
            f"a restore was interrupted in {state_dir}: remove everything in it and in MODEL_REGISTRY_PATH, then "
            "restore again"
        )
    return lock


def restore(archive: Path, state_dir: Path, registry: Path, *, who: Who = BY_COMMAND) -> BackupManifest:
    """Brings a service's state and models back, and returns what the archive holds.

    Args:
        archive: as `back_up` wrote it.
        state_dir, registry: where nothing is yet; made where they are missing.
        who: for the audit log.

    Raises:
        ConflictError: a place is not empty, or a process still works in it.
        DataValidationError: the archive is damaged, or no backup.
        UnavailableError: a newer version of the service made it, or the disk is full.
    """
    manifest = verified(archive)
    state_dir, registry = state_dir.resolve(), registry.resolve()
    _check_free(state_dir)
    _check_empty(state_dir, whose="STATE_DIR")
    _check_empty(registry, whose="MODEL_REGISTRY_PATH")
    places = {"registry": registry, "state": state_dir}
    staged = {name: place / RESTORING for name, place in places.items()}
    moved: list[Path] = []
    try:
        for folder in staged.values():
            folder.mkdir(parents=True)
        extract(archive, staged)
        _move_artifacts(staged["state"], manifest, state_dir)
        _note(staged["state"], archive, manifest, who)
        for name, place in places.items():
            for each in sorted(staged[name].iterdir()):
                moved.append(each.rename(place / each.name))
            sync_folder(place)
        for folder in staged.values():
            folder.rmdir()
    except BaseException:
        for each in (*moved, *staged.values()):
            shutil.rmtree(each, ignore_errors=True) if each.is_dir() else each.unlink(missing_ok=True)
        raise
    return manifest


def _note(staged: Path, archive: Path, manifest: BackupManifest, who: Who) -> None:
    """`before` is the last entry that came along: what the former service did after it is not in this log."""
    audit = AuditLog(staged / AUDIT_FILE)
    about = manifest.model_dump(mode="json", include={"created_at", "service_version", "queue", "damaged"})
    about |= {"num_files": len(manifest.files), "size_bytes": sum(each.size for each in manifest.files)}
    before = audit.head().model_dump(mode="json")
    audit.append("noted", RESTORED, who, on=archive.name, before=before, after=about)
    audit.lock_file.unlink(missing_ok=True)  # nobody else knows of this place yet


def _check_empty(place: Path, *, whose: str) -> None:
    """A registry may hold files, such as its README, and no models; STATE_DIR nothing but hidden files."""
    if (place / RESTORING).exists():
        raise ConflictError(
            f"an earlier restore was interrupted in {place}; remove everything in it, then restore again"
        )
    there = sorted(place.iterdir()) if place.is_dir() else []
    found = [each.name for each in there if each.name[0] != "." and (whose == "STATE_DIR" or each.is_dir())]
    if found:
        raise ConflictError(
            f"{place} ({whose}) is not empty: it has {', '.join(found[:3])}; move it away, or name another place"
        )


def _check_free(state_dir: Path) -> None:
    """Trainings outlive their service: one that still works here would write into the restored job."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if process.pid != os.getpid() and any(word.startswith(f"{state_dir}/") for word in words):
            raise ConflictError(
                f"process {process.pid} still works in {state_dir}: a training outlives its service; end it, then "
                "restore"
            )


def _move_artifacts(staged: Path, manifest: BackupManifest, state_dir: Path) -> None:
    database = staged / "mlflow.db"
    before, after = (f"{place.as_uri()}/mlartifacts" for place in (Path(manifest.state_dir), state_dir))
    if database.exists() and before != after:
        move_artifacts(database, before, after)
