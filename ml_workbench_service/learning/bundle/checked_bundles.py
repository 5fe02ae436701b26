"""Checked bundles: cards and files of versions as they were published and signed; what is not so is set aside.

    card          signature → manifest's digest → the card's own digest → the ids in it are the folder's
    other files   their digests in that manifest
    a bundle      every file, before it is loaded or deployed (`verify`)

What was checked once is known again by its files' identities (size, times of change, inode), and by those of the keys:
a list costs six `stat` a version. A version that fails is set aside with the reason (`set_aside`), and others go on.
"""

import hashlib
import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from common_lib.exceptions import BundleDamagedError, BundleTamperedError, PlatformError
from ml_workbench_service.contracts.models import ModelCard, SetAside
from ml_workbench_service.jobs.guarded_reading import json_object
from ml_workbench_service.learning.bundle.listing import CARD_FILE
from ml_workbench_service.learning.bundle.manifest import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    listed_in,
    no_follow,
    read_plain,
    unreadable,
    verify,
)
from ml_workbench_service.learning.bundle.signatures import Signatures

MOST_CARDS = 1_000
"""Kept in memory: some 70 KB each."""
OF_A_CARD = (CARD_FILE, MANIFEST_FILE, SIGNATURE_FILE)

Identity = tuple[int, int, int, int] | None
"""Size, times of the content's and of the entry's last change in nanoseconds, inode; None where there is no file."""
Key = tuple[str, str]
"""A model's id, and a version."""


@dataclass
class _Seen:
    """What came of the last look at a version."""

    identity: object
    fault: BundleDamagedError | None = None
    files: dict[str, Identity] = field(default_factory=dict)  # further ones that are as they are listed


