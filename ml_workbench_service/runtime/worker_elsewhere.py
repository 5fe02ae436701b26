"""Worker elsewhere: a job worker that reaches its job by HTTP alone, on whatever machine it was started.

    ML_WORKBENCH_JOB_URL=… ML_WORKBENCH_JOB_TOKEN=… python -m ml_workbench_service.runtime.job_worker

It does what every worker does; its job's folder, the registry, the multiple-testing log and the bars are the control
plane's (`ml_workbench_service.elsewhere`). Here it has a folder for the time of the attempt, and nothing afterwards.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from common_lib.exceptions import PlatformError
from common_lib.logging import configure_logging
from common_lib.tracing import end_tracing
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.elsewhere.connection import JobConnection, connected
from ml_workbench_service.elsewhere.environment import TOKEN_VARIABLE, URL_VARIABLE
from ml_workbench_service.elsewhere.job_folder import JobFolderElsewhere
from ml_workbench_service.jobs.workers_folder import AttemptLostError
from ml_workbench_service.resources import TrialEngine, open_elsewhere
from ml_workbench_service.runtime.attempt import WORKFLOWS, do_job
from ml_workbench_service.sending_traces import send_traces
from ml_workbench_service.settings import JobAddress, Settings

EXIT_USAGE = 64
EXIT_LOST = 69
EXIT_LOCKED = 75  # another worker has the job
"""sysexits.h: EX_USAGE, EX_UNAVAILABLE, EX_TEMPFAIL."""
KINDS = frozenset({JobKind.TRAIN, JobKind.EXPERIMENT, JobKind.IMPORTANCE})
"""Those that need neither the queue nor deployments, and so can be done anywhere."""

log = logging.getLogger(__name__)
OpenWorkbench = Callable[[JobConnection, Path], AbstractContextManager[Any]]


def work_elsewhere(settings: Settings, *, trial_engine: TrialEngine = "local") -> int:
    """Does the job that the environment names; the exit code.

    Args:
        trial_engine: who makes an experiment's trials.
    """
    configure_logging(level=settings.LOG_LEVEL, log_dir=None, style=settings.LOG_FORMAT)
    address = JobAddress()
    if address.ML_WORKBENCH_JOB_URL is None or address.ML_WORKBENCH_JOB_TOKEN is None:
        log.error("name a job's folder, or set %s and %s", URL_VARIABLE, TOKEN_VARIABLE)
        return EXIT_USAGE
    if settings.TRACES:
        send_traces(settings, "job worker")
    try:
        return run_elsewhere(
            address.ML_WORKBENCH_JOB_URL,
            address.ML_WORKBENCH_JOB_TOKEN.get_secret_value(),
            open_workbench=lambda connection, work: open_elsewhere(
                settings, connection, work, trial_engine=trial_engine
            ),
        )
    finally:
        end_tracing()


def run_elsewhere(
    url: str, token: str, *, open_workbench: OpenWorkbench, workflows: Mapping[JobKind, str] = WORKFLOWS
) -> int:
    """One attempt at the job of this address; must run in the main thread of its process.

    Args:
        open_workbench: opens the outside things, by the connection and a folder of this machine.
        workflows: the module of each kind.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="ml-workbench-job-") as folder, connected(url, token) as connection:
            os.environ[TOKEN_VARIABLE] = connection.token  # children of this process open the same by it
            return _attempt(connection, Path(folder), open_workbench, workflows)
    except AttemptLostError as error:
        log.error("this worker ends without a last word: %s", error.message)
        return EXIT_LOST
    except PlatformError as error:
        log.error("the job could not be begun: %s", error.message)
        return EXIT_LOCKED if error.status in (404, 409) else EXIT_USAGE


def _attempt(
    connection: JobConnection, work: Path, open_workbench: OpenWorkbench, workflows: Mapping[JobKind, str]
) -> int:
    folder = JobFolderElsewhere(connection, work)
    if folder.job().status.is_final:
        return 0
    with folder.at_work():
        return do_job(
            folder, open_workbench=lambda: open_workbench(connection, work), workflows=workflows, leave=folder.leave
        )
