"""Model registry: folders. A version is staged, synced and renamed into place, and never changes after that.

    <root>/<model_id>/<semver>/            card.json · model.onnx · weights.safetensors · … · manifest.json
    <root>/<model_id>/archived.jsonl       append-only: which versions were archived, and restored
    <root>/<model_id>/tombstones.jsonl     append-only: which versions were purged, one line a purge, with their digests
    <root>/.staging/<job or random>/       drafts of running jobs

`os.rename` onto a folder that is not empty fails, which makes it a lock-free exclusive publish; the target is never
made beforehand, since onto an empty folder it would succeed.

A purge is its line in `tombstones.jsonl`: from then on nobody sees the version, whatever of its files is still there,
and nobody publishes it again; the files go after it, or at the next start (`finish_purges`). One writer at a time
archives, restores, purges or publishes a model's versions, over threads and processes (`.versions.lock`).
"""

import errno
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from packaging.version import Version
from pydantic import ValidationError

from common_lib.exceptions import (
    ConflictError,
    ModelNotFoundError,
    PredictionError,
    VersionExistsError,
    VersionNotFoundError,
)
from ml_workbench_service.contracts.contract import NAME_PATTERN, Contract, iso, utc_now
from ml_workbench_service.contracts.models import ModelCard, ModelStatus, Tombstone
from ml_workbench_service.jobs.durable_files import append_line
from ml_workbench_service.learning.bundle.listing import (
    CARD_FILE,
    CardFacts,
    ModelFolder,
    RegistryListing,
    Stamp,
    read_facts,
    stamp_of,
)
from ml_workbench_service.learning.bundle.manifest import (
    MANIFEST_FILE,
    digest_of,
    size_of,
    sync,
    verify,
    write_manifest,
)

ARCHIVED_FILE = "archived.jsonl"
TOMBSTONES_FILE = "tombstones.jsonl"
LOCK_FILE = ".versions.lock"
LOCK_TIMEOUT_S = 15.0
STAGING = ".staging"
LARGEST_NUMBER = 999_999
"""Of a part of a version."""
MOST_CARDS = 1_000
"""Kept in memory: some 70 KB each."""
STALE_DRAFT_S = 7 * 24 * 3600

_log = logging.getLogger(__name__)


class _Purge(Contract):
    """A line of `tombstones.jsonl`: everything that one call purged, so that it happened whole or not at all."""

    tombstones: tuple[Tombstone, ...]


@dataclass(frozen=True)
class _Ended:
    """Which of a model's versions are archived or purged, as of files of these sizes and times."""

    stamps: tuple[tuple[int, int] | None, ...] = ()
    archived: frozenset[str] = frozenset()
    purged: Mapping[str, Tombstone] = field(default_factory=dict)


NO_ENDS = _Ended()


@dataclass(frozen=True)
class _Model:
    """A model as of one look: its folder, which versions have ended, which one is live."""

    folder: ModelFolder
    ended: _Ended
    live: str | None

    @property
    def versions(self) -> list[str]:
        """Newest first."""
        return [each for each in self.folder.cards if each not in self.ended.purged]

    @property
    def ranked(self) -> list[str]:
        """In the order in which they would serve: the live one, the newest not archived, the newest."""
        return sorted(self.versions, key=lambda each: (each != self.live, each in self.ended.archived))

    def status(self, version: str) -> ModelStatus:
        """Of one that is there."""
        if version == self.live:
            return "deployed"
        return "archived" if version in self.ended.archived else "experimental"


