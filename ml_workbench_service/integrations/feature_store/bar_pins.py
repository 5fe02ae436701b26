"""Pins: which clock each file was read in, so that no later evidence moves rows that were read already.

One line of JSON a decision, appended; the newest line of a file holds. A line cut off by a kill or a full disk is
skipped, and the next one begins behind it; what cannot be written holds in memory alone, which the log says. A file is
known by its name and by the fingerprint of its beginning, which growing files keep. Who wants a file read anew deletes
its line.
"""

import hashlib
import logging
import os
import threading
from pathlib import Path

from common_lib.storage import make_folder
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.jobs.guarded_reading import guarded_lines

MOST_BYTES = 65_536
"""Of a file's beginning, that its fingerprint covers."""


log = logging.getLogger(__name__)


class Pin(Contract):
    """One file's clock, and how far it was read."""

    file: str
    num_bytes: int
    sha256: str
    time_zone: str
    is_end: bool = False
    until_ms: int  # the last time read, as the file's clock shows it


class PinStore:
    """The pins of one folder of bars, for several threads and processes.

    Args:
        path: where they are kept; None keeps them in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._pins: dict[str, Pin] = {}
        self._num_read = 0
        self._lock = threading.Lock()

    def of(self, file: Path) -> Pin | None:
        """The pin of this very file."""
        with self._lock:
            self._refresh()
            pin = self._pins.get(file.name)
        if pin is None or fingerprint(file, pin.num_bytes) != pin.sha256:
            return None
        return pin

    def put(self, file: Path, *, time_zone: str, is_end: bool, until_ms: int) -> None:
        """Keeps a decision."""
        num_bytes = min(file.stat().st_size, MOST_BYTES)
        pin = Pin(
            file=file.name,
            num_bytes=num_bytes,
            sha256=fingerprint(file, num_bytes),
            time_zone=time_zone,
            is_end=is_end,
            until_ms=until_ms,
        )
        with self._lock:
            self._pins[file.name] = pin
            if self._path is not None:
                try:
                    _append(self._path, pin.model_dump_json())
                except OSError as error:
                    log.warning("the clock of %s is not kept: %s; the file is read all the same", file.name, error)

    def _refresh(self) -> None:
        """Reads what other processes appended; half a line is read when it is whole."""
        if self._path is None or not self._path.is_file():
            return
        if self._path.stat().st_size < self._num_read:  # somebody deleted lines
            self._num_read, self._pins = 0, {}
        with self._path.open("rb") as source:
            source.seek(self._num_read)
            text = source.read()
        whole = text.rfind(b"\n") + 1
        self._num_read += whole
        lines = filter(None, text[:whole].splitlines())
        for pin in guarded_lines(self._path, lines, Pin.model_validate_json):
            self._pins[pin.file] = pin


def _append(path: Path, line: str) -> None:
    """In one write, behind a line that was never ended too; an empty line is skipped by whoever reads."""
    make_folder(path.parent)
    with path.open("ab+", buffering=0) as out:
        size = out.tell()
        is_torn = size > 0 and os.pread(out.fileno(), 1, size - 1) != b"\n"
        out.write(f"{chr(10) if is_torn else ''}{line}\n".encode())


def fingerprint(file: Path, num_bytes: int) -> str:
    """sha256 of the file's beginning."""
    with file.open("rb") as source:
        return hashlib.sha256(source.read(num_bytes)).hexdigest()
