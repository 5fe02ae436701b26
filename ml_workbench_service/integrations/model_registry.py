"""Model registry: folders. A version is staged, synced and renamed into place, and never changes after that.

    <root>/<model_id>/<semver>/            card.json · model.onnx · weights.safetensors · … · manifest.json
    <root>/<model_id>/archived.jsonl       append-only: which versions were archived, and restored
    <root>/<model_id>/tombstones.jsonl     append-only: which versions were purged, one line a purge, with their digests
    <root>/.staging/<job or random>/       drafts of running jobs

`os.rename` onto a folder that is not empty fails, which makes it a lock-free exclusive publish; the target is never
made beforehand, since onto an empty folder it would succeed.

The control plane alone signs (`learning.bundle.signatures`), at publishing. A worker's registry hands its draft in and
waits (`jobs.handed_in`); the control plane's accepts it: verified, signed, renamed. What does not verify is set aside.

A purge is its line in `tombstones.jsonl`: nobody sees the version any more or publishes it again; its files go then,
or at the next start. One writer at a time archives, restores, purges or publishes a model (`.versions.lock`).
"""

import errno
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common_lib.exceptions import (
    BundleDamagedError,
    ConflictError,
    ModelNotFoundError,
    StateDamagedError,
    VersionExistsError,
    VersionNotFoundError,
)
from common_lib.storage import check_there, make_folder
from ml_workbench_service.contracts.contract import NAME_PATTERN, iso, utc_now
from ml_workbench_service.contracts.models import ModelCard, ModelStatus, SetAside, Tombstone
from ml_workbench_service.jobs.durable_files import append_line
from ml_workbench_service.jobs.file_lock import locked
from ml_workbench_service.jobs.guarded_reading import json_object
from ml_workbench_service.jobs.handed_in import HandedIn, HandIn
from ml_workbench_service.learning.bundle.checked_bundles import CheckedBundles, check_ids
from ml_workbench_service.learning.bundle.endings import (
    ARCHIVED_FILE,
    TOMBSTONES_FILE,
    Ended,
    Endings,
    Purge,
    SeenModel,
    tombstone_of,
)
from ml_workbench_service.learning.bundle.listing import CARD_FILE, CardFacts, RegistryListing, read_facts
from ml_workbench_service.learning.bundle.manifest import (
    RECIPE_FILE,
    digest_of,
    read_plain,
    sync,
    unreadable,
    verify,
    write_manifest,
)
from ml_workbench_service.learning.bundle.signatures import Signatures

LOCK_FILE = ".versions.lock"
LOCK_TIMEOUT_S = 15.0
STAGING = ".staging"

_log = logging.getLogger(__name__)


