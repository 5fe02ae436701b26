"""`LogFile` and `LogRotation`: many processes append to one log file, one of them rotates it, and no line is lost.

    <name>.log        every process appends whole lines here, one write each; it reopens a file that was renamed
    <name>.log.1      the one before, complete but for a writer that was just then between looking and writing
    <name>.log.<n>    the oldest; the next rotation replaces it

A disk that is full fails nobody and fills nothing else: lines that found no room are counted, and said in one line
once there is room again. A line cut off half-way by the full disk ends where the next one begins.
"""

import fcntl
import logging
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LOG_FILES = ("service.log", "queue_processing.log", "rl_training.log")

WRITE_S = 0.02
"""No write of some lines takes so long: who has written half of one by then has stopped."""

log = logging.getLogger(__name__)


class LogFile(logging.Handler):
    """Appends each record's lines to a file that other processes append to as well.

    Text that is no valid Unicode is escaped, else its whole line would be lost.

    Raises:
        OSError: from the constructor alone, where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = os.path.abspath(path)
        self._file: int | None = None
        self._identity = (-1, -1)
        self._may_be_torn = True  # whoever wrote last may have met a full disk
        self._num_lost = 0
        self._reopen()

    @property
    def num_lost(self) -> int:
        """Lines that found no room, and that no line in the file tells of yet."""
        return self._num_lost

    def emit(self, record: logging.LogRecord) -> None:
        """Appends one record."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._append([text])

    def append(self, texts: Sequence[str]) -> None:
        """Appends several records' texts in one write, in order."""
        with self._locked():
            self._append(texts)

    def close(self) -> None:
        """Closes the file; a later record opens it again."""
        with self._locked():
            self._let_go()
        super().close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _append(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        fault: OSError | None = None
        payload = _encoded([*self._notes(), *texts])
        num_written = 0
        try:
            if self._is_elsewhere():
                self._reopen()
            assert self._file is not None
            if self._may_be_torn and _ends_within_a_line(self._file):
                os.write(self._file, b"\n")
            while num_written < len(payload):  # in parts where the disk is nearly full
                num_written += os.write(self._file, payload[num_written:])
        except OSError as error:
            fault = error
        self._may_be_torn = fault is not None
        if fault is not None:
            self._count_lost(payload, num_written, num_texts=len(texts))
            return
        self._num_lost = 0

    def _notes(self) -> list[str]:
        if not self._num_lost:
            return []
        record = logging.LogRecord(
            __name__, logging.WARNING, __file__, 0, "%d lines found no room on the disk and are lost",
            (self._num_lost,), None,
        )  # fmt: skip
        return [self.format(record)]

    def _count_lost(self, payload: bytes, num_written: int, *, num_texts: int) -> None:
        """What was written whole is not lost; a note that was written whole has told what it tells."""
        num_whole = payload.count(b"\n", 0, num_written)
        if self._num_lost and num_whole:
            num_whole -= 1
            self._num_lost = 0
        self._num_lost += max(0, num_texts - num_whole)

    def _is_elsewhere(self) -> bool:
        """Whether the name means another file than the open one, or none."""
        if self._file is None:
            return True
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def _reopen(self) -> None:
        self._let_go()
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        found = os.fstat(self._file)
        self._identity = found.st_dev, found.st_ino

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def _encoded(texts: Sequence[str]) -> bytes:
    return ("\n".join(texts) + "\n").encode("utf-8", "backslashreplace")


def _ends_within_a_line(file: int) -> bool:
    """Whether nobody goes on writing the last line: a file system may show the first half of another's write."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        return False
    while found.st_size and os.pread(file, 1, found.st_size - 1) != b"\n":
        time.sleep(WRITE_S)
        size, found = found.st_size, os.fstat(file)
        if found.st_size == size:
            return True
    return False


class LogRotation:
    """Renames log files that have grown too large; one process of a log folder calls it now and then.

    Should two processes do so, they take turns. What can go wrong on a disk is said once, and tried again.

    Args:
        log_dir: the folder of the log files.
        max_bytes: a file of this size or more is rotated.
        num_kept: files kept of each log beside the one being written, at least one.
    """

    def __init__(self, log_dir: Path, *, max_bytes: int, num_kept: int) -> None:
        if max_bytes < 1 or num_kept < 1:
            raise ValueError("a log file needs room for a byte, and the one before it is kept: give 1 or more of both")
        self._folder = log_dir
        self._max_bytes = max_bytes
        self._num_kept = num_kept
        self._is_failing = False

    def rotate_if_due(self) -> tuple[str, ...]:
        """Rotates what is too large; the names of those files."""
        try:
            with _turn(self._folder) as is_ours:
                names = [name for name in LOG_FILES if is_ours and self._is_due(name)]
                for name in names:
                    self._rotate(name)
        except OSError as error:
            if not self._is_failing:
                log.warning("the log files in %s grow on, they cannot be rotated: %s", self._folder, error)
            self._is_failing = True
            return ()
        self._is_failing = False
        return tuple(names)

    def _is_due(self, name: str) -> bool:
        try:
            return os.stat(self._folder / name).st_size >= self._max_bytes
        except FileNotFoundError:
            return False

    def _rotate(self, name: str) -> None:
        """From the oldest to the newest, so that a crash between two renames leaves a gap and no loss."""
        numbers = _numbers(self._folder, name)
        for number in sorted(numbers, reverse=True):
            path = self._folder / f"{name}.{number}"
            if number >= self._num_kept:
                path.unlink()
            else:
                path.rename(self._folder / f"{name}.{number + 1}")
        (self._folder / name).rename(self._folder / f"{name}.1")


def _numbers(folder: Path, name: str) -> list[int]:
    """Of the rotated files that lie there."""
    found = (re.fullmatch(re.escape(name) + r"\.([1-9][0-9]{0,5})", path.name) for path in folder.iterdir())
    return [int(match[1]) for match in found if match is not None]


@contextmanager
def _turn(folder: Path) -> Iterator[bool]:
    """Whether nobody else rotates in this folder at the moment; nobody begins to until the block ends."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
