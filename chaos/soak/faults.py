"""What goes wrong: one fault at a time, drawn at random, begun and taken back."""

import random
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from chaos.dependencies.proxy import Fault, FaultyProxy
from ml_workbench_service.jobs.job import JobStore

KILLED, FULL = "worker killed", "disk full"
BLOCKS = (1 << 20, 4096, 1)


class Faults:
    """Draws and does; every fault as often as the others, in the long run.

    Args:
        disk: what STATE_DIR lies on; None where none could be mounted.
    """

    def __init__(self, proxies: Mapping[str, FaultyProxy], state: Path, disk: Path | None, *, seed: int) -> None:
        self._proxies = proxies
        self._state = state
        self._disk = disk
        self._chance = random.Random(seed)
        spoilt = [f"{thing}: {fault}" for thing in proxies for fault in Fault if fault is not Fault.NONE]
        self.names = [KILLED, *([FULL] if disk is not None else []), *spoilt]

    @contextmanager
    def one(self) -> Iterator[str]:
        """One of them, for the time of the block; kills, which last no time, are half as likely as all the rest."""
        name = KILLED if self._chance.random() < 1 / 3 else self._chance.choice(self.names)
        if name == KILLED:
            self._kill_a_worker()
            yield name
        elif name == FULL:
            assert self._disk is not None
            filling = _fill(self._disk)
            try:
                yield name
            finally:
                filling.unlink()
        else:
            thing, _, fault = name.partition(": ")
            self._proxies[thing].fault = Fault(fault)
            try:
                yield name
            finally:
                self._proxies[thing].fault = Fault.NONE

    def _kill_a_worker(self) -> None:
        workers = [folder.worker() for folder in JobStore(self._state / "jobs").unfinished()]
        living = [each for each in workers if each is not None and each.is_alive]
        if living:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(self._chance.choice(living).pid).kill()


@contextmanager
def small_disk(place: Path, *, size_mb: int) -> Iterator[Path | None]:
    """A disk in memory at this place; None where nothing may be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=0700", "tmpfs", str(place)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield place if is_mounted else None
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


def _fill(disk: Path) -> Path:
    filling = disk / "filling"
    with filling.open("ab", buffering=0) as file:
        for size in BLOCKS:
            with suppress(OSError):
                while True:
                    file.write(b"0" * size)
    return filling
