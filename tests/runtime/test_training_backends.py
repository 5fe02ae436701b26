"""The local backend, and one that knows no processes: whatever the supervisor needs, both keep."""

from collections.abc import Iterator

import pytest

from ml_workbench_service.contracts.runners import TrainingBackend
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.testing.training_backends import TrainingBackendConformance
from tests.runtime.conftest import local_backend
from tests.runtime.in_memory_backend import Engine, InMemoryBackend


class TestLocalBackend(TrainingBackendConformance):
    counts = {"do": "count", "steps": 100_000, "pause_s": 0.005}
    ends = {"do": "count", "steps": 3}
    ignores = {"do": "ignore"}
    dies = {"do": "persist", "steps": 9, "dies_at": [1, 2, 3]}

    def make_backend(self, store: JobStore) -> TrainingBackend:
        return local_backend(store)


class TestInMemoryBackend(TrainingBackendConformance):
    counts = {"steps": 100_000}
    ends = {"steps": 3}
    ignores = {"steps": 2, "ignores": True}
    dies = {"steps": 9, "dies": True}
    engine: Engine

    @pytest.fixture(autouse=True)
    def _engine(self) -> Iterator[None]:
        self.engine = Engine()
        yield
        self.engine.close()

    def make_backend(self, store: JobStore) -> TrainingBackend:
        return InMemoryBackend(store, self.engine)
