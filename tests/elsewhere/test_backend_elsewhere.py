"""Training backends' conformance over workers that reach their jobs by HTTP alone."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_workbench_service.contracts.runners import TrainingBackend
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.testing.training_backends import TrainingBackendConformance
from tests.elsewhere.control_plane import ControlPlane
from tests.elsewhere.elsewhere_backend import ElsewhereBackend

HERE = Path(__file__).parent


@pytest.mark.more
class TestWorkersElsewhere(TrainingBackendConformance):
    counts = {"do": "count", "steps": 100_000, "pause_s": 0.005}
    ends = {"do": "count", "steps": 3}
    ignores = {"do": "ignore"}
    dies = {"do": "persist", "steps": 9, "dies_at": [1, 2, 3]}
    control: ControlPlane

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[JobStore]:
        store = JobStore(tmp_path / "jobs")
        (tmp_path / "elsewhere").mkdir()
        with ControlPlane(store) as self.control:
            yield store
            backend = self.make_backend(store)
            for handle in backend.recover():
                backend.kill(handle)
                self.wait_for_end(backend, handle)

    def make_backend(self, store: JobStore) -> TrainingBackend:
        paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "runtime")])
        return ElsewhereBackend(
            store, control_url=self.control.url, command=(sys.executable, str(HERE / "worker_for_tests.py")),
            environment={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(store.root.parent / "elsewhere")},
            num_threads=2,
        )  # fmt: skip
