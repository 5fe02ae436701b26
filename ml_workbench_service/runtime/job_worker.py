"""Job worker: one process that does one job and says everything it does in the job's event log.

    python -m ml_workbench_service.runtime.job_worker <job folder>
    python -m ml_workbench_service.runtime.job_worker                 elsewhere: see `runtime.worker_elsewhere`

It holds a lock on its folder (two workers of one job cannot be), says who it is in worker.json, beats every second,
and ends its log with `succeeded`, `failed` or `cancelled`. SIGTERM counts as a cancellation at the next report.
One that dies without such an end may be followed by another, which finds the workflow's checkpoint in the folder.
"""

import faulthandler
import fcntl
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from common_lib.logging import configure_logging
from common_lib.tracing import end_tracing
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.jobs.bounded_log import bounded
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.runtime.attempt import WORKFLOWS, do_job
from ml_workbench_service.runtime.worker_elsewhere import EXIT_LOCKED, work_elsewhere
from ml_workbench_service.sending_traces import send_traces
from ml_workbench_service.settings import Settings

log = logging.getLogger(__name__)


def run_worker(
    path: Path,
    *,
    open_workbench: Callable[[], AbstractContextManager[Any]],
    log_bytes: int,
    workflows: Mapping[JobKind, str] = WORKFLOWS,
) -> int:
    """Does the job in that folder and returns the exit code; must run in the main thread of its process.

    Args:
        open_workbench: opens the outside things, for the time of the work.
        log_bytes: that stay of what it prints, whatever the job prints.
        workflows: the module of each kind; only the one that is needed is imported.
    """
    folder = JobFolder(path)
    with _alone(path) as is_alone:
        if not is_alone:
            log.warning("job %s has a worker already; this one leaves", folder.id)
            return EXIT_LOCKED
        if folder.job().status.is_final:
            return 0
        with bounded(folder.worker_log, most_bytes=log_bytes):
            return do_job(folder, open_workbench=open_workbench, workflows=workflows)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether this process is the only worker of the folder; the kernel frees the lock with the process."""
    with (path / "lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def main() -> int:
    """Reads the settings, sets up logging and does the job named by the first argument, or by the environment."""
    from ml_workbench_service.resources import open_for_worker

    faulthandler.enable()
    settings = Settings()
    if len(sys.argv) == 1:
        return work_elsewhere(settings)
    configure_logging(level=settings.LOG_LEVEL, log_dir=settings.LOG_DIR, style=settings.LOG_FORMAT)
    if settings.TRACES:
        send_traces(settings, "job worker")
    try:
        return run_worker(
            Path(sys.argv[1]), open_workbench=lambda: open_for_worker(settings), log_bytes=settings.job_log_bytes
        )
    finally:
        end_tracing()


if __name__ == "__main__":
    sys.exit(main())
