"""Registry listing: which versions lie in a registry's folders, and what lists filter and sort by; kept in memory.

A look costs one `stat` a model where nothing has changed, whoever publishes, archives or removes
(`jobs.folder_listing`). A version's card is known again by its size and time.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from packaging.version import Version

from common_lib.exceptions import ConflictError
from ml_workbench_service.contracts.contract import NAME_PATTERN, VERSION_PATTERN
from ml_workbench_service.jobs.folder_listing import NOWHERE, Listing, WatchedFolder

CARD_FILE = "card.json"
LARGEST_NUMBER = 999_999
"""Of a part of a version."""
Stamp = tuple[int, int]
"""Size and time of a file's last change."""


@dataclass(frozen=True)
class CardFacts:
    """What lists filter and sort by."""

    version: str
    type: str
    symbols: tuple[str, ...]
    created_at: str


@dataclass(frozen=True, eq=False)
class ModelFolder:
    """A model's folder, as of one listing: the stamps of its versions' cards, newest version first."""

    listing: Listing = NOWHERE
    cards: Mapping[str, Stamp] = field(default_factory=dict)
    facts: dict[str, CardFacts | None] = field(default_factory=dict)
    is_whole: bool = True  # whether no version's folder is without its card yet


class RegistryListing:
    """Looks into the folders below one root. For any threads."""

    def __init__(self, root: Path) -> None:
        self._path = root
        self._root = WatchedFolder(root)
        self._named: tuple[Listing, tuple[str, ...]] = (NOWHERE, ())
        self._folders: dict[str, WatchedFolder] = {}
        self._homes: dict[str, ModelFolder] = {}

    def names(self) -> tuple[str, ...]:
        """What may be a model, in order; one of which every version was purged is among them."""
        listing = self._root.look()
        as_of, found = self._named
        if as_of is listing:
            return found
        found = tuple(sorted(filter(re.compile(NAME_PATTERN).fullmatch, listing.names)))
        for gone in set(self._homes) - set(found):
            self._homes.pop(gone, None)
            self._folders.pop(gone, None)
        self._named = (listing, found)
        return found

    def home(self, model_id: str) -> ModelFolder:
        """What lies in a model's folder; empty where there is none."""
        folder = self._folders.get(model_id)
        if folder is None:
            if not re.fullmatch(NAME_PATTERN, model_id):
                return ModelFolder()
            folder = WatchedFolder(self._path / model_id)
        listing, known = folder.look(), self._homes.get(model_id)
        if known is not None and known.listing is listing:
            return known
        home = _home_of(folder.path, listing, known)
        if listing.is_quiet and home.is_whole:
            self._folders[model_id], self._homes[model_id] = folder, home
        return home


def stamp_of(file: Path) -> Stamp | None:
    """None where it is not there."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size, found.st_mtime_ns


def read_facts(file: Path) -> CardFacts | None:
    """A card's; None where it cannot be read: whoever reads the whole of it says what is wrong."""
    try:
        plain = orjson.loads(file.read_bytes())
        return CardFacts(plain["version"], plain["type"], tuple(plain["symbols"]), plain["created_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def _home_of(path: Path, listing: Listing, known: ModelFolder | None) -> ModelFolder:
    """Looks for the versions; what was read of cards that are the same is kept."""
    folders = [each for each in listing.names if re.fullmatch(VERSION_PATTERN, each)]
    stamps = {each: stamp_of(path / each / CARD_FILE) for each in sorted(folders, key=Version, reverse=True)}
    cards = {version: stamp for version, stamp in stamps.items() if stamp is not None}
    before = {} if known is None else known.facts
    same = {each: facts for each, facts in before.items() if known is not None and known.cards[each] == cards.get(each)}
    return ModelFolder(listing, cards, same, is_whole=len(cards) == len(folders))
