"""Training backends by the kind of job: what can be done anywhere goes to a cluster, the rest stays on this machine.

A replay and a test of resilience stand beside this service's own queue (`worker_elsewhere.KINDS`).
"""

from collections.abc import Collection

from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.runners import Handle, TrainingBackend, WorkerState
from ml_workbench_service.jobs.job import JobStore


class BackendsByKind:
    """Satisfies `TrainingBackend`; a handle is read by the backend of its job's kind.

    Args:
        kinds: of jobs that are done on the cluster.
    """

    def __init__(
        self, store: JobStore, *, cluster: TrainingBackend, local: TrainingBackend, kinds: Collection[JobKind]
    ) -> None:
        self._store, self._cluster, self._local, self._kinds = store, cluster, local, kinds

    def submit(self, spec: JobSpec) -> Handle:
        """On the one that does this kind."""
        return self._of_kind(spec.kind).submit(spec)

    def poll(self, handle: Handle) -> WorkerState:
        """How the worker is."""
        return self._of(handle).poll(handle)

    def cancel(self, handle: Handle, grace_s: float) -> None:
        """Leaves the marker, and presses later."""
        self._of(handle).cancel(handle, grace_s)

    def kill(self, handle: Handle) -> None:
        """Ends the worker."""
        self._of(handle).kill(handle)

    def memory_bytes(self, handle: Handle) -> int:
        """Of a worker of this machine."""
        return self._of(handle).memory_bytes(handle)

    def recover(self) -> list[Handle]:
        """The living workers of both, each of its own kinds.

        A worker of this machine at a job that is the cluster's now is ended: it goes on there, from its checkpoint.
        """
        for each in self._local.recover():
            if self._of(each) is self._cluster and not self._store.folder(each.job_id).grant.is_given:
                self._local.kill(each)
        found = [(each, backend) for backend in (self._cluster, self._local) for each in backend.recover()]
        return [each for each, backend in found if self._of(each) is backend]

    def same_worker(self, one: Handle, other: Handle) -> bool:
        """Whether two handles of one job are of the same worker."""
        return self._of(one).same_worker(one, other)

    def describe_end(self, handle: Handle, state: WorkerState) -> str:
        """How a worker ended."""
        return self._of(handle).describe_end(handle, state)

    def _of(self, handle: Handle) -> TrainingBackend:
        return self._of_kind(self._store.folder(handle.job_id).spec.kind)

    def _of_kind(self, kind: JobKind) -> TrainingBackend:
        return self._cluster if kind in self._kinds else self._local
