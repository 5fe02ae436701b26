"""A real worker process over the tests' own workflows: `python worker_for_tests.py <job folder>`."""

import contextlib
import sys
from pathlib import Path

from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.runtime.job_worker import run_worker

sys.exit(
    run_worker(
        Path(sys.argv[1]),
        open_workbench=lambda: contextlib.nullcontext("the workbench"),
        log_bytes=200_000,
        workflows={JobKind.TRAIN: "workflows_for_tests", JobKind.REPLAY: "workflows_for_tests"},
    )
)
