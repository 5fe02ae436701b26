"""File lock: exclusive over threads and processes for the time of a block, with an error for whoever waits too long."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from common_lib.exceptions import PlatformError


@contextmanager
def locked(file: Path, *, timeout_s: float, otherwise: PlatformError, mode: int = 0o644) -> Iterator[None]:
    """Holds the lock of this file, which is made if need be; its folder has to be there.

    Raises:
        PlatformError: `otherwise`, where somebody else has it for longer than `timeout_s`.
    """
    lock = FileLock(file, thread_local=False, mode=mode)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise otherwise from error
    try:
        yield
    finally:
        lock.release()
