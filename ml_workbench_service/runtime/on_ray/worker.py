"""Job worker on a Ray cluster: a worker elsewhere, whose experiments make their trials as Ray tasks.

    ML_WORKBENCH_JOB_URL=… ML_WORKBENCH_JOB_TOKEN=… python -m ml_workbench_service.runtime.on_ray.worker

Ray stops a worker with SIGINT, which ends it at once and without a last word (`backend`); Ray's own processes ignore
that signal, and what they start would too.
"""

import faulthandler
import signal
import sys

from ml_workbench_service.runtime.worker_elsewhere import work_elsewhere
from ml_workbench_service.settings import Settings


def main() -> int:
    """Does the job that the environment names."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    faulthandler.enable()
    return work_elsewhere(Settings(), trial_engine="ray")


if __name__ == "__main__":
    sys.exit(main())
