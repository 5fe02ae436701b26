"""Atomic, durable file writes: whole files by rename, and a full disk said clearly."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common_lib.exceptions import StorageFullError
from common_lib.storage import check_there, is_full


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Translates "no space left" into a sentence with the next step; nothing begins in a folder that is gone.

    Raises:
        StorageFullError: the disk or quota under `path` is full.
        FolderGoneError: the kept folder that `path` lies in was removed, or its disk was taken away.
    """
    check_there(path)
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise StorageFullError(
            f"The disk is full: {path.name} could not be written. Free some space under STATE_DIR, then try again.",
            details={"file": path.name},
            retry_after_s=60,
        ) from error


def write_whole(path: Path, payload: bytes, *, durable: bool = False, mode: int | None = None) -> None:
    """Writes a file that readers see either whole or not at all; `durable` waits until the disk has it.

    `mode` is the file's from its first byte on, whatever the umask.

    Raises:
        StorageFullError: the disk is full; the old file, if any, is untouched.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with clear_disk_errors(path), staged.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(payload)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def is_left_of(name: str, file: str) -> bool:
    """Whether it is what a kill in the middle of `write_whole` leaves beside that file, which is as it was."""
    return re.fullmatch(rf"\.{re.escape(file)}\.\d+", name) is not None


def append_line(path: Path, line: str) -> None:
    """Adds a line, or several in one go, to a file that only grows, on disk when this returns.

    A torn line before them stays by itself.

    Raises:
        StorageFullError: the disk is full; the file is as it was.
    """
    with clear_disk_errors(path), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        is_torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        payload = ("\n" if is_torn else "").encode() + line.encode() + b"\n"
        try:
            while payload:
                payload = payload[file.write(payload) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
        if not size:
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the folder's entries (creations, renames) durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NewLines:
    """Follows a file that grows: each `read` gives the lines that became complete since the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = str(path)
        self.offset = 0  # bytes of complete lines behind us

    @property
    def path(self) -> Path:
        """The file's."""
        return self._path

    def read(self) -> list[bytes]:
        """New lines that are not empty, oldest first; cheap where there are none."""
        try:
            size = os.stat(self._place).st_size  # pathlib's costs twice as much, and lists ask for hundreds
        except FileNotFoundError:
            return []
        if size <= self.offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self.offset)
            chunk = file.read(size - self.offset)
        end = chunk.rfind(b"\n") + 1
        self.offset += end
        return [line for line in chunk[:end].split(b"\n") if line]