class FolderModelRegistry:
    """Bundles in folders.

    Args:
        live_version: tells which version of a model is deployed, for the derived status.
        signatures: the service's; None: nothing is signed, and whoever writes into the registry is trusted.
        hand_in: of a worker, which publishes nothing itself.
    """

    def __init__(
        self,
        root: Path,
        *,
        live_version: Callable[[str], str | None],
        signatures: Signatures | None = None,
        hand_in: HandIn | None = None,
    ) -> None:
        self.root = root
        self.live_version = live_version
        self.listing = RegistryListing(root)
        self.bundles = CheckedBundles(root, signatures)
        self._hand_in = hand_in
        self._endings = Endings(root)

    def draft(self, job_id: str | None = None) -> Path:
        """A new empty staging folder on the registry's own file system.

        A job that was killed while it wrote gets its own folder again, emptied, so it leaves nothing behind.
        """
        staging = self.root / STAGING
        make_folder(staging)
        folder = staging / (job_id or uuid.uuid4().hex)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def publish(self, draft: Path, card: ModelCard, *, check: Callable[[], None] = lambda: None) -> ModelCard:
        """Completes the draft with card and manifest, signs it and renames it into place; a worker has this done.

        Args:
            check: is called while a worker waits; what it raises ends the waiting.

        Raises:
            VersionExistsError: that version is published already, and stays as it is, or it was purged.
        """
        (draft / CARD_FILE).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
        digest = write_manifest(draft)
        if self._hand_in is None:
            self._sign_and_place(draft, card.model_copy(update={"digest": digest}))
        else:
            handed = HandedIn(model_id=card.id, version=card.version, digest=digest)
            self._hand_in(card.lineage.job_id, handed, check=check)
        return self.card(card.id, card.version)

    def accept(self, job_id: str, handed: HandedIn) -> ModelCard:
        """Publishes what a worker has handed in, verified and signed; once more is nothing.

        Raises:
            BundleDamagedError: it is not what the worker says, or another model, version or job than its own.
            VersionExistsError: as `publish`.
        """
        if self._lies_there(handed):
            return self.card(handed.model_id, handed.version)
        draft = self.root / STAGING / job_id
        digest = verify(draft)
        try:
            card = ModelCard.model_validate_json(read_plain(draft / CARD_FILE))
        except (OSError, ValidationError) as error:
            raise unreadable(draft) from error
        check_ids(card, handed.model_id, handed.version)
        if digest != handed.digest or card.lineage.job_id != job_id:
            raise BundleDamagedError(
                f"what was handed in as {handed.model_id} {handed.version} is not what job {job_id} made; nothing was "
                "published; start the training again"
            )
        self._sign_and_place(draft, card.model_copy(update={"digest": digest}))
        return self.card(handed.model_id, handed.version)

    def _lies_there(self, handed: HandedIn) -> bool:
        with suppress(OSError):
            return digest_of(self.root / handed.model_id / handed.version) == handed.digest
        return False

    def _sign_and_place(self, draft: Path, card: ModelCard) -> None:
        signatures, home = self.bundles.signatures, self.root / card.id
        make_folder(home)
        with self._locked(card.id):
            if card.version in self.tombstones(card.id):
                raise number_is_taken(card)
            try:
                if signatures is not None and not (home / card.version).exists():
                    signatures.sign(draft, card)
                os.rename(draft, home / card.version)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise version_exists(card) from error
                raise
        sync(home)
        sync(self.root)

    def model_ids(self) -> list[str]:
        """All models with at least one version, in the order of their names."""
        return [each for each in self.listing.names() if self.versions(each)]

    def versions(self, model_id: str) -> list[str]:
        """A model's versions, newest first; empty for an unknown model."""
        return self.look(model_id).versions

    def taken(self, model_id: str) -> list[str]:
        """Versions that nobody publishes any more: those that are there, and those that were purged.

        Raises:
            FolderGoneError: the registry is away, and nobody knows.
        """
        check_there(self.root)
        return [*self.versions(model_id), *self.tombstones(model_id)]

    def tombstones(self, model_id: str) -> Mapping[str, Tombstone]:
        """What is left of a model's purged versions, by version, in the order in which they were purged."""
        return self._ends(model_id).purged

    def is_purged(self, model_id: str, version: str) -> bool:
        """Whether the version was purged, by this or another process; a `stat` or two where nothing changed."""
        return version in self.tombstones(model_id)

    def card(self, model_id: str, version: str) -> ModelCard:
        """One version's card with digest, size and status.

        Raises:
            ModelNotFoundError: no such model.
            VersionNotFoundError: the model has no such version.
            BundleDamagedError: it is set aside: damaged, tampered with or unsigned.
        """
        return self._card(model_id, version, self.look(model_id))

    def served_facts(self, model_id: str, seen: SeenModel | None = None) -> tuple[CardFacts, ModelStatus] | None:
        """Of the version that is served, as its card says them; None where no card can be read. Quick over many."""
        seen = seen or self.look(model_id)
        for version in seen.ranked:
            if version not in seen.folder.facts:
                seen.folder.facts[version] = read_facts(self.root / model_id / version / CARD_FILE)
            if (found := seen.folder.facts[version]) is not None:
                return found, seen.status(version)
        return None

    def cards(self, model_id: str) -> list[ModelCard]:
        """All versions of a model, newest first; one that is set aside is logged and left out.

        Raises:
            ModelNotFoundError: there are none.
            BundleDamagedError: all of them are set aside.
        """
        found, faults = self.sound_and_set_aside(model_id)
        if not found:
            raise next(iter(faults.values()))
        return found

    def sound_and_set_aside(self, model_id: str) -> tuple[list[ModelCard], dict[str, BundleDamagedError]]:
        """All versions of a model, newest first: the cards, and why the others have none; raises ModelNotFoundError."""
        versions = self.versions(model_id)
        if not versions:
            raise self._unknown(model_id)
        found: list[ModelCard] = []
        faults: dict[str, BundleDamagedError] = {}
        for version in versions:
            try:
                found.append(self.card(model_id, version))
            except BundleDamagedError as error:
                _log.error(error.message)
                faults[version] = error
            except VersionNotFoundError:  # purged since they were listed
                continue
        return found, faults

    def served_card(self, model_id: str, seen: SeenModel | None = None) -> ModelCard:
        """The live version's card, else the newest not archived, else the newest."""
        card, status = self.served(model_id, seen or self.look(model_id))
        return card.model_copy(update={"status": status})

    def served(self, model_id: str, seen: SeenModel) -> tuple[ModelCard, ModelStatus]:
        """The same card as it was published, and its status; raises alike. Quick over many."""
        if not (versions := seen.ranked):
            raise self._unknown(model_id)
        faults = []
        for version in versions:
            try:
                return self._published(model_id, version, seen), seen.status(version)
            except BundleDamagedError as error:
                _log.error(error.message)
                faults.append(error)
        raise faults[0]

    def set_aside(self, model_id: str | None = None) -> tuple[SetAside, ...]:
        """Versions that failed when they were last looked at, of one model or of all; `look_over` looks at all."""
        return tuple(
            each
            for each in self.bundles.set_aside()
            if model_id in (None, each.model_id) and each.version in self.versions(each.model_id)
        )

    def look_over(self) -> None:
        """Looks at every version's signature and card, so that `set_aside` knows of all. Quick."""
        for model_id in self.model_ids():
            for version in self.versions(model_id):
                with suppress(BundleDamagedError, ModelNotFoundError, VersionNotFoundError):
                    self.bundles.look(model_id, version)

    def file(self, model_id: str, version: str, name: str) -> Path | None:
        """A file of a version as it was published, None where it has none of that name; raises like `card`."""
        self.check_known(model_id, version)
        return self.bundles.file(model_id, version, name)

    def recipe(self, model_id: str, version: str) -> dict[str, Any]:
        """A version's recipe as it was published; empty where it has none. Raises like `card`."""
        file = self.file(model_id, version, RECIPE_FILE)
        try:
            return {} if file is None else json_object(read_plain(file))
        except (OSError, ValueError) as error:
            raise unreadable(self.root / model_id / version) from error

    def folder(self, model_id: str, version: str) -> Path:
        """Where a version lies; raises like `card`."""
        self.check_known(model_id, version)
        return self.root / model_id / version

    def check_known(self, model_id: str, version: str) -> None:
        """Raises ModelNotFoundError or VersionNotFoundError where there is no such version."""
        versions = self.versions(model_id)
        if not versions:
            raise self._unknown(model_id)
        if (tombstone := self.tombstones(model_id).get(version)) is not None:
            raise VersionNotFoundError(
                f"version {version} of {model_id} was purged on {tombstone.purged_at:%Y-%m-%d}; "
                f"GET /api/v1/models/{model_id}/versions lists those that are left",
                details={"tombstone": tombstone.model_dump(mode="json")},
            )
        if version not in versions:
            raise VersionNotFoundError(
                f"model {model_id} has no such version; GET /api/v1/models/{model_id}/versions lists them",
                details={"versions": versions[:20]},
            )

    def published_by(self, job_id: str, model_id: str, version: str) -> ModelCard | None:
        """The version's card, if that very job published it; a job that was killed since could not say so."""
        card = self.card(model_id, version) if version in self.versions(model_id) else None
        return card if card is not None and card.lineage.job_id == job_id else None

    def verify(self, model_id: str, version: str) -> str:
        """Checks the signature, and every file against the manifest; the digest, or BundleDamagedError."""
        self.check_known(model_id, version)
        return self.bundles.verify(model_id, version)

    def recorded(self, card: ModelCard) -> ModelCard:
        """The card with the verdict and the certificate of the service's own record, by today's rules.

        Raises:
            StateDamagedError: the service has no record of this version.
        """
        if (signatures := self.bundles.signatures) is None:
            return card
        found = signatures.recorded(card)
        if found is None:
            raise StateDamagedError(
                f"the service's own record of {card.id} {card.version} is not there, and gates take nobody else's word "
                f"for its verdict; if you take the card's: ml-workbench sign {card.id} {card.version}"
            )
        judged = {"evaluation": found.evaluation, "certificate": found.certificate}
        return card.model_copy(update=judged).by_current_rules()

    def is_archived(self, model_id: str, version: str) -> bool:
        """Whether a version is out of the candidates, also of a bundle that cannot be read."""
        return version in self._ends(model_id).archived

    def archive(self, model_id: str, version: str) -> ModelCard:
        """Takes a version out of the candidates; idempotent. Raises ConflictError for the deployed one.

        Whoever deploys at the same time must be kept out by the deployment history's lock.
        """
        with self._locked(model_id):
            card = self.card(model_id, version)
            if card.status == "deployed":
                raise ConflictError(
                    f"version {version} of {model_id} is deployed; deploy another one first, or undeploy the model, "
                    "then archive it"
                )
            if card.status != "archived":
                self._mark(model_id, version, {})
        return self.card(model_id, version)

    def restore(self, model_id: str, version: str) -> ModelCard:
        """Makes an archived version a candidate again; idempotent."""
        with self._locked(model_id):
            if version in self._ends(model_id).archived:
                self._mark(model_id, version, {"restored": True})
        return self.card(model_id, version)

    def purge(
        self, model_id: str, versions: Sequence[str], *, ever_live: frozenset[str], correlation_id: str
    ) -> tuple[Tombstone, ...]:
        """Removes versions for good, all of them or none; what was purged before is left out.

        Whether they may go is the caller's to know, who keeps deployments out by the deployment history's lock.

        Args:
            ever_live: those that were.

        Raises:
            UnavailableError: the disk is full; nothing was purged.
        """
        at = utc_now()
        with self._locked(model_id):
            tombstones = tuple(
                tombstone_of(
                    self.root / model_id / version,
                    {"was_live": version in ever_live, "purged_at": at, "correlation_id": correlation_id},
                )
                for version in versions
                if not self.is_purged(model_id, version)
            )
            if tombstones:
                line = Purge(tombstones=tombstones).model_dump_json()
                self._append(model_id, TOMBSTONES_FILE, line)
                self._remove_purged(model_id)
        return tombstones

    def signed(self, model_id: str, version: str) -> None:
        """Told that the signature file in a version's `folder` has one more signature: nothing is left to do."""

    def sweep(self, *, untouched_since: datetime) -> None:
        """Removes what killed publishers left outside `.staging`: nothing."""

    def finish_purges(self) -> None:
        """At start: removes the files of versions that were purged, where a kill came in between."""
        for file in self.root.glob(f"*/{TOMBSTONES_FILE}") if self.root.is_dir() else ():
            model_id = file.parent.name
            if any((file.parent / version).exists() for version in self.tombstones(model_id)):
                with self._locked(model_id):
                    self._remove_purged(model_id)

    def _remove_purged(self, model_id: str) -> None:
        home = self.root / model_id
        for version in self.tombstones(model_id):
            self.bundles.forget(model_id, version)
            if not (home / version).is_dir():
                continue
            try:
                shutil.rmtree(home / version)
            except OSError as error:  # nobody sees them any more
                _log.warning("files of %s %s stay until the next start: %s", model_id, version, error)
        sync(home)

    def _mark(self, model_id: str, version: str, more: Mapping[str, object]) -> None:
        line = json.dumps({"version": version, "at": iso(utc_now()), **more})
        self._append(model_id, ARCHIVED_FILE, line)

    def _append(self, model_id: str, file_name: str, line: str) -> None:
        append_line(self.root / model_id / file_name, line)

    @contextmanager
    def _locked(self, model_id: str) -> Iterator[None]:
        """Exclusive over threads and processes; raises ConflictError where another one takes its time."""
        home = self.root / model_id
        if not home.is_dir():
            raise self._unknown(model_id)
        busy = ConflictError(
            f"versions of {model_id} are just being published, archived or purged; try again in a moment"
        )
        with locked(home / LOCK_FILE, timeout_s=LOCK_TIMEOUT_S, otherwise=busy):
            yield

    def look(self, model_id: str) -> SeenModel:
        """A model's folder, ends and live version, as they are now."""
        folder = self.listing.home(model_id)
        return SeenModel(
            folder, self._endings.of(model_id, folder), self.live_version(model_id) if folder.cards else None
        )

    def _card(self, model_id: str, version: str, seen: SeenModel) -> ModelCard:
        return self._published(model_id, version, seen).model_copy(update={"status": seen.status(version)})

    def _published(self, model_id: str, version: str, seen: SeenModel) -> ModelCard:
        if version not in seen.folder.cards or version in seen.ended.purged:
            self.bundles.forget(model_id, version)
            self.check_known(model_id, version)
        return self.bundles.card(model_id, version)

    def _ends(self, model_id: str) -> Ended:
        return self._endings.of(model_id, self.listing.home(model_id))

    def _unknown(self, model_id: str) -> ModelNotFoundError:
        check_there(self.root)  # else nothing is known, and everything is there once the disk is back
        if re.fullmatch(NAME_PATTERN, model_id) and (purged := self.tombstones(model_id)):
            return ModelNotFoundError(
                f"every version of {model_id} was purged; train it again: POST /api/v1/models/train gives the next "
                "version",
                details={"purged": [each.model_dump(mode="json") for each in purged.values()][-20:]},
            )
        known = [each for each in self.model_ids() if each[:3] == model_id[:3]] or self.model_ids()
        hint = f"known: {', '.join(known[:5])}" if known else "none is trained yet: POST /api/v1/models/train"
        return ModelNotFoundError(f"no model of this id; {hint}", details={"known": known[:20]})


def number_is_taken(card: ModelCard) -> VersionExistsError:
    """Of a version that was purged."""
    return VersionExistsError(
        f"version {card.version} of {card.id} was purged, and its number is never used again; leave `version` out to "
        "get the next one"
    )


def version_exists(card: ModelCard) -> VersionExistsError:
    """Of one that is there."""
    return VersionExistsError(
        f"version {card.version} of {card.id} exists already and never changes; leave `version` out to get the next one"
    )
