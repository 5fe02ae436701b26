"""Asynchronous checkpoints: a thread puts them on disk while the agent goes on, and says whose entries are safe there.

A checkpoint costs some milliseconds of waiting for the disk; an agent that waited for each could not apply a record
within milliseconds of its publication. So a thread saves the newest checkpoint as soon as the one before is on disk,
and an entry is acknowledged only once a checkpoint that holds it is there.
"""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.contracts.queue import Delivery

RETRY_PAUSE_S = 0.2
PERIOD_S = 0.05
"""Between two saves: each costs the disk two syncs, and the processor as much as some ten entries."""
MOST_UNSAVED = 2048
"""Entries applied ahead of the disk; what a restart would have to apply again."""

log = logging.getLogger(__name__)


class CheckpointWriter:
    """One thread that saves; its methods belong to one other thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed = threading.Condition()
        self._next: tuple[Checkpoint, list[Delivery]] | None = None
        self._safe: list[Delivery] = []
        self._num_unsaved = 0
        self._ended = False
        self._is_failing = self._is_urgent = False
        self._saved_at = -PERIOD_S
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    @property
    def num_unsaved(self) -> int:
        """Entries whose checkpoint is not on disk yet."""
        return self._num_unsaved

    def keep(self, checkpoint: Checkpoint, batch: Sequence[Delivery]) -> None:
        """Saves this checkpoint, which holds the batch and everything before it; returns at once."""
        with self._changed:
            entries = [*(self._next[1] if self._next else ()), *batch]
            self._next = (checkpoint, entries)
            self._num_unsaved += len(batch)
            self._changed.notify_all()

    def hurry(self) -> None:
        """Has what is unsaved saved without a pause, for somebody waits for all of it."""
        with self._changed:
            self._is_urgent = True
            self._changed.notify_all()

    def take_safe(self, *, timeout_s: float = 0.0) -> list[Delivery]:
        """Entries, in order, whose checkpoint has come to the disk since the last call; waits so long for some."""
        with self._changed:
            if not self._safe and self._num_unsaved and timeout_s > 0:
                self._changed.wait(timeout_s)
            safe, self._safe = self._safe, []
            return safe

    def end(self) -> None:
        """Saves the newest checkpoint, if the disk takes it at once, and stops."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._next is None and not self._ended:
                    self._changed.wait()
                if self._next is None:
                    return
                self._pause()
                checkpoint, entries = self._next
                self._next, self._is_urgent = None, False
            is_saved = self._save(checkpoint)
            with self._changed:
                if is_saved:
                    self._safe += entries
                    self._num_unsaved -= len(entries)
                elif not self._ended:  # the next one holds these too
                    later = self._next
                    self._next = (checkpoint, entries) if later is None else (later[0], entries + later[1])
                self._changed.notify_all()

    def _pause(self) -> None:
        """Until the save before this one is old enough: entries that come meanwhile share one save. Needs the lock."""
        until = self._saved_at + PERIOD_S
        while not self._ended and not self._is_urgent and (wait_s := until - time.monotonic()) > 0:
            self._changed.wait(wait_s)

    def _save(self, checkpoint: Checkpoint) -> bool:
        try:
            checkpoint.save(self._folder)
        except OSError as error:
            if not self._is_failing:
                log.warning("agent %s waits for its disk: %s", checkpoint.agent_id, error)
            self._is_failing = True
            time.sleep(RETRY_PAUSE_S)
            return False
        if self._is_failing:
            log.info("agent %s has its disk again", checkpoint.agent_id)
        self._is_failing = False
        self._saved_at = time.monotonic()
        return True
