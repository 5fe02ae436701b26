"""Trials in processes of their own: scores come and are answered, a death takes one trial, an outage ends them all."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.search.trial import GivenUp, TrialEnd, TrialReport
from ml_workbench_service.search.worker_pool import Done, OpenMaker, Score, WorkerPool
from tests.runtime.child_processes import children_running


class Counter:
    """Counts to three; does otherwise where the parameters say so."""

    def make(self, number: int, params: dict[str, Any], report: TrialReport) -> TrialEnd:
        """As a trial would."""
        if params["do"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if params["do"] == "outage":
            raise UnavailableError("the feature store is away")
        try:
            for step in (1, 2, 3):
                report(step, 4, stop_skill=number + step / 10)
        except GivenUp as reason:
            return TrialEnd("pruned", message=str(reason), curve=tuple(report.curve))
        return TrialEnd("complete", 1.0, curve=tuple(report.curve))


@contextmanager
def opened(about: dict[str, Any]) -> Iterator[Counter]:
    """As a store would be."""
    assert about == {"for": "trials"}
    yield Counter()


def worked(pool: WorkerPool, giving_up: set[int]) -> Iterator[Done]:
    """The next trial that ends."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        for news in pool.news(0.2):
            if isinstance(news, Score):
                pool.answer(news.number, "not worth it" if news.number in giving_up and news.step == 2 else "")
            else:
                yield news


@pytest.mark.more
def test_trials_run_side_by_side_and_a_death_takes_one_along() -> None:
    with WorkerPool(2, OpenMaker(f"{__name__}:opened", {"for": "trials"}), num_threads=1) as pool:
        pool.give(0, {"do": "count"})
        pool.give(1, {"do": "die"})
        assert not pool.has_room
        ends = worked(pool, giving_up={2})
        first, second = sorted((next(ends), next(ends)), key=lambda each: each.number)
        assert first.end == TrialEnd("complete", 1.0, curve=((1, 0.1), (2, 0.2), (3, 0.3)))
        assert second.end is not None
        assert (second.end.state, "code -9" in second.end.message) == ("failed", True)
        pool.give(2, {"do": "count"})
        pool.give(3, {"do": "outage"})
        third, fourth = sorted((next(ends), next(ends)), key=lambda each: each.number)
        assert third.end is not None
        assert (third.end.state, len(third.end.curve)) == ("pruned", 2)
        assert isinstance(fourth.error, UnavailableError)
        assert fourth.error.message == "the feature store is away"
        family = children_running("search.worker_pool")
        assert len(family) == 2
    assert not any(each.is_running() for each in family)


def test_a_report_keeps_the_first_metric_that_makes_a_curve_and_thins_long_ones() -> None:
    heard: list[tuple[int, float]] = []
    report = TrialReport(lambda: None, lambda step, value: heard.append((step, value)) or "")
    report(1, 9, train_loss=5.0, stop_loss=2.0)
    report(2, 9, stop_loss=2.0, stop_skill=0.5)
    report(3, 9, stop_net_log_return=0.25)
    report(4, 9, train_loss=1.0)
    report(5, 9, stop_loss=float("nan"))
    assert report.curve == heard == [(1, -2.0), (2, 0.5), (3, 0.25)]
    for step in range(6, 3000):
        report(step, 5000, stop_skill=step)
    curve, at_ms = report.thinned()
    assert len(curve) == len(at_ms) == 500
    assert (curve[0], curve[-1]) == ((1, -2.0), (2999, 2999.0))


def test_nothing_is_given_up_at_its_last_step() -> None:
    report = TrialReport(lambda: None, lambda step, value: "not worth it")
    report(9, 9, stop_skill=0.1)
    with pytest.raises(GivenUp, match="not worth it"):
        report(8, 9, stop_skill=0.1)
