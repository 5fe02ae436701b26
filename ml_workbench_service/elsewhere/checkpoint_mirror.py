"""Checkpoint mirror: what a workflow leaves in its checkpoint folder here is left on the control plane too.

A thread looks for files that have changed and sends each whole, the newest alone: a training that saves faster than
the network carries leaves some out. The events that were appended before a file was looked at are in the log before it
is sent, so that whoever goes on from it repeats nothing that the log lacks. `trials.jsonl` goes its own way, a line at
a time (`trial_log`), and hidden files, which are on their way to another name, are left alone.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.work_elsewhere import KeptFiles
from ml_workbench_service.elsewhere.connection import JobConnection
from ml_workbench_service.jobs.trial_log import TRIALS_FILE
from ml_workbench_service.jobs.workers_folder import AttemptLostError

LOOK_EVERY_S = 1.0
Stamp = tuple[int, int, int]

log = logging.getLogger(__name__)


class CheckpointMirror:
    """Of one attempt's folder.

    Args:
        folder: of this machine; empty.
        flush: has what was said before be in the log.
    """

    def __init__(self, connection: JobConnection, folder: Path, flush: Callable[[], None]) -> None:
        self._connection = connection
        self._folder = folder
        self._flush = flush
        self._known: dict[str, Stamp] = {}
        self._done = threading.Event()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="checkpoint mirror", daemon=True)

    def fetch(self) -> None:
        """What a predecessor left, put here."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for each in self._connection.get("checkpoint", KeptFiles).files:
            self._connection.get_file(f"checkpoint/{each.path}", self._folder / each.path)
        self._known = self._found()

    def start(self) -> None:
        """Looks every second from now on."""
        self._thread.start()

    def leave(self) -> None:
        """Sends what has changed, now; raises AttemptLostError."""
        with self._turn:
            found = self._found()
            for path in sorted(self._known.keys() - found.keys()):
                self._connection.delete(f"checkpoint/{path}")
                del self._known[path]
            changed = [path for path, stamp in found.items() if self._known.get(path) != stamp]
            if not changed:
                return
            self._flush()
            for path in sorted(changed):
                try:
                    self._connection.put_file(f"checkpoint/{path}", self._folder / path)
                except FileNotFoundError:  # cleared meanwhile: the next look deletes it there
                    continue
                self._known[path] = found[path]

    def close(self) -> None:
        """Looks no more."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(timeout=LOOK_EVERY_S)

    def _run(self) -> None:
        while not self._done.wait(LOOK_EVERY_S):
            try:
                self.leave()
            except AttemptLostError:
                return
            except (PlatformError, OSError) as error:
                log.warning("a checkpoint was not left, the next look tries again: %s", error)

    def _found(self) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        for file in self._folder.rglob("*"):
            parts = file.relative_to(self._folder).parts
            if parts == (TRIALS_FILE,) or any(part.startswith(".") for part in parts):
                continue
            try:
                if file.is_file():
                    stat = file.stat()
                    found["/".join(parts)] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            except FileNotFoundError:
                continue
        return found