class CheckedBundles:
    """The versions of one registry. For any threads.

    Args:
        root: of the registry.
        signatures: None: whoever writes into the registry is trusted (programs without a service).
    """

    def __init__(self, root: Path, signatures: Signatures | None) -> None:
        self._root = root
        self.signatures = signatures
        self._seen: dict[Key, _Seen] = {}
        self._faults: dict[Key, BundleDamagedError] = {}
        self._cards: OrderedDict[Key, tuple[object, ModelCard]] = OrderedDict()
        self._keeping = threading.Lock()

    def card(self, model_id: str, version: str) -> ModelCard:
        """The card as it was published, with digest and size; the `MOST_CARDS` that were asked for last are kept.

        Raises:
            BundleDamagedError, BundleTamperedError, BundleUnsignedError: the version is set aside.
        """
        return self._card(model_id, version, is_kept=True)

    def look(self, model_id: str, version: str) -> None:
        """Checks a card where something has changed since the last look, and keeps nothing of it.

        Raises:
            BundleDamagedError: as `card`.
        """
        seen = self._seen.get((model_id, version))
        if seen is None or seen.identity != self.identity(model_id, version):
            self._card(model_id, version, is_kept=False)

    def _card(self, model_id: str, version: str, *, is_kept: bool) -> ModelCard:
        key = (model_id, version)
        identity = self.identity(model_id, version)
        with self._keeping:
            seen, kept = self._seen.get(key), self._cards.get(key)
            if kept is not None and kept[0] == identity:
                self._cards.move_to_end(key)
                return kept[1]
        is_known = seen is not None and seen.identity == identity
        if seen is not None and is_known and seen.fault is not None:
            raise type(seen.fault)(seen.fault.message, details=seen.fault.details)
        try:
            card = self._read(model_id, version, is_checked=is_known)
        except BundleDamagedError as fault:
            # What the system refused (too many open files) is looked at again: it may be no fault of the version.
            self._note(key, _Seen(None if isinstance(fault.__cause__, OSError) else identity, fault))
            raise
        self._note(
            key, seen if seen is not None and is_known else _Seen(identity), (identity, card) if is_kept else None
        )
        return card

    def file(self, model_id: str, version: str, name: str) -> Path | None:
        """Another file of the version, which is as the manifest lists it; None where that lists none.

        Raises:
            BundleDamagedError: it is not, or the version is set aside already; raises as `card`.
        """
        self.card(model_id, version)
        folder = self._root / model_id / version
        seen, identity = self._seen.get((model_id, version)), _identity_of(f"{folder}/{name}")
        if seen is not None and identity is not None and seen.files.get(name) == identity:
            return folder / name
        try:
            listed = listed_in(read_plain(folder / MANIFEST_FILE)).get(name)
            if listed is None:
                return None
            with open(folder / name, "rb", opener=no_follow) as stream:
                is_whole = hashlib.file_digest(stream, "sha256").hexdigest() == listed["sha256"]
        except (OSError, ValueError) as error:
            raise _damaged(model_id, version, name) from error
        if not is_whole:
            raise _damaged(model_id, version, name)
        if seen is not None:
            seen.files[name] = identity
        return folder / name

    def verify(self, model_id: str, version: str) -> str:
        """Checks signature and every file; the digest.

        Raises:
            BundleDamagedError: raises as `card`; the version is set aside until its files change.
        """
        identity, folder = self.identity(model_id, version), self._root / model_id / version
        try:
            digest = verify(folder)
            if digest != self.card(model_id, version).digest:
                raise unreadable(folder)  # changed between the two looks
        except BundleDamagedError as fault:
            self._note((model_id, version), _Seen(identity, fault))
            raise
        return digest

    def put_aside(self, model_id: str, version: str, fault: BundleDamagedError) -> None:
        """Sets a version aside whose files somebody else has found damaged."""
        self._note((model_id, version), _Seen(self.identity(model_id, version), fault))

    def forget(self, model_id: str, version: str) -> None:
        """Gives back what was kept of a version that is gone, or that is to be looked at anew."""
        with self._keeping:
            self._cards.pop((model_id, version), None)
            self._seen.pop((model_id, version), None)
            self._faults.pop((model_id, version), None)

    def set_aside(self) -> tuple[SetAside, ...]:
        """The versions that failed at their last look, in order."""
        with self._keeping:
            found = list(self._faults.items())
        return tuple(set_aside(*key, fault) for key, fault in sorted(found, key=lambda each: each[0]))

    def _note(self, key: Key, seen: _Seen, card: tuple[object, ModelCard] | None = None) -> None:
        with self._keeping:
            self._seen[key] = seen
            self._cards.pop(key, None)
            self._faults.pop(key, None)
            if seen.fault is not None:
                self._faults[key] = seen.fault
            if card is None:
                return
            self._cards[key] = card
            while len(self._cards) > MOST_CARDS:
                self._cards.popitem(last=False)

    def identity(self, model_id: str, version: str) -> object:
        """Of the files that a card's check depends on."""
        home = f"{self._root}/{model_id}"
        folder = f"{home}/{version}/"
        of_keys = None if self.signatures is None else self.signatures.trusted.stamp
        are_links = os.path.islink(home), os.path.islink(folder[:-1])
        return (of_keys, are_links, *[_identity_of(folder + name) for name in OF_A_CARD])

    def _read(self, model_id: str, version: str, *, is_checked: bool) -> ModelCard:
        folder = self._root / model_id / version
        try:
            _check_plain(folder)
            manifest, content = read_plain(folder / MANIFEST_FILE), read_plain(folder / CARD_FILE)
            listed = listed_in(manifest)
            digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
        except (OSError, ValueError) as error:
            raise unreadable(folder) from error
        if self.signatures is not None and not is_checked:
            try:
                self.signatures.check(folder, model_id, version, digest)
            except OSError as error:
                raise unreadable(folder) from error
        if hashlib.sha256(content).hexdigest() != listed.get(CARD_FILE, {}).get("sha256"):
            raise _damaged(model_id, version, CARD_FILE)
        try:
            size = sum(int(each["size"]) for each in listed.values()) + len(manifest)
            card = ModelCard.model_validate({**json_object(content), "digest": digest, "size_bytes": size})
        except (ValueError, KeyError, TypeError) as error:
            raise unreadable(folder) from error
        check_ids(card, model_id, version)
        return card.by_current_rules()


def check_ids(card: ModelCard, model_id: str, version: str) -> None:
    """Raises BundleTamperedError where a card speaks of another model or version than its folder."""
    if (card.id, card.version) != (model_id, version):
        raise BundleTamperedError(
            f"the bundle in {model_id}/{version} is another one's, {card.id} {card.version}, so that it is not served; "
            "put it back to its own place, or train this version again"
        )


def set_aside(model_id: str, version: str, fault: PlatformError) -> SetAside:
    """How a version that is not served is named in lists and in readiness."""
    state = fault.state if isinstance(fault, BundleDamagedError) else "damaged"
    return SetAside(model_id=model_id, version=version, state=state, reason=fault.message)


def _damaged(model_id: str, version: str, name: str) -> BundleDamagedError:
    return BundleDamagedError(
        f"{name} of {model_id}/{version} is not what was published; restore it from a backup or train it again",
        details={"files": [name]},
    )


def _check_plain(folder: Path) -> None:
    """Raises OSError where the folder, or the model's, is a link to another place."""
    for each in (folder, folder.parent):
        if not stat.S_ISDIR(os.lstat(each).st_mode):
            raise OSError(f"{each.name} is no folder of its own")


def _identity_of(path: str) -> Identity:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
