"""Where registries lie, for the laws that all of them keep: a folder, a bucket in memory, a bucket of a real server."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.integrations.object_registry.bucket import Bucket
from ml_workbench_service.integrations.object_registry.history import ObjectDeploymentHistory
from ml_workbench_service.integrations.object_registry.mirror import Mirror
from ml_workbench_service.integrations.object_registry.registry import ObjectModelRegistry

REGISTRIES = ["folder", "memory", pytest.param("server", marks=pytest.mark.more)]


@dataclass
class FolderPlace:
    """A folder; whoever opens it again sees the same one."""

    root: Path

    def registry(self, **options: Any) -> FolderModelRegistry:
        """Opened."""
        return FolderModelRegistry(self.root, **options)

    def history(self) -> DeploymentHistory:
        """Opened."""
        return DeploymentHistory(self.root)


@dataclass
class BucketPlace:
    """A bucket; whoever opens it is a machine of its own, with a cache of its own."""

    folder: Path
    bucket: Bucket
    num_machines: int = 0
    mirrors: list[Mirror] = field(default_factory=list)

    def mirror(self) -> Mirror:
        """Of another machine."""
        self.num_machines += 1
        mirror = Mirror(self.bucket, self.folder / f"machine-{self.num_machines}")
        mirror.open()
        return mirror

    def registry(self, *, cache_gb: float = 1.0, **options: Any) -> ObjectModelRegistry:
        """Opened on another machine."""
        return ObjectModelRegistry(self.mirror(), cache_gb=cache_gb, **options)

    def history(self) -> ObjectDeploymentHistory:
        """Opened on another machine."""
        return ObjectDeploymentHistory(self.mirror())


OpenPlace = Callable[[str, Path], FolderPlace | BucketPlace]


def place_of(kind: str, folder: Path, address: Callable[[], str]) -> FolderPlace | BucketPlace:
    """An empty place of its kind; `address` makes a bucket on a real server."""
    if kind == "folder":
        return FolderPlace(folder / "registry")
    if kind == "memory":
        return BucketPlace(folder, Bucket("s3://memory/models", store=MemoryStore()))
    return BucketPlace(folder, Bucket(address()))


def opened_again(registry: FolderModelRegistry) -> FolderModelRegistry:
    """The same registry, as another process sees it; of a bucket, one on the same machine."""
    if isinstance(registry, ObjectModelRegistry):
        return ObjectModelRegistry(registry.mirror, cache_gb=1.0, live_version=registry.live_version)
    return FolderModelRegistry(registry.root, live_version=registry.live_version)
