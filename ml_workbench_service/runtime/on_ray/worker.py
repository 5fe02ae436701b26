"""Job worker on a Ray cluster: the same job worker, whose experiments make their trials as Ray tasks.

    python -m ml_workbench_service.runtime.on_ray.worker <job folder>

Ray stops a worker with SIGINT, which ends it at once and without a last word (`backend`); Ray's own processes
ignore that signal, and what they start would too.
"""

import signal
import sys

from ml_workbench_service.runtime import job_worker


def main() -> int:
    """Does the job named by the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return job_worker.main(trial_engine="ray")


if __name__ == "__main__":
    sys.exit(main())
