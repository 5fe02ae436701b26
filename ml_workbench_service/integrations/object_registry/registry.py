"""Object registry: the folder registry's laws over a bucket; a version appears by one conditional write.

    publish    sign → upload → read back and verify → create the version's object with `If-None-Match: *`
    archive    a line of the model's log, by compare and swap
    purge      a line of the log → the version's object says so for ever → its files are removed

Reads go to the mirror, which is a registry in a folder; whole bundles come through the cache. A kill between any two
requests leaves the version unseen or whole; what was uploaded in vain is swept away later.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from common_lib.exceptions import (
    BundleDamagedError,
    ModelNotFoundError,
    UnavailableError,
    VersionNotFoundError,
)
from common_lib.storage import make_folder
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.model_registry import (
    FolderModelRegistry,
    number_is_taken,
    version_exists,
)
from ml_workbench_service.integrations.object_registry.bucket import AlreadyThereError
from ml_workbench_service.integrations.object_registry.bundle_cache import BUNDLES, BundleCache
from ml_workbench_service.integrations.object_registry.mirror import Mirror
from ml_workbench_service.integrations.object_registry.uploads import Upload, remove_under, sweep
from ml_workbench_service.integrations.object_registry.version_head import HEAD_FILES, PURGED, VersionHead
from ml_workbench_service.jobs.durable_files import write_whole
from ml_workbench_service.jobs.handed_in import HandedIn, HandIn
from ml_workbench_service.learning.bundle.endings import SeenModel
from ml_workbench_service.learning.bundle.manifest import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    listed_in,
    read_plain,
    unreadable,
)
from ml_workbench_service.learning.bundle.signatures import Signatures

_log = logging.getLogger(__name__)


class ObjectModelRegistry(FolderModelRegistry):
    """Bundles in a bucket; `root` is the mirror's folder.

    Args:
        mirror: an open one; its bucket is the registry.
        cache_gb: the most that whole bundles take on this disk.
    """

    def __init__(
        self,
        mirror: Mirror,
        *,
        cache_gb: float,
        live_version: Callable[[str], str | None],
        signatures: Signatures | None = None,
        hand_in: HandIn | None = None,
    ) -> None:
        super().__init__(mirror.root, live_version=live_version, signatures=signatures, hand_in=hand_in)
        self.mirror = mirror
        self.cache = BundleCache(mirror.bucket, mirror.cache, most_gb=cache_gb)
        self._mended: dict[tuple[str, str], object] = {}

    def accept(self, job_id: str, handed: HandedIn) -> ModelCard:
        """As a folder's; what another process has published is seen first. Raises UnavailableError besides."""
        self.mirror.sync(handed.model_id)
        return super().accept(job_id, handed)

    def taken(self, model_id: str) -> list[str]:
        """As a folder's, as of now. Raises UnavailableError where the store is away, and nobody knows."""
        self.mirror.sync(model_id)
        return super().taken(model_id)

    def folder(self, model_id: str, version: str) -> Path:
        """Where the whole bundle lies on this disk, fetched and verified where it does not yet.

        Raises:
            BundleDamagedError: what lies in the bucket is not what was published; the version is set aside.
            UnavailableError: it is not here, and the store is away.
        """
        return self._bundle(model_id, version)

    def file(self, model_id: str, version: str, name: str) -> Path | None:
        """As a folder's; the small ones are here, for others the bundle is fetched."""
        self.card(model_id, version)
        if name in HEAD_FILES:
            return super().file(model_id, version, name)
        is_listed = name in listed_in(read_plain(self.root / model_id / version / MANIFEST_FILE))
        return self.folder(model_id, version) / name if is_listed else None

    def verify(self, model_id: str, version: str) -> str:
        """Checks the signature, and every file of the bundle on this disk; what is damaged here is fetched anew."""
        self.bundles.forget(model_id, version)  # its objects may have been restored, under the same names
        card = self.card(model_id, version)
        self._bundle(model_id, version, looks_anew=True)
        return card.digest

    def check_known(self, model_id: str, version: str) -> None:
        """As a folder's, once more after a look at the bucket where the mirror has no such version.

        Raises:
            UnavailableError: the store is away, and nobody knows.
        """
        try:
            super().check_known(model_id, version)
        except (ModelNotFoundError, VersionNotFoundError):
            if self.is_purged(model_id, version) or not self.mirror.may_be_behind():
                raise
            self.mirror.sync(model_id)
            super().check_known(model_id, version)

    def signed(self, model_id: str, version: str) -> None:
        """Carries the signature file of the bundle on this disk, which has one more signature, into the bucket."""
        head = self.mirror.head(model_id, version)
        signature = read_plain(self.cache.root / model_id / version / SIGNATURE_FILE)
        signed = VersionHead(head.upload, {**head.files, SIGNATURE_FILE: signature})
        self.mirror.replace_version(model_id, version, signed.payload())

    def sweep(self, *, untouched_since: datetime) -> None:
        """Removes uploads that nobody finishes; none where the store is away."""
        try:
            sweep(self.mirror, untouched_since=untouched_since, now=utc_now())
        except UnavailableError as error:
            _log.warning("uploads that nobody finishes stay for now: %s", error.message)

    def _sign_and_place(self, draft: Path, card: ModelCard) -> None:
        signatures = self.bundles.signatures
        make_folder(self.root / card.id)
        with self._locked(card.id):
            self._check_free(card)
            if signatures is not None:
                signatures.sign(draft, card)
        upload = Upload(self.mirror.bucket, card)
        try:
            head = upload.send(draft, signatures)
            with self._locked(card.id):
                self._check_free(card)
                self.mirror.create_version(card.id, card.version, head)
        except AlreadyThereError as error:
            upload.discard()
            raise version_exists(card) from error
        except BaseException:
            if not self._may_be_named(card, upload.id):
                upload.discard()
            raise
        with suppress(OSError):  # published it is; a full disk here costs a fetch
            self.cache.put(card.id, card.version, draft)

    def _may_be_named(self, card: ModelCard, upload: str) -> bool:
        """Whether the version's object may name this upload: a request that failed may have been carried out."""
        try:
            return upload.encode() in self.mirror.read_version(card.id, card.version).content
        except UnavailableError:
            return True

    def _check_free(self, card: ModelCard) -> None:
        if card.version in self.tombstones(card.id):
            raise number_is_taken(card)
        if card.version in self.versions(card.id):
            raise version_exists(card)

    @contextmanager
    def _locked(self, model_id: str) -> Iterator[None]:
        """Besides, what is appended within relies on what the bucket said at its beginning."""
        if not (self.root / model_id).is_dir():
            self.mirror.sync(model_id)
        with super()._locked(model_id), self.mirror.section(model_id):
            yield

    def _append(self, model_id: str, file_name: str, line: str) -> None:
        self.mirror.append(model_id, file_name, line)

    def _remove_purged(self, model_id: str) -> None:
        for version in self.tombstones(model_id):
            self.bundles.forget(model_id, version)
            self.cache.forget(model_id, version)
            if not (self.root / model_id / version).is_dir():
                continue
            try:
                self.mirror.replace_version(model_id, version, PURGED)
            except UnavailableError as error:  # nobody sees them any more
                _log.warning("files of %s %s stay until the next start: %s", model_id, version, error.message)
                continue
            remove_under(self.mirror.bucket, f"{BUNDLES}{model_id}/{version}/")

    def _published(self, model_id: str, version: str, seen: SeenModel) -> ModelCard:
        """A card that was damaged on this disk alone is laid down anew."""
        try:
            return super()._published(model_id, version, seen)
        except BundleDamagedError as fault:
            if not self._is_mended(model_id, version):
                raise fault
            return super()._published(model_id, version, seen)

    def _is_mended(self, model_id: str, version: str) -> bool:
        place = self.root / model_id / version
        looked_at = self.bundles.identity(model_id, version)
        if self._mended.get((model_id, version)) == looked_at:
            return False
        with suppress(UnavailableError):
            was_damaged = self.mirror.mend(model_id, version)
            self._mended[model_id, version] = self.bundles.identity(model_id, version)
            return was_damaged and place.is_dir()
        return False

    def _bundle(self, model_id: str, version: str, *, looks_anew: bool = False) -> Path:
        self.check_known(model_id, version)
        home = self.root / model_id / version
        try:
            head = self.mirror.head(model_id, version)
            digest = head.digest()
        except (OSError, ValueError, IndexError) as error:
            raise unreadable(home) from error
        try:
            folder = self.cache.folder(model_id, version, head, digest, looks_anew=looks_anew)
        except BundleDamagedError as fault:
            self.bundles.put_aside(model_id, version, fault)
            raise
        signature = head.files.get(SIGNATURE_FILE)
        if signature is not None and read_plain(folder / SIGNATURE_FILE) != signature:
            write_whole(folder / SIGNATURE_FILE, signature)
        return folder
