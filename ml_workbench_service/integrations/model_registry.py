"""Model registry: folders. A version is staged, synced and renamed into place, and never changes after that.

    <root>/<model_id>/<semver>/            card.json · model.onnx · weights.safetensors · … · manifest.json
    <root>/<model_id>/archived.jsonl       append-only: which versions are archived
    <root>/.staging/<job or random>/       drafts of running jobs

`os.rename` onto a folder that is not empty fails, which makes it a lock-free exclusive publish; the target is never
made beforehand, since onto an empty folder it would succeed.
"""

import errno
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from packaging.version import Version

from common_lib.exceptions import (
    ConflictError,
    ModelNotFoundError,
    PredictionError,
    VersionExistsError,
    VersionNotFoundError,
)
from ml_workbench_service.contracts.contract import NAME_PATTERN, VERSION_PATTERN, iso, utc_now
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.bundle.manifest import digest_of, size_of, sync, verify, write_manifest

CARD_FILE = "card.json"
ARCHIVED_FILE = "archived.jsonl"
STAGING = ".staging"
LARGEST_NUMBER = 999_999
"""Of a part of a version."""
STALE_DRAFT_S = 7 * 24 * 3600

_log = logging.getLogger(__name__)


class FolderModelRegistry:
    """Bundles in folders. `live_version` tells which version of a model is deployed, for the derived status."""

    def __init__(self, root: Path, *, live_version: Callable[[str], str | None]) -> None:
        self.root = root
        self._live_version = live_version
        self._cards: dict[tuple[str, str], ModelCard] = {}

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
            VersionExistsError: that version is published already; it stays as it is.
        """
        (draft / CARD_FILE).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
        write_manifest(draft)
        home = self.root / card.id
        home.mkdir(parents=True, exist_ok=True)
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
        if not self.root.is_dir():
            return []
        return sorted(
            each.name
            for each in self.root.iterdir()
            if re.fullmatch(NAME_PATTERN, each.name) and each.is_dir() and self.versions(each.name)
        )

    def versions(self, model_id: str) -> list[str]:
        """A model's versions, newest first; empty for an unknown model."""
        home = self.root / model_id
        if not re.fullmatch(NAME_PATTERN, model_id) or not home.is_dir():
            return []
        found = [
            each.name
            for each in home.iterdir()
            if re.fullmatch(VERSION_PATTERN, each.name) and (each / CARD_FILE).is_file()
        ]
        return sorted(found, key=Version, reverse=True)

    def card(self, model_id: str, version: str) -> ModelCard:
        """One version's card with digest, size and status.

        Raises:
            ModelNotFoundError: no such model.
            VersionNotFoundError: the model has no such version.
            PredictionError: its card or manifest cannot be read.
        """
        key = (model_id, version)
        if key not in self._cards:
            self._cards[key] = _read_card(self.folder(model_id, version))
        status = "experimental"
        if self._live_version(model_id) == version:
            status = "deployed"
        elif version in self._archived(model_id):
            status = "archived"
        return self._cards[key].model_copy(update={"status": status})

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
        cards = self.cards(model_id)
        ranked = [
            *(card for card in cards if card.status == "deployed"),
            *(card for card in cards if card.status == "experimental"),
        ]
        return (ranked or cards)[0]

    def folder(self, model_id: str, version: str) -> Path:
        """Where a version lies; raises like `card`."""
        versions = self.versions(model_id)
        if not versions:
            raise self._unknown(model_id)
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

    def archive(self, model_id: str, version: str) -> ModelCard:
        """Takes a version out of the candidates; idempotent. Raises ConflictError for the deployed one."""
        card = self.card(model_id, version)
        if card.status == "deployed":
            raise ConflictError(
                f"version {version} of {model_id} is deployed; deploy another one first, then archive it"
            )
        if card.status != "archived":
            line = json.dumps({"version": version, "at": iso(utc_now())}) + "\n"
            with (self.root / model_id / ARCHIVED_FILE).open("a", encoding="utf-8") as stream:
                stream.write("\n" + line if stream.tell() else line)  # a torn line before it ends here
                stream.flush()
                os.fsync(stream.fileno())
        return self.card(model_id, version)

    def _archived(self, model_id: str) -> set[str]:
        try:
            lines = (self.root / model_id / ARCHIVED_FILE).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return set()
        return {json.loads(line)["version"] for line in lines if line.endswith("}")}

    def _unknown(self, model_id: str) -> ModelNotFoundError:
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
