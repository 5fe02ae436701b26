"""Workers: one core each, answers in order, and the first failure ends it."""

import os

import pytest

from studies.workers import in_workers


def core_of(number: int) -> tuple[int, int]:
    """What a worker sees: its number of cores, and the item."""
    return len(os.sched_getaffinity(0)), number


def test_workers_have_one_core_each_and_answers_keep_their_order() -> None:
    heard: list[tuple[int, int]] = []
    answers = in_workers(core_of, [3, 1, 2], progress=lambda done, total: heard.append((done, total)))
    assert answers == [(1, 3), (1, 1), (1, 2)]
    assert heard == [(1, 3), (2, 3), (3, 3)]


def refused(number: int) -> int:
    """Work that goes wrong."""
    raise ValueError(f"item {number} is not usable")


def test_a_workers_failure_is_everybodys() -> None:
    with pytest.raises(ValueError, match="is not usable"):
        in_workers(refused, [1, 2])


def test_one_worker_is_this_process() -> None:
    assert in_workers(core_of, [1], num_workers=1) == [(len(os.sched_getaffinity(0)), 1)]
