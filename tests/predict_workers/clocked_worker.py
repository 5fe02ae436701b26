"""A predict worker for tests: `ml_workbench_service.predict_worker` by a clock that stands where a file says."""

import os
from pathlib import Path

from ml_workbench_service.predict_worker import main
from ml_workbench_service.testing.clocks import FileClock
from tests.clocked_service import CLOCK_FILE

if __name__ == "__main__":
    main(clock=FileClock(Path(os.environ[CLOCK_FILE])))
