"""Guarded reading: the one way in which files of the service's own state are parsed; one bad thing stops one thing.

What cannot be parsed is set aside: the caller gets None and goes on without it, the log says so once, and readiness
names the file (`SET_ASIDE`). A last line that a kill has cut off is no damage, and is passed over in silence.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")

NONSENSE = (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError)
"""What a parser raises over bytes that it did not write; pydantic's, JSON's and Unicode's errors are ValueErrors."""
MOST_NAMED = 1_000
"""Files that are remembered; the log has all of them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DamagedFile:
    """One file of which something was set aside.

    Attributes:
        reason: in words.
        inode: of the file then: another one in its place is another file.
    """

    path: Path
    reason: str
    inode: int


class SetAsideFiles:
    """What this process has set aside. For any threads."""

    def __init__(self) -> None:
        self._files: dict[Path, DamagedFile] = {}
        self._lock = threading.Lock()

    def note(self, path: Path, reason: str) -> None:
        """Remembers a file with the first reason, and says so in the log: it may be read a thousand times."""
        each = DamagedFile(path, reason, _inode(path))
        with self._lock:
            known = self._files.get(path)
            if (known is not None and known.inode == each.inode) or len(self._files) >= MOST_NAMED:
                return
            self._files[path] = each
        log.error("%s is set aside: %s; what else there is goes on", name_of(path), reason)

    def mended(self, path: Path) -> None:
        """Forgets a file that could be read again."""
        if path in self._files:
            with self._lock:
                self._files.pop(path, None)

    def named(self) -> tuple[DamagedFile, ...]:
        """Those that are still there, in order."""
        with self._lock:
            for path, each in list(self._files.items()):
                if _inode(path) != each.inode:
                    del self._files[path]
            return tuple(sorted(self._files.values(), key=lambda each: each.path))


SET_ASIDE = SetAsideFiles()
"""Of this process: what reads state is made in many places, and readiness asks once."""


def guarded(path: Path, parse: Callable[[bytes], Found]) -> Found | None:
    """What `parse` makes of a whole file; None where there is none, or where it was set aside."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        SET_ASIDE.note(path, f"it cannot be read ({error.strerror})")
        return None
    try:
        found = parse(content)
    except NONSENSE as error:
        SET_ASIDE.note(path, f"it makes no sense ({type(error).__name__}); restore it from a backup, or move it away")
        return None
    SET_ASIDE.mended(path)
    return found


def guarded_line(path: Path, line: bytes, parse: Callable[[bytes], Found]) -> Found | None:
    """What `parse` makes of one line of a file; None where it was set aside, or cut off by a kill."""
    try:
        return parse(line)
    except NONSENSE as error:
        if not _is_torn(line):
            SET_ASIDE.note(path, f"it has a line that makes no sense ({type(error).__name__}), which is passed over")
        return None


def guarded_lines(path: Path, lines: Iterable[bytes], parse: Callable[[bytes], Found]) -> Iterator[Found]:
    """What `parse` makes of the lines of a file that make sense."""
    for line in lines:
        found = guarded_line(path, line, parse)
        if found is not None:
            yield found


def json_object(content: bytes | str) -> dict[str, Any]:
    """A JSON object; raises ValueError for anything else, also for one that is nested too deep to be read."""
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def name_of(path: Path) -> str:
    """The end of a path, which says what it belongs to and not where the service lies."""
    return "/".join(path.parts[-3:])


def _is_torn(line: bytes) -> bool:
    """Whether it is the beginning of a line: every line of ours is one JSON object."""
    return line.startswith(b"{") and not line.rstrip().endswith(b"}")


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
