"""Jobs that can be done anywhere go to the cluster, the rest stays; the supervisor sees one backend."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.runners import TrainingBackend
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.runtime.backends_by_kind import BackendsByKind
from ml_workbench_service.testing.training_backends import TrainingBackendConformance
from tests.runtime.in_memory_backend import Engine, InMemoryBackend


@pytest.fixture
def engines() -> Iterator[tuple[Engine, Engine]]:
    found = Engine(), Engine()
    yield found
    for each in found:
        each.close()


class TestBackendsByKind(TrainingBackendConformance):
    counts = {"steps": 100_000}
    ends = {"steps": 3}
    ignores = {"steps": 2, "ignores": True}
    dies = {"steps": 9, "dies": True}

    @pytest.fixture(autouse=True)
    def _engines(self, engines: tuple[Engine, Engine]) -> None:
        self.engines = engines

    def make_backend(self, store: JobStore) -> TrainingBackend:
        cluster, local = (InMemoryBackend(store, each) for each in self.engines)
        return BackendsByKind(store, cluster=cluster, local=local, kinds={JobKind.TRAIN})


def test_each_kind_has_its_place(engines: tuple[Engine, Engine], store: JobStore) -> None:
    cluster, local = engines
    backend = BackendsByKind(
        store, cluster=InMemoryBackend(store, cluster), local=InMemoryBackend(store, local), kinds={JobKind.TRAIN}
    )
    handles = []
    for number, kind in enumerate((JobKind.TRAIN, JobKind.REPLAY)):
        spec = JobSpec(
            id=f"job-{number}", kind=kind, request={"steps": 100_000}, created_at=datetime(2026, 1, 2, tzinfo=UTC),
            correlation_id="c",
        )  # fmt: skip
        store.create(spec)
        handles.append(backend.submit(spec))
    assert [list(each.living().values()) for each in engines] == [["job-0"], ["job-1"]]
    assert sorted(backend.recover(), key=lambda each: each.job_id) == handles
    backend.kill(handles[1])
    assert [backend.poll(each).is_alive for each in handles] == [True, False]


@pytest.mark.parametrize("is_granted", [False, True])
def test_a_worker_of_this_machine_at_a_job_of_the_cluster_is_ended(
    engines: tuple[Engine, Engine], store: JobStore, is_granted: bool
) -> None:
    """As after a change of TRAINING_BACKEND; a granted one is the cluster's own, on this same host."""
    cluster, local = (InMemoryBackend(store, each) for each in engines)
    spec = JobSpec(
        id="job", kind=JobKind.TRAIN, request={"steps": 100_000}, created_at=datetime(2026, 1, 2, tzinfo=UTC),
        correlation_id="c",
    )  # fmt: skip
    folder = store.create(spec)
    local.submit(spec)
    if is_granted:
        folder.grant.issue(1)
    assert BackendsByKind(store, cluster=cluster, local=local, kinds={JobKind.TRAIN}).recover() == []
    assert bool(engines[1].living()) is is_granted
