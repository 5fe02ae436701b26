"""A real cluster keeps what the supervisor relies on."""

import os
import sys
from collections.abc import Iterator

import pytest

from ml_workbench_service.contracts.runners import TrainingBackend
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.runtime.on_ray.backend import RayBackend, RayWorkers
from ml_workbench_service.testing.training_backends import TrainingBackendConformance
from tests.ray_cluster import RayCluster
from tests.runtime.conftest import HERE

pytestmark = pytest.mark.more


class TestRayBackend(TrainingBackendConformance):
    counts = {"do": "count", "steps": 100_000, "pause_s": 0.005}
    ends = {"do": "count", "steps": 3}
    ignores = {"do": "ignore"}
    dies = {"do": "persist", "steps": 9, "dies_at": [1, 2, 3]}
    patience_s = 120.0

    @pytest.fixture(autouse=True)
    def _on_cluster(self, cluster: RayCluster) -> Iterator[None]:
        self.cluster, self.backends = cluster, list[RayBackend]()
        yield
        for each in self.backends:
            each.close()

    def make_backend(self, store: JobStore) -> TrainingBackend:
        environment = {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
        workers = RayWorkers(sys.executable, environment, module=(str(HERE / "worker_for_tests.py"),))
        self.backends.append(RayBackend(store, self.cluster.jobs(), workers, poll_s=0.2))
        return self.backends[-1]
