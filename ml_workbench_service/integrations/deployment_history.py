"""Deployment history: per model one append-only file; the last live line is what is served.

    <registry>/<model_id>/deployments.jsonl     one Deployment a line, whole; the newest line of an id holds

Writers hold a file lock per model, so that compare-and-swap is one step even for two processes on one registry. A torn
last line (a kill in the middle of a write) is skipped, and the next writer begins on a line of its own. A live line
ends the one before it by itself: readers hold no lock, and a file system may show them the first half of a write.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import is_not
from pathlib import Path

from common_lib.exceptions import ConflictError, DeploymentNotFoundError
from common_lib.storage import make_folder
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.jobs.durable_files import append_line
from ml_workbench_service.jobs.file_lock import locked
from ml_workbench_service.jobs.folder_listing import NOWHERE, Listing, WatchedFolder
from ml_workbench_service.jobs.guarded_reading import guarded_lines

HISTORY_FILE = "deployments.jsonl"
LOCK_TIMEOUT_S = 15.0
TAIL_BYTES = 512
WATCH_S = 0.01
MOST_SEEN = 1024
LOOK_AGAIN_S = 5.0


@dataclass(frozen=True)
class _Folded:
    """What a model's file says, up to a size; never changed, so that readers need no lock."""

    stamp: tuple[int, int, int] = (0, 0, 0)  # inode, size, time of the last change in nanoseconds
    num_read: int = 0  # bytes of whole lines
    tail: bytes = b""  # the last of these bytes, by which the file is known again
    by_id: Mapping[str, Deployment] = field(default_factory=dict)  # in the order of their first lines
    live: Deployment | None = None


NOTHING = _Folded()


