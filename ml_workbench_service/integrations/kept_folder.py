"""Kept folder: whether STATE_DIR, or the model registry, is still there, can be written and has room.

It is looked at again and again. `open` keeps the folder (`common_lib.storage`): from then on nothing is made below it
once it is gone. Every look asks whether it is the same folder, and now and then writes a few bytes and has them on disk
(in STATE_DIR; in the registry it asks for the right alone, since whatever appears there makes every list look anew). A
disk that does not answer at all, as a network one may not, is told by the look that does not end.
"""

import logging
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Literal

from common_lib.storage import FolderGoneError, check_there, keep, let_go, storage_error
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.market import OutsideThing

LOOK_EVERY_S = 1.0
WRITE_EVERY_S = 10.0
HANGS_AFTER_S = 5.0
LITTLE_BYTES = 64 * 1024 * 1024
CANNOT_BE_WRITTEN = "cannot be written: nothing is published or deployed; see to its rights and its disk"
PROBE_FILE = ".written"
PROBE = b"x" * 4096
"""A block: less could find room where a block does not."""

State = Literal["ok", "degraded", "down"]

log = logging.getLogger(__name__)


class KeptFolder:
    """Watches one folder; `look` and `thing` may be called from different threads.

    Args:
        name: of the setting that says where it is.
        is_needed: whether the service cannot be without it: a few bytes are written into it to see that they can be.
        now: the time of day, in UTC.
    """

    def __init__(
        self, folder: Path, name: str, *, is_needed: bool = True, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._folder = folder
        self._name = name
        self._is_needed = is_needed
        self._now = now
        self._fault = ""
        self._free_bytes = 0
        self._last_ok_at: datetime | None = None
        self._looking_since_s: float | None = None
        self._written_s = float("-inf")

    @property
    def is_gone(self) -> bool:
        """Whether it was removed, or its disk was taken away."""
        try:
            check_there(self._folder)
        except FolderGoneError:
            return True
        return False

    def open(self) -> None:
        """Makes it where there is none, and keeps it; raises StorageError where one that is needed cannot be written.

        One that can only be read is not kept: nothing would be made there.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            keep(self._folder)
        except OSError as error:
            if self._is_needed:
                raise storage_error(error) from error
        self.look()

    def close(self) -> None:
        """It is nobody's any more."""
        let_go(self._folder)

    def look(self) -> None:
        """One look; what is found is in `thing`, and what has changed in the log."""
        self._looking_since_s = time.monotonic()
        try:
            fault = self._found()
        finally:
            self._looking_since_s = None
        if fault != self._fault:
            if fault:
                log.error("%s: %s", self._name, fault)
            else:
                log.warning("%s is there again and can be written", self._name)
        self._fault = fault

    def thing(self) -> OutsideThing:
        """For readiness; never waits for the disk."""
        since_s = self._looking_since_s
        if since_s is not None and time.monotonic() - since_s > HANGS_AFTER_S:
            detail = f"its disk has not answered for {time.monotonic() - since_s:.0f} s; see to it, or to its network"
            return OutsideThing(mode="folder", state="down", detail=detail, last_ok_at=self._last_ok_at)
        if self._fault:
            state: State = "degraded" if self._fault == CANNOT_BE_WRITTEN else "down"
            return OutsideThing(mode="folder", state=state, detail=self._fault, last_ok_at=self._last_ok_at)
        room = f"can be written, {self._free_bytes / 1e9:.1f} GB free"
        if self._free_bytes < LITTLE_BYTES:
            room = f"only {self._free_bytes / 1e6:.0f} MB are free: make room before it is full"
        state = "ok" if self._free_bytes >= LITTLE_BYTES else "degraded"
        return OutsideThing(mode="folder", state=state, detail=room, last_ok_at=self._last_ok_at)

    def _found(self) -> str:
        """What is wrong, or nothing."""
        try:
            check_there(self._folder)
            room = os.statvfs(self._folder)
            self._free_bytes = room.f_bavail * room.f_frsize
            if not self._is_needed and (room.f_flag & os.ST_RDONLY or not os.access(self._folder, os.W_OK | os.X_OK)):
                return CANNOT_BE_WRITTEN
            if self._is_needed and (self._fault or time.monotonic() - self._written_s >= WRITE_EVERY_S):
                self._write()
        except OSError as error:
            return storage_error(error).message
        self._last_ok_at = self._now()
        return ""

    def _write(self) -> None:
        path = self._folder / PROBE_FILE
        try:
            with path.open("wb") as file:
                file.write(PROBE)
                file.flush()
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)
        self._written_s = time.monotonic()
