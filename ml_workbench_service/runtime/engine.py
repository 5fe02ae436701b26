"""Training engine: who runs the jobs, as TRAINING_BACKEND has it: processes of this machine, or a cluster."""

import sys
from dataclasses import dataclass
from typing import Protocol

from ml_workbench_service.contracts.runners import Cluster, TrainingBackend
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.resources import Addresses
from ml_workbench_service.runtime.child_environment import child_environment, ray_worker_environment
from ml_workbench_service.runtime.training_backends import LocalBackend
from ml_workbench_service.settings import Settings


class ServiceBackend(TrainingBackend, Protocol):
    """A backend as the service keeps it."""

    def keep_warm(self) -> None:
        """For times in which nothing is trained."""
        ...

    def close(self) -> None:
        """Gives up what is the service's; workers that have a job go on."""
        ...


@dataclass(frozen=True)
class TrainingEngine:
    """What runs the jobs; `cluster` is its face to readiness where that is elsewhere."""

    backend: ServiceBackend
    cluster: Cluster | None = None


def open_engine(settings: Settings, store: JobStore, addresses: Addresses) -> TrainingEngine:
    """The engine; nothing is contacted yet."""
    if settings.TRAINING_BACKEND == "ray":
        return _on_ray(settings, store, addresses)
    warm_log = settings.STATE_DIR.resolve() / "warm_worker.log" if settings.WARM_WORKER else None
    return TrainingEngine(LocalBackend(store, environment=child_environment(settings, addresses), warm_log=warm_log))


def _on_ray(settings: Settings, store: JobStore, addresses: Addresses) -> TrainingEngine:
    """Loaded only here: a service of one machine has no use for it."""
    from ml_workbench_service.integrations.ray_jobs import RayJobs
    from ml_workbench_service.runtime.on_ray.backend import RayBackend, RayWorkers

    token = settings.RAY_AUTH_TOKEN
    jobs = RayJobs(settings.RAY_ADDRESS or "", token=None if token is None else token.get_secret_value())
    sees_our_code = settings.RAY_IMAGE is None and settings.RAY_WORKING_DIR is None
    workers = RayWorkers(
        python=settings.RAY_PYTHON or (sys.executable if sees_our_code else "python"),
        environment=ray_worker_environment(settings, addresses),
        image=settings.RAY_IMAGE,
        working_dir=settings.RAY_WORKING_DIR,
        num_cpus=settings.RAY_CPUS,
        num_gpus=settings.RAY_GPUS,
        log_bytes=settings.job_log_bytes,
    )
    backend = RayBackend(store, jobs, workers)
    return TrainingEngine(backend, cluster=backend)
