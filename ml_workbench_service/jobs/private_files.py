"""Private files: what the service writes is for its own user alone, folders 0700 and files 0600.

A new file gets it by the umask, which children inherit; what an earlier version left is narrowed at the start. A folder
that holds other things than ours (logs in /var/log) stays as it is, and only our files in it are narrowed.
"""

import logging
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

OTHERS = 0o077

log = logging.getLogger(__name__)


def keep_private() -> None:
    """From now on what this process and its children make is their user's alone."""
    os.umask(OTHERS)


def narrow(folders: Iterable[Path], *, log_dir: Path, log_names: Iterable[str]) -> threading.Thread:
    """Narrows folders that are all ours, and our own files in the one of the logs; the rest follows in a thread.

    What belongs to somebody else is left, and said once.
    """
    ours = list(folders)
    for each in ours:
        _narrow_one(each)  # whoever cannot pass this one reaches nothing below it
    logs = [path for path in _entries(log_dir) if path.name.startswith(tuple(log_names))]
    for path in logs:
        _narrow_one(path)
    if len(logs) == len(list(_entries(log_dir))):
        _narrow_one(log_dir)
    thread = threading.Thread(target=_narrow_below, args=(ours,), name="narrowing of old files", daemon=True)
    thread.start()
    return thread


def _narrow_below(folders: list[Path]) -> None:
    num_left = 0
    for folder in folders:
        for place, names, files in os.walk(folder):
            num_left += sum(not _narrow_one(Path(place, name)) for name in (*names, *files))
    if num_left:
        log.warning("%d files of the service belong to another user, and are left as open as they are", num_left)


def _narrow_one(path: Path) -> bool:
    """Whether it is nobody else's now; one that is gone by now is."""
    try:
        found = path.lstat()
        is_plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
        if is_plain and found.st_mode & OTHERS:
            path.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return
