"""Storage: what the system says of a disk as the platform's errors, and folders that must stay what they were.

A folder that is kept (`keep`) has a file with a random word in it. Whoever makes a folder below it, or opens a file
there for writing, asks first whether it is still that folder: after it was removed, or its disk was taken away, the
same path would be made anew somewhere else, and what is written there is seen by nobody once the disk is back.
"""

import errno
import os
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from common_lib.exceptions import StorageError, StorageFullError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
WORD_FILE = ".folder"
WORD_VARIABLE = "ML_WORKBENCH_FOLDER_WORDS"
NUM_WORD_BYTES = 16
NOWHERE = (-1, -1)
RETRY_S, FULL_RETRY_S = 10, 60


@dataclass
class _Kept:
    """A folder as it was found: its word, and the device and number that are quicker to ask for."""

    path: str
    word: bytes
    place: tuple[int, int]


class FolderGoneError(OSError):
    """A kept folder was removed, or its disk was taken away."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            errno.ESTALE,
            f"the folder {folder.name} is not the one that the service was started with: it was removed, or its disk "
            "was taken away. Nothing is written until it is back; bring it back, or stop the service and start it anew",
        )


_kept: dict[str, _Kept] = {}


def storage_error(error: OSError | sqlite3.Error) -> StorageError:
    """What to answer where a file or a database failed: 507 where there is no room, else 503; both with a next step."""
    if isinstance(error, FolderGoneError):
        return StorageError(str(error.strerror), retry_after_s=RETRY_S)
    if is_full(error):
        return StorageFullError(
            "the disk is full, and nothing was left half-done: free some space under STATE_DIR, MODEL_REGISTRY_PATH "
            "and the folder for temporary files, then try again",
            retry_after_s=FULL_RETRY_S,
        )
    name = errno.errorcode.get(getattr(error, "errno", None) or 0) or getattr(error, "sqlite_errorname", None)
    return StorageError(
        f"a file of the service cannot be read or written ({name or type(error).__name__}); GET /health/ready says "
        "which folder is away, see to its disk and its rights, then try again",
        retry_after_s=RETRY_S,
    )


def is_full(error: BaseException) -> bool:
    """Whether there was no room."""
    return getattr(error, "errno", None) in FULL or getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"


def keep(folder: Path) -> None:
    """From now on nothing is made below this folder unless it is still the same one; for who owns it.

    Raises:
        OSError: it is not there, or cannot be written.
    """
    path = os.fspath(folder)
    word = _word_in(path)
    if word is None:
        word = secrets.token_hex(NUM_WORD_BYTES).encode()
        staged = folder / f"{WORD_FILE}.{os.getpid()}"
        staged.write_bytes(word)
        staged.replace(folder / WORD_FILE)
    _kept[path] = _Kept(path, word, _place(path))


def keep_as_child(*folders: Path) -> None:
    """The same in a child of the owner, which has told it the word (`told_to_children`): the folder may be gone before
    the child gets here. A process that nobody told anything keeps the folder as it finds it, if it has a word; so does
    one that was told of another folder, as a child's child may be that works in a place of its own."""
    lines = os.environ.get(WORD_VARIABLE, "").splitlines()
    told = {path: word for word, _, path in (line.partition(":") for line in lines)}
    for path in map(os.fspath, folders):
        word = told[path].encode() if path in told else _word_in(path)
        if word is not None:
            _kept[path] = _Kept(path, word, NOWHERE)


def told_to_children(*folders: Path) -> dict[str, str]:
    """The variable that children of the owner get: a line for each of these that is kept."""
    kept = [_kept[path] for path in map(os.fspath, folders) if path in _kept]
    return {WORD_VARIABLE: "\n".join(f"{each.word.decode()}:{each.path}" for each in kept)} if kept else {}


def let_go(folder: Path) -> None:
    """Nobody keeps it any more."""
    _kept.pop(os.fspath(folder), None)


def check_there(path: Path) -> None:
    """Raises FolderGoneError where the kept folder above this path is gone, or another one stands at its place."""
    text = os.path.abspath(path) if _kept else ""
    for each in _kept.values():
        if text.startswith(each.path) and text[len(each.path) :][:1] in ("", "/") and not _is_same(each):
            raise FolderGoneError(Path(each.path))


def check_there_now(path: Path) -> None:
    """The same, as the error that an answer has: StorageError."""
    try:
        check_there(path)
    except FolderGoneError as error:
        raise storage_error(error) from error


def make_folder(path: Path) -> None:
    """The folder and those above it, unless they are there; raises FolderGoneError as `check_there` does."""
    check_there(path)
    path.mkdir(parents=True, exist_ok=True)


def _is_same(kept: _Kept) -> bool:
    try:
        place = _place(kept.path)
    except OSError:
        return False
    if place == kept.place:
        return True
    if _word_in(kept.path) != kept.word:
        return False
    kept.place = place  # a file system that numbers its folders anew, or the disk is back
    return True


def _place(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _word_in(path: str) -> bytes | None:
    try:
        with open(os.path.join(path, WORD_FILE), "rb") as file:
            return file.read(100) or None
    except OSError:
        return None
