"""The service's entry point for tests: `ml_workbench_service.main` by a clock that stands where a file says."""

import os
from pathlib import Path

from ml_workbench_service.app import create_app
from ml_workbench_service.http_server import serve
from ml_workbench_service.settings import Settings
from ml_workbench_service.testing.clocks import FileClock

CLOCK_FILE = "CLOCK_FILE_OF_TESTS"

if __name__ == "__main__":
    settings = Settings()
    clock = FileClock(Path(os.environ[CLOCK_FILE]))
    serve(create_app(settings, clock=clock, predict_worker="tests.predict_workers.clocked_worker"), settings)
