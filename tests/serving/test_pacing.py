"""The publisher's pace."""

import time

import pytest

from ml_workbench_service.serving.publisher import Load, Pauses


def test_the_load_is_high_where_the_thread_worked_for_most_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    load, worked_s = Load(), 0.0
    monkeypatch.setattr(time, "thread_time", lambda: worked_s)
    assert not load.is_high(1000.0), "nothing is known of the time before"
    worked_s += 0.015
    assert load.is_high(1000.02)
    assert load.is_high(1000.025), "too short a time says nothing new"
    worked_s += 0.005
    assert not load.is_high(1000.06)
    assert not load.is_high(1000.065)


def test_a_working_thread_is_seen_to_work() -> None:
    """By its own clock, which stands still while another process has the processor."""
    load, started_s = Load(), time.thread_time()
    load.is_high(1000.0)
    assert not load.is_high(1000.05)
    worked_s = time.thread_time()
    while time.thread_time() < worked_s + 0.015:
        pass
    assert load.is_high(1000.05 + time.thread_time() - started_s)


def test_pauses_double_up_to_a_bound_and_begin_anew() -> None:
    pauses = Pauses(0.1, 0.3)
    assert [pauses.grown() for _ in range(4)] == [0.1, 0.2, 0.3, 0.3]
    pauses.reset()
    assert pauses.grown() == 0.1
