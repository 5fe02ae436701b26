"""Endings: which versions of a model are archived, restored or purged, read from the two files that say so.

    <root>/<model_id>/archived.jsonl       append-only: which versions were archived, and restored
    <root>/<model_id>/tombstones.jsonl     append-only: which versions were purged, one line a purge, with their digests

Lines that cannot be read are passed over, whatever stands in them: a torn last line is a kill's.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.models import ModelStatus, Tombstone
from ml_workbench_service.jobs.guarded_reading import guarded_lines, json_object
from ml_workbench_service.learning.bundle.listing import CARD_FILE, ModelFolder, stamp_of
from ml_workbench_service.learning.bundle.manifest import MANIFEST_FILE, digest_of, size_of

ARCHIVED_FILE = "archived.jsonl"
TOMBSTONES_FILE = "tombstones.jsonl"


class Purge(Contract):
    """A line of `tombstones.jsonl`: everything that one call purged, so that it happened whole or not at all."""

    tombstones: tuple[Tombstone, ...]


@dataclass(frozen=True)
class Ended:
    """Which of a model's versions are archived or purged, as of files of these sizes and times."""

    stamps: tuple[tuple[int, int] | None, ...] = ()
    archived: frozenset[str] = frozenset()
    purged: Mapping[str, Tombstone] = field(default_factory=dict)


NO_ENDS = Ended()


@dataclass(frozen=True)
class SeenModel:
    """A model as of one look: its folder, which versions have ended, which one is live."""

    folder: ModelFolder
    ended: Ended
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


class Endings:
    """Those of one registry's models. For any threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, Ended] = {}

    def of(self, model_id: str, folder: ModelFolder) -> Ended:
        """A model's, by a look into its folder; read again only where a file has changed."""
        there = folder.listing.names
        if not (ARCHIVED_FILE in there or TOMBSTONES_FILE in there):
            return NO_ENDS
        files = [self._root / model_id / name for name in (ARCHIVED_FILE, TOMBSTONES_FILE)]
        stamps = tuple(map(stamp_of, files))
        known = self._known.get(model_id)
        if known is not None and known.stamps == stamps:
            return known
        archived: set[str] = set()
        for version, is_archived in guarded_lines(files[0], _lines(files[0]), _mark_of):
            (archived.add if is_archived else archived.discard)(version)
        purged: dict[str, Tombstone] = {}
        for purge in guarded_lines(files[1], _lines(files[1]), Purge.model_validate_json):
            purged |= {each.version: each for each in purge.tombstones}
        ended = Ended(stamps, frozenset(archived), purged)
        self._known[model_id] = ended
        return ended


def _mark_of(line: bytes) -> tuple[str, bool]:
    plain = json_object(line)
    return str(plain["version"]), not plain.get("restored")


def tombstone_of(folder: Path, about: Mapping[str, object]) -> Tombstone:
    """What is to be left of a bundle; of a damaged one, what can still be read."""
    found: dict[str, object] = {"model_id": folder.parent.name, "version": folder.name, **about}
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        listed = json_object((folder / MANIFEST_FILE).read_bytes())["files"]
        files = {name: str(each["sha256"]) for name, each in listed.items()}
        found |= {"files": files, "digest": digest_of(folder), "size_bytes": size_of(folder)}
    with suppress(OSError, ValueError, KeyError, TypeError):
        card = json_object((folder / CARD_FILE).read_bytes())
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
