"""A replica for tests: `ml_workbench_service.main` with ROLE=predict, by a clock that stands where a file says."""

import os
from pathlib import Path

from ml_workbench_service.http_server import serve
from ml_workbench_service.predict_replica import create_app
from ml_workbench_service.settings import Settings
from ml_workbench_service.testing.clocks import FileClock
from tests.clocked_service import CLOCK_FILE

if __name__ == "__main__":
    settings = Settings()
    serve(create_app(settings, clock=FileClock(Path(os.environ[CLOCK_FILE]))), settings)
