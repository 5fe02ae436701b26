"""A backend whose workers run the tests' own small workflows, and lives of the service over it."""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ml_workbench_service.contracts.jobs import Job, JobStatus
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.runtime.job_supervisor import JobSupervisor, Limits
from ml_workbench_service.runtime.training_backends import LocalBackend
from tests.jobs.conftest import make_spec as make_spec
from tests.jobs.conftest import store as store

HERE = Path(__file__).parent
WORKER = (sys.executable, str(HERE / "worker_for_tests.py"))


def local_backend(store: JobStore) -> LocalBackend:
    """A backend as a freshly started service would make it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    return LocalBackend(store, environment=environment, command=WORKER, num_threads=2)


@pytest.fixture
def make_backend(store: JobStore) -> Callable[[], LocalBackend]:
    return lambda: local_backend(store)


class Service:
    """One life of the service: a supervisor with its hooks' records."""

    def __init__(self, store: JobStore, backend: LocalBackend, **limits: Any) -> None:
        self.finished: list[Job] = []
        self.activity: list[tuple[str, JobStatus]] = []
        defaults: dict[str, Any] = {"max_workers": 1, "max_memory_gb": 16, "grace_s": 1.0, "poll_s": 0.02}
        self.supervisor = JobSupervisor(
            store,
            backend,
            Limits(**{**defaults, **limits}),
            on_finished=self.finished.append,
            on_activity=lambda job: self.activity.append((job.id, job.status)),
        )


@pytest.fixture
def serve(store: JobStore, make_backend: Callable[[], LocalBackend]) -> Callable[..., Any]:
    @asynccontextmanager
    async def start(**limits: Any) -> AsyncIterator[Service]:
        service = Service(store, make_backend(), **limits)
        await service.supervisor.start()
        try:
            yield service
        finally:
            await service.supervisor.stop()

    return start