class DeploymentHistory:
    """Who served when, for every model of one registry. Only what was appended since the last look is read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cache: dict[str, _Folded] = {}
        self._root = WatchedFolder(root)
        self._homes: dict[str, WatchedFolder] = {}
        self._files: dict[str, str] = {}  # as text: pathlib's look costs twice as much
        self._sorted: tuple[tuple[_Folded, ...], tuple[Deployment, ...]] = ((), ())
        self._deployed: tuple[Listing, float, list[str]] = (NOWHERE, 0.0, [])
        self._num_appended = 0
        self._seen: dict[str, tuple[float, Deployment | None]] = {}
        self.on_append: Callable[[], None] = lambda: None
        """Told of each line that this process has written."""

    def of(self, model_id: str) -> list[Deployment]:
        """A model's deployments as they stand now, oldest first."""
        return list(self._folded(model_id).by_id.values())

    def everything(self) -> list[Deployment]:
        """All models' deployments, newest first."""
        folded = tuple(filter(_has_any, map(self._folded, self.names())))
        as_of, found = self._sorted
        if len(as_of) != len(folded) or any(map(is_not, as_of, folded)):
            every = [each for model in folded for each in model.by_id.values()]
            found = tuple(sorted(every, key=lambda each: (each.created_at, each.id), reverse=True))
            self._sorted = (folded, found)
        return list(found)

    def names(self) -> list[str]:
        """Models that may have a deployment, in order. Who never was deployed is passed over while the root says
        nothing new, for a first line touches it; and looked at all the same after `LOOK_AGAIN_S`, for whoever copies
        files by hand.
        """
        listing, now_s = self._root.look(), time.monotonic()
        as_of, since_s, names = self._deployed
        if as_of is not listing or now_s - since_s > LOOK_AGAIN_S:
            names = [each for each in sorted(listing.names) if self._folded(each) is not NOTHING]
            self._deployed = listing, now_s, names
        return names

    def get(self, deployment_id: str) -> Deployment:
        """One deployment; raises DeploymentNotFoundError."""
        for each in self.everything():
            if each.id == deployment_id:
                return each
        raise DeploymentNotFoundError("no deployment of this id; GET /api/v1/deployments lists them")

    def live(self, model_id: str) -> Deployment | None:
        """What is served of a model, if anything."""
        return self._folded(model_id).live

    def live_lately(self, model_id: str) -> Deployment | None:
        """`live`, looked up at most once in `WATCH_S`: what a line of another process says is seen so much later, what
        this one appends at once. For answers, of which there are thousands a second.
        """
        now_s = time.monotonic()
        seen = self._seen.get(model_id)
        if seen is not None and now_s - seen[0] < WATCH_S:
            return seen[1]
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        num_appended, live = self._num_appended, self.live(model_id)
        if num_appended == self._num_appended:
            self._seen[model_id] = now_s, live
        return live

    def live_version(self, model_id: str) -> str | None:
        """The served version of a model, if any."""
        live = self.live(model_id)
        return live.version if live else None

    def append(self, *deployments: Deployment) -> None:
        """Writes the lines in one go and syncs them to disk; raises UnavailableError where it is full."""
        with self._writing():
            self._append(deployments[0].model_id, "\n".join(each.model_dump_json() for each in deployments))

    def take_back(self, deployment: Deployment) -> bool:
        """Removes the deployment's line where it is the newest, for which no room is needed; whether it was. For who
        holds the lock, and cannot write the line that would end it.

        Raises:
            OSError: the file cannot be written.
        """
        with self._writing():
            return self._take_back(deployment.model_id, deployment.model_dump_json())

    def refresh(self, model_id: str) -> None:
        """Looks for what others have written about a model: each look at a folder does."""

    def close(self) -> None:
        """Ends whatever follows other writers."""

    @contextmanager
    def locked(self, model_id: str) -> Iterator[None]:
        """Exclusive over threads and processes; for reading the live line and appending the next in one step.

        Raises:
            ConflictError: another deployment of this model is under way and takes its time.
        """
        home = self.root / model_id
        make_folder(home)
        busy = ConflictError(f"another deployment of {model_id} is under way; look at it, then try again")
        with locked(home / ".deployments.lock", timeout_s=LOCK_TIMEOUT_S, otherwise=busy):
            yield

    def _append(self, model_id: str, lines: str) -> None:
        home = self.root / model_id
        make_folder(home)
        if not (home / HISTORY_FILE).exists():
            with suppress(OSError):  # a full disk is told below
                (home / HISTORY_FILE).touch()
                os.utime(self.root)  # before the line: whoever looks after it finds the file
        append_line(home / HISTORY_FILE, lines)

    def _take_back(self, model_id: str, text: str) -> bool:
        line = text.encode() + b"\n"
        with (self.root / model_id / HISTORY_FILE).open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - len(line), 0))
            if file.read() != line:
                return False
            file.truncate(size - len(line))
            os.fsync(file.fileno())
        return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What was known before is known no more, whether or not the write went well."""
        try:
            yield
        finally:
            self._num_appended += 1  # whoever read before the line was there keeps nothing
            self._seen.clear()
            self.on_append()

    def _folded(self, model_id: str) -> _Folded:
        before = self._cache.get(model_id, NOTHING)
        home = self._homes.get(model_id) or self._homes.setdefault(model_id, WatchedFolder(self.root / model_id))
        if before is NOTHING and HISTORY_FILE not in home.look().names:
            return NOTHING
        file = self._files.get(model_id) or self._files.setdefault(model_id, str(home.path / HISTORY_FILE))
        try:
            stat = os.stat(file)
            if (stat.st_ino, stat.st_size, stat.st_mtime_ns) == before.stamp:
                return before
            begin = before.num_read - len(before.tail)
            with open(file, "rb") as stream:
                stream.seek(begin)
                news = stream.read(max(stat.st_size - begin, 0))
                if not news.startswith(before.tail):  # another file, such as one restored from a backup
                    before = NOTHING
                    stream.seek(0)
                    news = stream.read(stat.st_size)
        except FileNotFoundError:
            return NOTHING
        lines = news[len(before.tail) :].splitlines()
        # one torn by a kill: the deployment's next line, or its absence, tells the rest
        found = guarded_lines(home.path / HISTORY_FILE, lines, Deployment.model_validate_json)
        folded = _grown(before, news, found, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
        self._cache[model_id] = folded
        return folded


def _has_any(folded: _Folded) -> bool:
    return bool(folded.by_id)


def _grown(before: _Folded, news: bytes, found: Iterable[Deployment], stamp: tuple[int, int, int]) -> _Folded:
    """What was known, and the lines that came since; `news` begins with the tail of what was known."""
    by_id = dict(before.by_id)
    for each in found:
        if each.status == "live":
            by_id |= {
                old.id: old.model_copy(update={"status": "superseded", "ended_at": each.live_at})
                for old in by_id.values()
                if old.status == "live"
            }
        by_id[each.id] = each
    live = [each for each in by_id.values() if each.status == "live"]
    whole = news.rfind(b"\n") + 1  # a line without its end is read again
    return _Folded(
        stamp,
        num_read=before.num_read - len(before.tail) + whole,
        tail=news[max(whole - TAIL_BYTES, 0) : whole],
        by_id=by_id,
        live=live[-1] if live else None,
    )
