"""Followed log: what a submission on Ray prints, at the end of its job's own worker.log, each byte once.

Where the submission's first byte stands in the file is in its metadata on the cluster, so that the next life of the
service goes on where this one ended. The newest part is kept, as of a worker of this machine (`jobs.bounded_log`).
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from common_lib.exceptions import PlatformError
from ml_workbench_service.integrations.ray_jobs import RayJobs, Submission
from ml_workbench_service.jobs.bounded_log import keep_newest

PAUSE_S = 2.0
"""Before a stream that broke off is begun anew."""
OUT_OF_REACH = b"[the rest of this log is out of reach: its node is gone]\n"

log = logging.getLogger(__name__)


class FollowedLog:
    """The log of one submission.

    Args:
        file: the job's worker.log; what other attempts printed stands before `begins_at`.
        most_bytes: that stay of it.
    """

    def __init__(self, jobs: RayJobs, file: Path, *, begins_at: int, most_bytes: int) -> None:
        self._jobs, self._file, self._most_bytes = jobs, file, most_bytes
        self._begins_at = begins_at
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, found: Submission) -> None:
        """Takes what comes from now on, in a thread; begun once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(found,), name="log of a Ray job", daemon=True)
            self._thread.start()

    def finish(self, found: Submission) -> None:
        """Takes the rest of an ended submission's log, as far as its node can be reached."""
        self._done.set()
        if found.driver_node_id is None:
            return
        try:
            with self._jobs.log(found, follow=False) as pieces:
                self._take_all(pieces)
        except (PlatformError, OSError) as error:
            log.warning("the end of %s's log is lost: %s", found.submission_id, error)
            with suppress(OSError):
                self._append(OUT_OF_REACH)

    def stop(self) -> None:
        """Takes nothing any more; another life of the service goes on."""
        self._done.set()

    def _run(self, found: Submission) -> None:
        while not self._done.is_set():
            try:
                with self._jobs.log(found, follow=True) as pieces:
                    self._take_all(pieces)
            except (PlatformError, OSError) as error:
                log.debug("the log of %s broke off: %s", found.submission_id, error)
            time.sleep(PAUSE_S)

    def _take_all(self, pieces: Iterator[bytes]) -> None:
        """Pieces from the log's first byte on; those that stand in the file already are passed over."""
        position = 0
        for piece in pieces:
            with self._lock:
                known = max(self._num_taken() - position, 0)
                if known < len(piece):
                    self._append(piece[known:])
            position += len(piece)

    def _num_taken(self) -> int:
        return max(self._file.stat().st_size - self._begins_at, 0) if self._file.exists() else 0

    def _append(self, piece: bytes) -> None:
        if not self._file.parent.is_dir():  # the job was deleted
            return
        with self._file.open("ab") as file:
            file.write(piece)
        try:
            keep_newest(self._file, most_bytes=self._most_bytes)
        except OSError as error:
            log.debug("%s cannot be kept short while its job runs: %s", self._file, error)
