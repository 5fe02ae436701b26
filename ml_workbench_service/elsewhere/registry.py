"""`RegistryElsewhere`: the control plane's model registry, for a worker on another machine.

A version that the job reads is fetched once, file by file, held against its manifest and the digest that the control
plane names, and lies in a folder of this machine from then on. What the job makes is handed in: its files one by one,
then the manifest's digest, upon which the control plane verifies all of it, signs and publishes (`jobs.handed_in`).
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from common_lib.exceptions import BundleDamagedError
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.work_elsewhere import BundleListing, Publication, VersionListing
from ml_workbench_service.elsewhere.connection import JobConnection
from ml_workbench_service.integrations.model_registry import STAGING, FolderModelRegistry
from ml_workbench_service.jobs.handed_in import HandedIn, Refusal
from ml_workbench_service.learning.bundle.manifest import verify

LOOK_EVERY_S = 0.1


class RegistryElsewhere(FolderModelRegistry):
    """What a training, an experiment or a measurement of importance asks of a registry.

    Args:
        root: a folder of this machine, for what is fetched and for the draft.
    """

    def __init__(self, connection: JobConnection, root: Path) -> None:
        super().__init__(root, live_version=lambda model_id: None, hand_in=BundleHandIn(connection, root))
        self._connection = connection

    def versions(self, model_id: str) -> list[str]:
        """Newest first; raises as the control plane does where the job has nothing to do with that model."""
        return list(self._connection.get(f"versions/{model_id}", VersionListing).versions)

    def published_by(self, job_id: str, model_id: str, version: str) -> ModelCard | None:
        """The version's card, if this very job has published it."""
        found = self._connection.get(f"versions/{model_id}", VersionListing, version=version).published
        return None if found is None else ModelCard.model_validate(found)

    def card(self, model_id: str, version: str) -> ModelCard:
        """As the control plane has it; raises like it."""
        return ModelCard.model_validate(self._listing(model_id, version).card)

    def folder(self, model_id: str, version: str) -> Path:
        """Where its files lie here, whole; fetched at the first call.

        Raises:
            BundleDamagedError: what came is not what was published.
        """
        home = self.root / model_id / version
        if home.is_dir():
            return home
        listing = self._listing(model_id, version)
        staged = self.draft(f"{model_id}.{version}")
        for each in listing.files:
            self._connection.get_file(f"versions/{model_id}/{version}/files/{each.path}", staged / each.path)
        digest = ModelCard.model_validate(listing.card).digest
        if verify(staged) != digest:
            raise BundleDamagedError(
                f"what came of {model_id} {version} is not what was published; start the job again"
            )
        home.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(home)
        return home

    def file(self, model_id: str, version: str, name: str) -> Path | None:
        """A file of a version, None where it has none of that name."""
        found = self.folder(model_id, version) / name
        return found if found.is_file() else None

    def verify(self, model_id: str, version: str) -> str:
        """The digest, once every file here is as the manifest says."""
        return verify(self.folder(model_id, version))

    def _listing(self, model_id: str, version: str) -> BundleListing:
        return self._connection.get(f"versions/{model_id}/{version}", BundleListing)


class BundleHandIn:
    """Hands a draft in over HTTP (`jobs.handed_in.HandIn`)."""

    def __init__(self, connection: JobConnection, root: Path) -> None:
        self._connection = connection
        self._root = root

    def __call__(self, job_id: str, handed: HandedIn, *, check: Callable[[], None]) -> None:
        """Hands in and waits; raises what it was refused with, what `check` raises, or AttemptLostError."""
        draft = self._root / STAGING / job_id
        for file in sorted(draft.iterdir()):
            check()
            self._connection.put_file(f"bundle/{file.name}", file)
        found = self._connection.put("publication", handed, Publication)
        while found.state == "waiting":
            check()
            time.sleep(LOOK_EVERY_S)
            found = self._connection.get("publication", Publication)
        if found.state != "published":
            raise Refusal(error_type=found.error_type, message=found.message, details=found.details).error()
        shutil.rmtree(draft, ignore_errors=True)
