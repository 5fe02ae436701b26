"""A store of jobs, their specs, and a backend whose workers run the tests' own small workflows."""

import itertools
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.jobs.backends import LocalBackend
from ml_workbench_service.jobs.job import JobStore

HERE = Path(__file__).parent
WORKER = (sys.executable, str(HERE / "worker_for_tests.py"))


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    """No jobs yet."""
    return JobStore(tmp_path / "jobs")


@pytest.fixture
def make_spec() -> Callable[..., JobSpec]:
    """Specs one second apart: `make_spec(do="count", steps=3)`."""
    numbers = itertools.count(1)

    def make(kind: JobKind = JobKind.TRAIN, **request: Any) -> JobSpec:
        number = next(numbers)
        return JobSpec(
            id=f"job-{number:04d}",
            kind=kind,
            request=request,
            created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) + timedelta(seconds=number),
            correlation_id=f"corr-{number}",
        )

    return make


@pytest.fixture
def make_backend(store: JobStore) -> Callable[[], LocalBackend]:
    """A backend as a freshly started service would make it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    return lambda: LocalBackend(store, environment=environment, command=WORKER, num_threads=2)
