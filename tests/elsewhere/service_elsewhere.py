"""The service for tests, whose workers reach it by HTTP alone; to be started with `python -m`."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_workbench_service import app
from ml_workbench_service.http_server import serve
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.runtime import engine
from ml_workbench_service.runtime.training_backends import WORKER_COMMAND
from ml_workbench_service.settings import Settings
from ml_workbench_service.testing.clocks import FileClock
from tests.clocked_service import CLOCK_FILE
from tests.elsewhere.elsewhere_backend import ElsewhereBackend


def main() -> None:
    settings = Settings()

    def backend(store: JobStore, *, environment: Mapping[str, str], warm_log: Path | None) -> Any:
        more = {**environment, "TMPDIR": tempfile.gettempdir()}
        url = f"http://127.0.0.1:{settings.PORT}"
        return ElsewhereBackend(store, control_url=url, command=WORKER_COMMAND, environment=more)

    engine.LocalBackend = backend  # type: ignore[assignment, misc]
    clock = FileClock(Path(os.environ[CLOCK_FILE]))
    serve(app.create_app(settings, clock=clock), settings)


if __name__ == "__main__":
    main()
