"""A store of jobs, and specs of jobs."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.jobs.job import JobStore


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
