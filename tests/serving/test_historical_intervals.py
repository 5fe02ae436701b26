"""Intervals over a replay: what live ones would have become, to the last outcome, and nothing live moves."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.serving.historical_intervals import HistoricalIntervals
from ml_workbench_service.serving.history import SymbolHistory
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.predict import Circumstances, Question
from tests.serving.test_interval_outcomes import found, of_target
from tests.serving.test_live_intervals import answer, asked, live_model, questions  # noqa: F401

REPLAY = Circumstances(role="champion", source="replay:job")


def replayed(model: ServedModel, each: list[Question]) -> tuple[HistoricalIntervals, list[PredictionRecord]]:
    intervals, records = HistoricalIntervals(model), []
    for question in each:
        records.append(answer(model, question, REPLAY, intervals=None))
        intervals.follow(question, records[-1])
    return intervals, records


def test_a_replay_reports_what_the_live_version_would_have_covered(
    live_model: ServedModel,  # noqa: F811
    history: SymbolHistory,
) -> None:
    """Over all outcomes; live coverage is of the newest alone, of which there are fewer here."""
    bars, live = questions(history, 300), LiveIntervals()
    records = asked(live_model, bars, live)
    intervals, published = replayed(live_model, bars)
    report, said = intervals.report(), found(live)
    assert report is not None
    assert (report.num_outcomes, report.coverage) == (said.num_outcomes, said.coverage)
    assert report.factor == pytest.approx(said.factor)
    assert report.num_dropped == said.num_dropped
    widths = [
        [each.interval.upper - each.interval.lower for each in several if each.interval]
        for several in (records, published)
    ]
    assert report.width_ratio == pytest.approx(np.mean(widths[0]) / np.mean(widths[1]))
    inside = [
        each.interval.lower <= after.price / before.price - 1 <= each.interval.upper  # type: ignore[operator]
        for each, (before, after) in zip(published, pairwise(bars), strict=False)
        if each.interval is not None and after.as_of_ms - before.as_of_ms == live_model.timeframe_ms
    ]
    assert report.published_coverage == pytest.approx(np.mean(inside))


def test_bars_that_taught_the_model_and_targets_without_an_outcome_report_nothing(
    model: ServedModel, history: SymbolHistory
) -> None:
    early = [history.question(row) for row in range(200, 260)]
    intervals, records = replayed(model, early)
    assert {each.sample for each in records} == {"train"}
    assert intervals.report() is None
    later = replace(of_target(model, "direction_1h"), last_available_at_ms=0)
    assert replayed(later, early)[0].report() is None
