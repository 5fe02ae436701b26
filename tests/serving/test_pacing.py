"""The publisher's pace."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ml_workbench_service.serving import publisher
from ml_workbench_service.serving.publisher import WAITS, Load, Pauses


@pytest.mark.parametrize("clock", ["worked", "waited"])
def test_the_load_is_high_where_the_thread_wanted_a_processor_for_most_of_the_time(
    clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, worked_s = Load(), 0.0
    monkeypatch.setattr(time, "thread_time", lambda: worked_s if clock == "worked" else 0.0)
    monkeypatch.setattr(load, "_waited_s", lambda: worked_s if clock == "waited" else 0.0)
    assert not load.is_high(1000.0), "nothing is known of the time before"
    worked_s += 0.015
    assert load.is_high(1000.02)
    assert load.is_high(1000.025), "too short a time says nothing new"
    worked_s += 0.005
    assert not load.is_high(1000.06)
    assert not load.is_high(1000.065)


def test_a_working_thread_is_seen_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own clock, which stands still while another process has the processor."""
    load, started_s = Load(), time.thread_time()
    monkeypatch.setattr(load, "_waited_s", lambda: 0.0)
    load.is_high(1000.0)
    assert not load.is_high(1000.05)
    worked_s = time.thread_time()
    while time.thread_time() < worked_s + 0.015:
        pass
    assert load.is_high(1000.05 + time.thread_time() - started_s)


def test_a_thread_that_waits_for_a_processor_is_seen_to_wait() -> None:
    """Two threads' processes on one core: each is kept waiting about as long as it works."""
    if not Path(WAITS).exists():
        pytest.skip("this system does not count what a thread waits")
    mine = os.sched_getaffinity(0)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        core = {min(mine)}
        os.sched_setaffinity(busy.pid, core)
        os.sched_setaffinity(0, core)
        load = Load()
        before_s, worked_s = load._waited_s(), time.thread_time()
        while time.thread_time() < worked_s + 0.3:
            pass
        assert load._waited_s() > before_s + 0.05
        load.close()
    finally:
        os.sched_setaffinity(0, mine)
        busy.kill()
        busy.wait()


def test_where_waiting_is_not_counted_work_alone_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WAITS", "/nowhere/schedstat")
    load = Load()
    assert load._waited_s() == 0.0
    load.close()


def test_pauses_double_up_to_a_bound_and_begin_anew() -> None:
    pauses = Pauses(0.1, 0.3)
    assert [pauses.grown() for _ in range(4)] == [0.1, 0.2, 0.3, 0.3]
    pauses.reset()
    assert pauses.grown() == 0.1
