"""A worker's view of its job, on the service's disk and over HTTP: whatever one keeps, the other does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ml_workbench_service.elsewhere.connection import connected
from ml_workbench_service.elsewhere.environment import TOKEN_VARIABLE, URL_VARIABLE, attempt_environment
from ml_workbench_service.elsewhere.job_folder import JobFolderElsewhere
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.jobs.workers_folder import WorkersFolder
from ml_workbench_service.testing.job_folders import WorkersFolderConformance
from tests.elsewhere.control_plane import ControlPlane


class TestJobFolder(WorkersFolderConformance):
    @contextmanager
    def open_folder(self, folder: JobFolder) -> Iterator[WorkersFolder]:
        yield folder

    def leave(self, opened: WorkersFolder) -> None:
        """It is left as it is written."""


class TestJobFolderElsewhere(WorkersFolderConformance):
    @pytest.fixture(autouse=True)
    def _serve(self, store: JobStore, tmp_path: Path) -> Iterator[None]:
        self.numbers = iter(range(100))
        self.tmp_path = tmp_path
        with ControlPlane(store) as self.control:
            yield

    @contextmanager
    def open_folder(self, folder: JobFolder) -> Iterator[WorkersFolder]:
        given = attempt_environment(folder, control_url=self.control.url)
        work = self.tmp_path / f"work{next(self.numbers)}"
        with connected(given[URL_VARIABLE], given[TOKEN_VARIABLE]) as connection:
            opened = JobFolderElsewhere(connection, work)
            with opened.at_work():
                yield opened

    def leave(self, opened: WorkersFolder) -> None:
        assert isinstance(opened, JobFolderElsewhere)
        opened.leave()
