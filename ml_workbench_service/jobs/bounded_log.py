"""Bounded worker log: while a job runs, the disk holds no more of what it prints than the newest part.

The oldest blocks are given back to the file system where they stand (`fallocate` with a hole), so whoever appends to
the file goes on undisturbed: the worker, its children and a library's own threads alike, through whatever descriptor.
Nothing is moved, so a kill in the middle loses no line. The file's size still says all that was ever written; readers
read from its end, and housekeeping makes it short once the job has ended (`workflows.housekeeping.keep_house`).

Holes are Linux's. Where the system or the file system has none, the log is left as it is, and a line says so.
"""

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PERIOD_S = 0.2
"""Between two looks; what is printed meanwhile, some 20 MB at a print statement's fastest, stands above the bound."""
SLACK_BYTES = 1_000_000
"""That the log may have above what is kept, so that not every look makes a hole."""
KEEP_SIZE_AND_PUNCH_HOLE = 0x01 | 0x02
"""Of fallocate(2): FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE."""
BLOCK_BYTES = 512
"""What `st_blocks` counts in, whatever the file system."""

log = logging.getLogger(__name__)


@contextmanager
def bounded(file: Path, *, most_bytes: int) -> Iterator[None]:
    """Keeps the newest bytes of a file that is appended to, from a thread that ends with the block."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(PERIOD_S):
            try:
                keep_newest(file, most_bytes=most_bytes)
            except FileNotFoundError:  # a job that was started by hand has none
                continue
            except OSError as error:
                log.warning("%s cannot be kept within JOB_LOG_MAX_MB while its job runs: %s", file, error.strerror)
                return

    thread = threading.Thread(target=look, name="bounded log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def keep_newest(file: Path, *, most_bytes: int) -> int:
    """Gives back what stands before the newest bytes, where the disk holds more than them; how many are gone in all.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: this file system makes no holes.
    """
    with file.open("r+b") as opened:
        found = os.fstat(opened.fileno())
        gone = max(found.st_size - most_bytes, 0)
        if num_kept_bytes(found) > most_bytes + SLACK_BYTES and gone:
            _punch_hole(opened.fileno(), gone)
    return gone


def num_kept_bytes(found: os.stat_result) -> int:
    """What a file takes of the disk, or would without its holes: the smaller of both, where the system says both."""
    return min(found.st_size, found.st_blocks * BLOCK_BYTES) if found.st_blocks else found.st_size


def first_kept(descriptor: int) -> int:
    """Where the newest part begins: past the hole, if there is one; it leaves the file's position there."""
    seek_data = getattr(os, "SEEK_DATA", None)
    if seek_data is None or os.fstat(descriptor).st_blocks == 0:
        return os.lseek(descriptor, 0, os.SEEK_SET)
    return os.lseek(descriptor, 0, seek_data)


def _punch_hole(descriptor: int, num_bytes: int) -> None:
    """Over the first bytes; raises OSError where that cannot be."""
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None:
        raise OSError(0, "this system makes no holes in files")
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(descriptor, KEEP_SIZE_AND_PUNCH_HOLE, 0, num_bytes) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
