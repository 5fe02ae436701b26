"""Clock and disk faults: a fake clock that can be stepped, and small disks that can be filled.

The clock is libfaketime's, loaded into the run's own processes alone, and steps their wall clock, never the monotonic
one. A disk is a small tmpfs where mounting is allowed; elsewhere the process's own limit on file sizes stands in
(RLIMIT_FSIZE 0: every write fails).
"""

import os
import resource
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil

LIBFAKETIME = "libfaketimeMT.so.1"
_PLACES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib")
_BALLAST = "ballast"
_BLOCK = 1 << 16


class FakeClock:
    """A clock for processes that start with `environment`; `step` moves all of them at once."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._library = find_libfaketime()
        self.step(0)

    @property
    def is_real(self) -> bool:
        """Whether processes really see the steps; False where libfaketime is not installed."""
        return self._library is not None

    @property
    def environment(self) -> dict[str, str]:
        """What a process must start with to live by this clock."""
        if self._library is None:
            return {}
        return {
            # The C library's own malloc, before any other's: Redis' jemalloc asks for the time before it can be used.
            "LD_PRELOAD": f"{self._library} libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # as versions before 0.9.9 call it
        }

    def step(self, offset_s: int) -> None:
        """From now on the clock is that many seconds ahead of the machine's."""
        staged = self._file.with_suffix(".new")
        staged.write_text(f"{offset_s:+d}", encoding="ascii")
        staged.replace(self._file)  # in one step: a process that reads an empty file ends


def find_libfaketime() -> Path | None:
    """The library, if it is installed."""
    for place in map(Path, _PLACES):
        for folder in (place / "faketime", *sorted(place.glob("*-linux-*/faketime"))):
            if (folder / LIBFAKETIME).is_file():
                return folder / LIBFAKETIME
    return None


class SmallDisk:
    """A folder with a limit of its own; `fill` leaves no byte free, `free` gives the room back.

    Args:
        folder: made here; on a tmpfs of its own where we may mount one.
        size_bytes: of the tmpfs.
    """

    def __init__(self, folder: Path, *, size_bytes: int) -> None:
        self._folder = folder
        self._limited: list[tuple[int, tuple[int, int]]] = []
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(folder)]
        self.is_mounted = (
            os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
        )

    def fill(self, pids: Iterable[int]) -> None:
        """Takes all room that is left; where there is no disk of its own, the processes' right to write files."""
        if not self.is_mounted:
            for pid in pids:
                process = psutil.Process(pid)
                before = process.rlimit(resource.RLIMIT_FSIZE)
                process.rlimit(resource.RLIMIT_FSIZE, (0, before[1]))
                self._limited.append((pid, before))
            return
        with open(self._folder / _BALLAST, "ab", buffering=0) as ballast:
            size = _BLOCK
            while size:
                try:
                    ballast.write(bytes(size))
                except OSError:
                    size //= 2

    def free(self) -> None:
        """Gives the room back."""
        limited, self._limited = self._limited, []
        for pid, before in limited:
            if psutil.pid_exists(pid):
                psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, before)
        (self._folder / _BALLAST).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts; what lay there is gone."""
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self._folder)], capture_output=True, check=False)
            self.is_mounted = False
