"""The service's places on this machine: folders, the lock on its state, the model registry."""

import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from common_lib.exceptions import PlatformError
from ml_workbench_service.cli.checks.finding import Finding
from ml_workbench_service.learning.bundle.signatures import Signatures
from ml_workbench_service.resources import open_history, open_registry
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.restore_state import RESTORING

FEW_GB, TOO_FEW_GB = 5.0, 0.5
"""Free disk: an experiment's MLflow artefacts and checkpoints take some GB; below the lower one a training may fail."""


def folders(settings: Settings) -> list[Finding]:
    """Whether each can be written, and what is free there."""
    is_bucket = settings.registry_address is not None
    places = {
        "STATE_DIR": settings.STATE_DIR.resolve(),
        "REGISTRY_CACHE_DIR" if is_bucket else "MODEL_REGISTRY_PATH": settings.registry_folder,
        "LOG_DIR": settings.LOG_DIR.resolve(),
    }
    return [_folder(name, path) for name, path in places.items()]


def state_lock(settings: Settings) -> list[Finding]:
    """Whether a service works in STATE_DIR, and whether a restore was cut off there."""
    state_dir = settings.STATE_DIR.resolve()
    lock = state_dir / "service.lock"
    if (state_dir / RESTORING).exists():
        step = "remove everything in it and in MODEL_REGISTRY_PATH, then restore again"
        return [Finding("state", "broken", f"a restore was interrupted in {state_dir}", step)]
    if not lock.exists():
        return [Finding("state", "ok", f"no service has worked in {state_dir} yet")]
    if not os.access(lock, os.W_OK):
        step = "run the service as who owns the folder, or name another STATE_DIR"
        return [Finding("state", "broken", f"{lock} belongs to somebody else", step)]
    try:
        with FileLock(lock, timeout=0):
            return [Finding("state", "ok", f"no service works in {state_dir} now; what it left there goes on")]
    except Timeout:
        return [Finding("state", "ok", f"a service works in {state_dir}")]


def registry(settings: Settings) -> list[Finding]:
    """Whether every published version can be read, and is what was published."""
    folder = settings.registry_address or settings.registry_folder
    if isinstance(folder, Path) and not folder.is_dir():
        return [Finding("model registry", "ok", f"{folder} will be made with the first model")]
    try:
        history = open_history(settings)
    except PlatformError as error:
        return [Finding("model registry", "broken", error.message)]
    found = open_registry(settings, history)
    if not Signatures(settings.STATE_DIR.resolve()).trusted.is_there:
        return [Finding("model registry", "ok", f"the service's first start will sign what it finds in {folder}")]
    num, faults = 0, []
    for model_id in found.model_ids():
        for version in found.versions(model_id):
            num += 1
            try:
                found.verify(model_id, version)
            except (PlatformError, OSError) as error:
                faults.append(getattr(error, "message", str(error)))
    if faults:
        return [Finding("model registry", "broken", "; ".join(faults), "the others go on")]
    return [Finding("model registry", "ok", f"{num} versions in {folder}, each as it was published and signed")]


def _folder(name: str, path: Path) -> Finding:
    nearest = next(each for each in (path, *path.parents) if each.exists())
    free_gb = shutil.disk_usage(nearest).free / 1e9
    text = f"{path}{'' if path.exists() else ' (will be made)'}, {free_gb:.1f} GB free"
    if not nearest.is_dir():
        return Finding(name, "broken", f"{nearest} is a file", f"name a folder: {name}=…")
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Finding(name, "broken", f"{text}; it cannot be written", f"change its owner, or set {name}")
    if free_gb < TOO_FEW_GB:
        return Finding(name, "broken", text, f"make room, or set {name} to another disk")
    return Finding(name, "ok" if free_gb >= FEW_GB else "doubtful", text, "" if free_gb >= FEW_GB else "make room soon")
