"""Folder listing: the names in a folder, read again only once the folder has changed; whoever changes it.

A folder's time of change tells of names that came or went, and is as coarse as the kernel's tick: a name that comes in
the same tick as the last one, after we have looked, leaves it as it was. So a listing is trusted only once the folder
has been quiet for `QUIET_NS` (as git does it with its index); till then it is read each time.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

QUIET_NS = 2_000_000_000


@dataclass(frozen=True, eq=False)
class Listing:
    """What lies in a folder; the very same object as long as that is known to be so.

    Attributes:
        stamp: device, inode and time of the folder's last change; None where it is not there.
        is_quiet: whether it is kept: else the next look makes another.
    """

    names: frozenset[str]
    stamp: tuple[int, int, int] | None
    is_quiet: bool


NOWHERE = Listing(frozenset(), None, is_quiet=False)


class WatchedFolder:
    """One folder, which may not be there. For any threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = str(path)
        self._known = NOWHERE

    def look(self) -> Listing:
        """The names; one `stat` where nothing has changed."""
        now_ns = time.time_ns()  # before the look: who is held up between the two must not trust an old time
        try:
            stat = os.stat(self._place)
            stamp = (stat.st_dev, stat.st_ino, stat.st_mtime_ns)
            known = self._known
            if known.is_quiet and known.stamp == stamp:
                return known
            names = frozenset(os.listdir(self._place))
        except (FileNotFoundError, NotADirectoryError):
            return NOWHERE
        self._known = Listing(names, stamp, is_quiet=now_ns - stat.st_mtime_ns > QUIET_NS)
        return self._known
