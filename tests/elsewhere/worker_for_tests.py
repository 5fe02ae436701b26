"""A real worker over HTTP, over the tests' own workflows."""

import contextlib
import os
import sys

from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.elsewhere.environment import TOKEN_VARIABLE, URL_VARIABLE
from ml_workbench_service.runtime.worker_elsewhere import run_elsewhere

sys.exit(
    run_elsewhere(
        os.environ[URL_VARIABLE],
        os.environ[TOKEN_VARIABLE],
        open_workbench=lambda connection, work: contextlib.nullcontext("the workbench"),
        workflows={JobKind.TRAIN: "workflows_for_tests"},
    )
)
