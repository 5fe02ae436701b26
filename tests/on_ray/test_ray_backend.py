"""A real cluster keeps what the supervisor relies on; its workers reach their jobs over HTTP alone."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_workbench_service.contracts.runners import TrainingBackend
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.runtime.on_ray import submissions
from ml_workbench_service.runtime.on_ray.backend import RayBackend, RayWorkers
from ml_workbench_service.testing.training_backends import TrainingBackendConformance
from tests.elsewhere.control_plane import ControlPlane
from tests.on_ray.ray_cluster import RayCluster
from tests.runtime.conftest import HERE

pytestmark = pytest.mark.more
WORKER = HERE.parent / "elsewhere" / "worker_for_tests.py"


class TestRayBackend(TrainingBackendConformance):
    counts = {"do": "count", "steps": 100_000, "pause_s": 0.005}
    ends = {"do": "count", "steps": 3}
    ignores = {"do": "ignore"}
    dies = {"do": "persist", "steps": 9, "dies_at": [1, 2, 3]}
    patience_s = 120.0

    @pytest.fixture
    def store(self, tmp_path: Path, cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobStore]:
        monkeypatch.setattr(submissions, "ROOM_PATIENCE_S", self.patience_s)  # however busy the machine is
        self.cluster, self.backends = cluster, list[RayBackend]()
        store = JobStore(tmp_path / "jobs")
        with ControlPlane(store) as self.control:
            yield store
            last = self.make_backend(store)
            for handle in last.recover():
                last.kill(handle)
                self.wait_for_end(last, handle)
            for each in self.backends:
                each.close()

    def make_backend(self, store: JobStore) -> TrainingBackend:
        environment = {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
        workers = RayWorkers(self.control.url, sys.executable, environment, module=(str(WORKER),))
        self.backends.append(RayBackend(store, self.cluster.jobs(), workers, poll_s=0.2))
        return self.backends[-1]
