"""Disks without room: a small one of its own where mounting is allowed, and a limit on file sizes, which always is."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BLOCK = 4096


@contextmanager
def small_disk(place: Path, *, size_mb: int) -> Iterator[Path]:
    """A disk in memory at this place; skips where mounting is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={size_mb}m,mode=0700"
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


def fill(disk: Path) -> Path:
    """Takes all room that is left; the file that has it."""
    filling = disk / "filling"
    with filling.open("ab", buffering=0) as file:
        for size in (1 << 20, BLOCK, 1):
            try:
                while True:
                    file.write(b"0" * size)
            except OSError:
                continue
    return filling


@contextmanager
def no_file_over(num_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: what would is EFBIG, as on a disk that is full there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def free_bytes(folder: Path) -> int:
    """What the disk below a folder has left."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
