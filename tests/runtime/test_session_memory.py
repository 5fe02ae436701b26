"""What a worker's session holds: every process of it, orphans too, and each library once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.runtime.session_memory import session_bytes, session_of

MB = 1_000_000
PATIENCE_S = 20.0
HOLD = "import sys, time; held = bytearray(b'x' * {own}); print('ready', flush=True); time.sleep(60)"
MAP = """
import mmap, sys, time
with open({path!r}, "rb") as file:
    seen = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(seen[place] for place in range(0, len(seen), 4096))
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
for code in {codes!r}:
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
print("ready", flush=True)
time.sleep({stays_s})
"""

Start = Callable[[str], ProcessRecord]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a leader, which is ready, and ends its session."""
    begun: list[subprocess.Popen[bytes]] = []

    def run(code: str) -> ProcessRecord:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
        begun.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return ProcessRecord.of(child.pid)

    yield run
    for child in begun:
        for member in psutil.Process(child.pid).children(recursive=True):
            member.kill()
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_one_process_weighs_its_resident_set(start: Start) -> None:
    leader = start(HOLD.format(own=50 * MB))
    assert session_bytes(leader) == pytest.approx(psutil.Process(leader.pid).memory_info().rss, rel=0.02)
    assert session_bytes(leader) > 50 * MB


def test_children_and_grandchildren_are_weighed(start: Start) -> None:
    held = HOLD.format(own=40 * MB)
    leader = start(PARENT.format(codes=[held, PARENT.format(codes=[held], stays_s=60)], stays_s=60))
    assert 80 * MB < session_bytes(leader) < 160 * MB


def test_what_two_processes_map_counts_once(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "library"
    file.write_bytes(b"x" * (60 * MB))
    code = MAP.format(path=str(file))
    alone = session_bytes(start(code))
    together = session_bytes(start(PARENT.format(codes=[code, code], stays_s=60)))
    assert alone > 60 * MB
    assert together < alone + 50 * MB, "not 60 MB for each"


def test_an_orphan_is_weighed_as_long_as_the_leader_lives(start: Start, tmp_path: Path) -> None:
    """Its parent has ended, and it is nobody's descendant any more."""
    held = HOLD.format(own=70 * MB)
    leader = start(PARENT.format(codes=[PARENT.format(codes=[held], stays_s=0)], stays_s=60))
    deadline = time.monotonic() + PATIENCE_S
    while _num_descendants(leader) > 1 and time.monotonic() < deadline:  # the one in between is a zombie
        time.sleep(0.05)
    descendants = psutil.Process(leader.pid).children(recursive=True)
    assert sum(each.memory_info().rss for each in descendants) < 70 * MB
    try:
        assert session_bytes(leader) > 70 * MB
    finally:
        for pid in psutil.pids():
            if session_of(pid) == leader.pid != pid:
                os.kill(pid, signal.SIGKILL)


def test_nothing_is_weighed_of_a_worker_that_has_ended(start: Start) -> None:
    leader = start(HOLD.format(own=1))
    psutil.Process(leader.pid).kill()
    deadline = time.monotonic() + PATIENCE_S
    while leader.is_alive and time.monotonic() < deadline:
        time.sleep(0.02)
    assert session_bytes(leader) == 0


def _num_descendants(leader: ProcessRecord) -> int:
    return len(psutil.Process(leader.pid).children(recursive=True))
