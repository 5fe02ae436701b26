"""Object deployment history: the folder's, read from the mirror and appended to the model's log by compare and swap."""

from collections.abc import Iterator
from contextlib import contextmanager

from ml_workbench_service.integrations.deployment_history import HISTORY_FILE, DeploymentHistory
from ml_workbench_service.integrations.object_registry.mirror import Mirror


class ObjectDeploymentHistory(DeploymentHistory):
    """Who served when, for every model of a bucket.

    Within `locked` the live line read and the next one appended are one step for other services on the bucket too: an
    append raises ConflictError where another one was first. Outside it lines are appended to whatever is there.
    """

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(mirror.root)
        self.mirror = mirror

    @contextmanager
    def locked(self, model_id: str) -> Iterator[None]:
        """As a folder's. Raises UnavailableError where the store is away."""
        with super().locked(model_id), self.mirror.section(model_id):
            yield

    def refresh(self, model_id: str) -> None:
        """Looks at the bucket now. Raises UnavailableError where the store is away."""
        self.mirror.sync(model_id)

    def close(self) -> None:
        """Ends the following of the bucket."""
        self.mirror.close()

    def _append(self, model_id: str, lines: str) -> None:
        self.mirror.append(model_id, HISTORY_FILE, lines)

    def _take_back(self, model_id: str, text: str) -> bool:
        return self.mirror.take_back(model_id, HISTORY_FILE, text)
