"""Pins: which clock each file was read in, so that no later evidence moves rows that were read already.

One line of JSON a decision, appended; the newest line of a file holds. A file is known by its name and by the
fingerprint of its beginning, which growing files keep. Who wants a file read anew deletes its line.
"""

import hashlib
import json
import threading
from pathlib import Path

from pydantic import ValidationError

from ml_workbench_service.contracts.contract import Contract

MOST_BYTES = 65_536
"""Of a file's beginning, that its fingerprint covers."""


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
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as out:
                    out.write(pin.model_dump_json() + "\n")

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
        for line in text[:whole].splitlines():
            try:
                pin = Pin.model_validate(json.loads(line))
            except (ValidationError, ValueError):
                continue
            self._pins[pin.file] = pin


def fingerprint(file: Path, num_bytes: int) -> str:
    """sha256 of the file's beginning."""
    with file.open("rb") as source:
        return hashlib.sha256(source.read(num_bytes)).hexdigest()
