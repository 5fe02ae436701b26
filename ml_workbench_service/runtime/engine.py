"""Training engine: who runs the jobs, as TRAINING_BACKEND has it: processes of this machine, or a cluster."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.contracts.runners import Cluster, TrainingBackend
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.resources import Addresses
from ml_workbench_service.runtime.child_environment import child_environment, ray_worker_environment
from ml_workbench_service.runtime.training_backends import NEEDS, LocalBackend
from ml_workbench_service.settings import Settings


@dataclass(frozen=True)
class TrainingEngine:
    """What runs the jobs.

    Attributes:
        local: the processes of this machine, which keep a warm worker where trainings are theirs.
        cluster: its face to readiness; None: there is none.
        close: gives up what is the service's; workers that have a job go on.
        needs: the extra of this installation that jobs of a kind cannot do without; the cluster's need none here.
    """

    backend: TrainingBackend
    local: LocalBackend
    cluster: Cluster | None
    close: Callable[[], None]
    needs: Mapping[JobKind, str]


def open_engine(settings: Settings, store: JobStore, addresses: Addresses) -> TrainingEngine:
    """The engine; nothing is contacted yet."""
    trains_here = settings.TRAINING_BACKEND == "local"
    warm_log = settings.STATE_DIR.resolve() / "warm_worker.log" if settings.WARM_WORKER and trains_here else None
    local = LocalBackend(store, environment=child_environment(settings, addresses), warm_log=warm_log)
    if trains_here:
        return TrainingEngine(local, local, None, local.close, NEEDS)
    return _on_ray(settings, store, addresses, local)


def _on_ray(settings: Settings, store: JobStore, addresses: Addresses, local: LocalBackend) -> TrainingEngine:
    """Loaded only here: a service of one machine has no use for it.

    Raises:
        DataValidationError: workers would send their tokens in the clear.
    """
    from ml_workbench_service.elsewhere.connection import check_address
    from ml_workbench_service.integrations.ray_jobs import RayJobs
    from ml_workbench_service.runtime.backends_by_kind import BackendsByKind
    from ml_workbench_service.runtime.on_ray.backend import RayBackend, RayWorkers
    from ml_workbench_service.runtime.worker_elsewhere import KINDS

    check_address(settings.control_url)
    token = settings.RAY_AUTH_TOKEN
    jobs = RayJobs(settings.RAY_ADDRESS or "", token=None if token is None else token.get_secret_value())
    sees_our_code = settings.RAY_IMAGE is None and settings.RAY_WORKING_DIR is None
    workers = RayWorkers(
        control_url=settings.control_url,
        python=settings.RAY_PYTHON or (sys.executable if sees_our_code else "python"),
        environment=ray_worker_environment(settings, addresses),
        image=settings.RAY_IMAGE,
        working_dir=settings.RAY_WORKING_DIR,
        num_cpus=settings.RAY_CPUS,
        num_gpus=settings.RAY_GPUS,
        log_bytes=settings.job_log_bytes,
    )
    cluster = RayBackend(store, jobs, workers)

    def close() -> None:
        local.close()
        cluster.close()

    backend = BackendsByKind(store, cluster=cluster, local=local, kinds=KINDS)
    here = {kind: extra for kind, extra in NEEDS.items() if kind not in KINDS}
    return TrainingEngine(backend, local, cluster, close, here)