class FolderModelRegistry:
    """Bundles in folders. `live_version` tells which version of a model is deployed, for the derived status."""

    def __init__(self, root: Path, *, live_version: Callable[[str], str | None]) -> None:
        self.root = root
        self._live_version = live_version
        self.listing = RegistryListing(root)
        self._cards: OrderedDict[tuple[str, str], tuple[Stamp, ModelCard]] = OrderedDict()
        self._keeping = threading.Lock()
        self._ended: dict[str, _Ended] = {}

    def draft(self, job_id: str | None = None) -> Path:
        """A new empty staging folder on the registry's own file system; leftovers of a week ago are removed.

        A job that was killed while it wrote gets its own folder again, emptied, so it leaves nothing behind.
        """
        staging = self.root / STAGING
        staging.mkdir(parents=True, exist_ok=True)
        for leftover in staging.iterdir():
            with suppress(FileNotFoundError):  # another job's draft, published meanwhile
                if time.time() - leftover.stat().st_mtime > STALE_DRAFT_S:
                    shutil.rmtree(leftover, ignore_errors=True)
        folder = staging / (job_id or uuid.uuid4().hex)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def publish(self, draft: Path, card: ModelCard) -> ModelCard:
        """Completes the draft with card and manifest and renames it into place.

        Raises:
            VersionExistsError: that version is published already, and stays as it is, or it was purged.
        """
        (draft / CARD_FILE).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
        write_manifest(draft)
        home = self.root / card.id
        home.mkdir(parents=True, exist_ok=True)
        with self._locked(card.id):
            if card.version in self.tombstones(card.id):
                raise VersionExistsError(
                    f"version {card.version} of {card.id} was purged, and its number is never used again; "
                    "leave `version` out to get the next one"
                )
            try:
                os.rename(draft, home / card.version)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise VersionExistsError(
                        f"version {card.version} of {card.id} exists already and never changes; "
                        "leave `version` out to get the next one"
                    ) from error
                raise
        sync(home)
        sync(self.root)
        return self.card(card.id, card.version)

    def model_ids(self) -> list[str]:
        """All models with at least one version, in the order of their names."""
        return [each for each in self.listing.names() if self.versions(each)]

    def versions(self, model_id: str) -> list[str]:
        """A model's versions, newest first; empty for an unknown model."""
        return self._look(model_id).versions

    def taken(self, model_id: str) -> list[str]:
        """Versions that nobody publishes any more: those that are there, and those that were purged."""
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
            PredictionError: its card or manifest cannot be read.
        """
        return self._card(model_id, version, self._look(model_id))

    def served_facts(self, model_id: str) -> tuple[CardFacts, ModelStatus] | None:
        """Of the version that is served, as its card says them; None where no card can be read. Quick over many."""
        seen = self._look(model_id)
        facts = seen.folder.facts
        for version in seen.ranked:
            if version not in facts:
                facts[version] = read_facts(self.root / model_id / version / CARD_FILE)
            if (found := facts[version]) is not None:
                return found, seen.status(version)
        return None

    def cards(self, model_id: str) -> list[ModelCard]:
        """All versions of a model, newest first; an unreadable one is logged and left out.

        Raises:
            ModelNotFoundError: there are none.
            PredictionError: none of them can be read.
        """
        versions = self.versions(model_id)
        if not versions:
            raise self._unknown(model_id)
        found, faults = [], []
        for version in versions:
            try:
                found.append(self.card(model_id, version))
            except PredictionError as error:
                _log.error(error.message)
                faults.append(error)
        if not found:
            raise faults[0]
        return found

    def served_card(self, model_id: str) -> ModelCard:
        """The live version's card, else the newest not archived, else the newest."""
        seen = self._look(model_id)
        versions = seen.ranked
        if not versions:
            raise self._unknown(model_id)
        faults = []
        for version in versions:
            try:
                return self._card(model_id, version, seen)
            except PredictionError as error:
                _log.error(error.message)
                faults.append(error)
        raise faults[0]

    def folder(self, model_id: str, version: str) -> Path:
        """Where a version lies; raises like `card`."""
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
        return self.root / model_id / version

    def published_by(self, job_id: str, model_id: str, version: str) -> ModelCard | None:
        """The version's card, if that very job published it; a job that was killed since could not say so."""
        card = self.card(model_id, version) if version in self.versions(model_id) else None
        return card if card is not None and card.lineage.job_id == job_id else None

    def verify(self, model_id: str, version: str) -> str:
        """Checks every file against the manifest; the digest, or PredictionError."""
        return verify(self.folder(model_id, version))

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
                _tombstone(
                    self.root / model_id / version,
                    {"was_live": version in ever_live, "purged_at": at, "correlation_id": correlation_id},
                )
                for version in versions
                if not self.is_purged(model_id, version)
            )
            if tombstones:
                line = _Purge(tombstones=tombstones).model_dump_json()
                append_line(self.root / model_id / TOMBSTONES_FILE, line)
                self._remove_purged(model_id)
        return tombstones

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
            self._cards.pop((model_id, version), None)
            if not (home / version).is_dir():
                continue
            try:
                shutil.rmtree(home / version)
            except OSError as error:  # nobody sees them any more
                _log.warning("files of %s %s stay until the next start: %s", model_id, version, error)
        sync(home)

    def _mark(self, model_id: str, version: str, more: Mapping[str, object]) -> None:
        line = json.dumps({"version": version, "at": iso(utc_now()), **more})
        append_line(self.root / model_id / ARCHIVED_FILE, line)

    @contextmanager
    def _locked(self, model_id: str) -> Iterator[None]:
        """Exclusive over threads and processes; raises ConflictError where another one takes its time."""
        home = self.root / model_id
        if not home.is_dir():
            raise self._unknown(model_id)
        lock = FileLock(home / LOCK_FILE, thread_local=False)
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout as error:
            raise ConflictError(
                f"versions of {model_id} are just being published, archived or purged; try again in a moment"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _look(self, model_id: str) -> _Model:
        folder = self.listing.home(model_id)
        return _Model(folder, self._ends_in(model_id, folder), self._live_version(model_id) if folder.cards else None)

    def _card(self, model_id: str, version: str, seen: _Model) -> ModelCard:
        stamp = seen.folder.cards.get(version)
        if stamp is None or version in seen.ended.purged:
            with self._keeping:
                self._cards.pop((model_id, version), None)
            stamp = stamp_of(self.folder(model_id, version) / CARD_FILE) or (0, 0)
        card = self._read(model_id, version, stamp)
        return card.model_copy(update={"status": seen.status(version)})

    def _read(self, model_id: str, version: str, stamp: Stamp) -> ModelCard:
        """The card as it was published; the `MOST_CARDS` that were asked for last are kept."""
        key = (model_id, version)
        with self._keeping:
            found = self._cards.get(key)
            if found is not None and found[0] == stamp:
                self._cards.move_to_end(key)
                return found[1]
        card = _read_card(self.root / model_id / version)
        with self._keeping:
            self._cards[key] = (stamp, card)
            while len(self._cards) > MOST_CARDS:
                self._cards.popitem(last=False)
        return card

    def _ends(self, model_id: str) -> _Ended:
        return self._ends_in(model_id, self.listing.home(model_id))

    def _ends_in(self, model_id: str, folder: ModelFolder) -> _Ended:
        """Read again only where a file has changed; a torn last line of a kill is left out."""
        there = folder.listing.names
        if not (ARCHIVED_FILE in there or TOMBSTONES_FILE in there):
            return NO_ENDS
        files = [self.root / model_id / name for name in (ARCHIVED_FILE, TOMBSTONES_FILE)]
        stamps = tuple(map(stamp_of, files))
        known = self._ended.get(model_id)
        if known is not None and known.stamps == stamps:
            return known
        archived: set[str] = set()
        for line in _lines(files[0]):
            with suppress(ValueError, KeyError, TypeError):
                plain = json.loads(line)
                (archived.discard if plain.get("restored") else archived.add)(str(plain["version"]))
        purged: dict[str, Tombstone] = {}
        for line in _lines(files[1]):
            with suppress(ValidationError):
                purged |= {each.version: each for each in _Purge.model_validate_json(line).tombstones}
        ended = _Ended(stamps, frozenset(archived), purged)
        self._ended[model_id] = ended
        return ended

    def _unknown(self, model_id: str) -> ModelNotFoundError:
        if re.fullmatch(NAME_PATTERN, model_id) and (purged := self.tombstones(model_id)):
            return ModelNotFoundError(
                f"every version of {model_id} was purged; train it again: POST /api/v1/models/train gives the next "
                "version",
                details={"purged": [each.model_dump(mode="json") for each in purged.values()][-20:]},
            )
        known = [each for each in self.model_ids() if each[:3] == model_id[:3]] or self.model_ids()
        hint = f"known: {', '.join(known[:5])}" if known else "none is trained yet: POST /api/v1/models/train"
        return ModelNotFoundError(f"no model of this id; {hint}", details={"known": known[:20]})


def _read_card(folder: Path) -> ModelCard:
    try:
        plain = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        card = ModelCard.model_validate({**plain, "digest": digest_of(folder), "size_bytes": size_of(folder)})
        return card.by_current_rules()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PredictionError(
            f"the bundle {folder.parent.name}/{folder.name} cannot be read; restore it from a backup or train it again"
        ) from error


def _tombstone(folder: Path, about: Mapping[str, object]) -> Tombstone:
    """What is to be left of a bundle; of a damaged one, what can still be read."""
    found: dict[str, object] = {"model_id": folder.parent.name, "version": folder.name, **about}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        listed = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        files = {name: str(each["sha256"]) for name, each in listed.items()}
        found |= {"files": files, "digest": digest_of(folder), "size_bytes": size_of(folder)}
    with suppress(OSError, ValueError, KeyError, TypeError):
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        known = Tombstone.model_validate(
            {**found, "type": card["type"], "job_id": card["lineage"]["job_id"], "created_at": card["created_at"]}
        )
        return known
    return Tombstone.model_validate(found)


def _lines(file: Path) -> list[bytes]:
    try:
        return file.read_bytes().splitlines()
    except FileNotFoundError:
        return []


def next_version(taken: list[str]) -> str:
    """1.0.0 for a new model, else the newest's next minor version."""
    if not taken:
        return "1.0.0"
    newest = max(map(Version, taken))
    if newest.minor < LARGEST_NUMBER:
        return f"{newest.major}.{newest.minor + 1}.0"
    if newest.major < LARGEST_NUMBER:
        return f"{newest.major + 1}.0.0"
    raise ConflictError(f"no version follows {newest}; send a `version` that is free, or another `model_id`")
