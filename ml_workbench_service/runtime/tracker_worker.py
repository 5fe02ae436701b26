"""Tracker process: keeps MLflow up to date with the job folders, and ends when there is nothing to do.

    python -m ml_workbench_service.runtime.tracker_worker

It is started on demand and belongs to the service; the environment names everything, EXPERIMENT_TRACKING_URI included
(`disabled` is a value too). Exit code 0: idle, or asked to stop.
"""

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from common_lib.logging import configure_logging
from common_lib.storage import keep_as_child
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.experiment_tracker.tracker import ExperimentTracker, keep_artifacts_at
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.resources import open_history, open_registry
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.draw_figures import by_column, write_figures
from ml_workbench_service.workflows.mirror_to_mlflow import Projection, disable, mirror_to_mlflow
from ml_workbench_service.workflows.read_curves import read_curves

DISABLED = "disabled"
NICENESS = 10  # a training beside us on the same cores goes first

log = logging.getLogger(__name__)


def run_tracker(settings: Settings, *, stopping: threading.Event, idle_s: float = 5.0) -> None:
    """Tracks until idle or stopped."""
    state_dir = settings.STATE_DIR.resolve()
    store = JobStore(state_dir / "jobs")
    uri = settings.EXPERIMENT_TRACKING_URI or DISABLED
    if uri == DISABLED:
        disable(store)
        return
    history = open_history(settings)
    parent = os.getppid()
    projection = Projection(
        store,
        lambda: open_tracker(uri, state_dir),
        registry=open_registry(settings, history),
        live_version=history.live_version,
        champions=state_dir / "champions.json",
        draw_figures=draw_figures,
    )
    mirror_to_mlflow(projection, stopping=stopping, idle_s=idle_s, is_orphan=lambda: os.getppid() != parent)


def draw_figures(folder: JobFolder, card: ModelCard, bundle: Path, target: Path) -> None:
    """What MLflow shows of a version beside its bundle: the report, and each figure's JSON."""
    job = folder.job()
    is_search = folder.spec.kind is JobKind.EXPERIMENT
    curves = {} if is_search else by_column(read_curves(folder).rows)
    importance = dict((job.result or {}).get("importance", {})) if is_search else {}
    write_figures(target, card, bundle, curves=curves, importance=importance)


def open_tracker(uri: str, state_dir: Path) -> ExperimentTracker:
    """A server knows where artifacts go; a store without a server keeps them in the state folder, where that is now."""
    if uri.startswith(("http://", "https://", "databricks")):
        return ExperimentTracker(uri)
    artifacts = state_dir / "mlartifacts"
    database = state_dir / "mlflow.db"
    if Path(uri.removeprefix("sqlite:///")).resolve() == database.resolve():
        keep_artifacts_at(database, artifacts)
    return ExperimentTracker(uri, artifacts=artifacts)


def main() -> int:
    """Reads the settings, sets up logging and tracks; SIGTERM ends it after the call at hand."""
    settings = Settings()
    configure_logging(level=settings.LOG_LEVEL, log_dir=settings.LOG_DIR, style=settings.LOG_FORMAT)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.nice(NICENESS)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    keep_as_child(settings.STATE_DIR.resolve())
    log.info("tracker starts")
    run_tracker(settings, stopping=stopping)
    log.info("tracker ends")
    return 0


if __name__ == "__main__":
    sys.exit(main())
