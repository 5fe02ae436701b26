"""Live intervals learn from what came true, once, in time, and from nothing else; everything else is as published."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.api.metrics import Metrics
from ml_workbench_service.contracts.prediction import Interval, PredictionRecord
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.learning.calibration.adaptive_intervals import IntervalTracker
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving import live_intervals as adaptive
from ml_workbench_service.serving.history import SymbolHistory
from ml_workbench_service.serving.interval_outcomes import NUM_RECENT, REASONS
from ml_workbench_service.serving.live_intervals import LiveIntervals
from ml_workbench_service.serving.model import ServedModel
from ml_workbench_service.serving.model_server import ModelServer
from ml_workbench_service.serving.predict import Circumstances, Prepared, Question, answered, prepare
from ml_workbench_service.serving.runs.answering import answer_run
from ml_workbench_service.serving.runs.questions import QuestionRun
from tests.serving.test_interval_outcomes import MONDAY_MS, SCALE, found, of_target, told
from tests.serving.test_model_server import Shelf
from tests.serving.test_predict import essence

CHAMPION = Circumstances(role="champion", deployment_id="d-1")
FIRST = 301
AFTER_MS = 20 * 7 * DAY_MS
"""Whole weeks, by which the bars used here come after the last one of the training."""


@pytest.fixture
def live_model(model: ServedModel, history: SymbolHistory) -> ServedModel:
    """Version 1.0.0 as if its training had ended with bar 300."""
    return replace(model, last_available_at_ms=int(history.table.available_at_ms[FIRST - 1]))


def questions(history: SymbolHistory, num: int) -> list[Question]:
    """The first bars after the training."""
    return [history.question(row, prediction_id=f"p-{row}") for row in range(FIRST, FIRST + num)]


def answer(*asked: Any, intervals: LiveIntervals | None) -> PredictionRecord:
    """The record of one question."""
    return answered(*asked, intervals=intervals).record


def answer_many(
    model: ServedModel, asked: Sequence[Prepared], circumstances: Circumstances, *, intervals: LiveIntervals | None
) -> list[PredictionRecord]:
    """The records of questions that share a run of the network."""
    return answer_run(model, QuestionRun.of(asked), circumstances, intervals=intervals).records()


def asked(model: ServedModel, each: Sequence[Question], intervals: LiveIntervals | None) -> list[PredictionRecord]:
    """One after the other, of the champion."""
    return [answer(model, question, CHAMPION, intervals=intervals) for question in each]


def test_coverage_factor_and_intervals_are_those_of_the_rule_done_by_hand(
    live_model: ServedModel, history: SymbolHistory
) -> None:
    intervals, bars = LiveIntervals(), questions(history, 400)
    records, plain = asked(live_model, bars, intervals), asked(live_model, bars, None)
    tracker, inside, waiting = IntervalTracker(), [], None
    for question, record, published in zip(bars, records, plain, strict=True):
        assert question.price is not None
        if waiting is not None:
            stated, lean, price = waiting
            assert question.as_of_ms == stated.valid_until.timestamp() * 1000
            inside.append(stated.interval.lower <= question.price / price - 1 <= stated.interval.upper)
            tracker.learn(lean, is_covered=inside[-1], promised=0.9)
            waiting = None
        scale = published.metadata.volatility
        assert scale is not None
        widening = tracker.widening(scale)
        tracker.saw(scale)
        if record.interval is None or record.prediction is None or published.interval is None:
            assert record.status == published.status == "abstain"
            continue
        reach = widening.factor * (published.interval.upper - record.prediction)
        assert record.interval.upper - record.prediction == pytest.approx(reach, rel=1e-9)
        assert record.interval.lower - record.prediction == pytest.approx(-reach, rel=1e-9)
        if (record.valid_until - record.as_of).total_seconds() == 3600:  # over a weekend there is no label
            waiting = (record, widening.lean, question.price)
    coverage = found(intervals)
    assert len(inside) > 350
    assert coverage.num_outcomes == len(inside)
    assert coverage.coverage == np.mean(inside[-NUM_RECENT:])
    assert coverage.factor == pytest.approx(np.exp(tracker.level))
    assert coverage.num_dropped == dict.fromkeys(REASONS, 0) | {"closure": 3}, "what Friday's last bars foretell"


def test_nothing_but_the_interval_is_touched(live_model: ServedModel, history: SymbolHistory) -> None:
    bars = questions(history, 40)
    for adapted, plain in zip(asked(live_model, bars, LiveIntervals()), asked(live_model, bars, None), strict=True):
        both = [json.loads(essence(each)) for each in (adapted, plain)]
        assert len({json.dumps(each | {"interval": None}) for each in both}) == 1
    assert adapted.interval != plain.interval


def test_no_answer_knows_what_comes_after_it(live_model: ServedModel, history: SymbolHistory) -> None:
    bars = questions(history, 120)
    otherwise = bars[:60] + [replace(each, price=each.price * 1.05 ** (-1) ** n) for n, each in enumerate(bars[60:])]  # type: ignore[operator]
    here, there = (asked(live_model, each, LiveIntervals()) for each in (bars, otherwise))
    assert [essence(each) for each in here[:60]] == [essence(each) for each in there[:60]]
    ends = (
        [each.interval for each in here[61:] if each.interval],
        [each.interval for each in there[61:] if each.interval],
    )
    assert len(ends[0]) == len(ends[1])
    assert all(b.upper - b.lower > a.upper - a.lower for a, b in zip(*ends, strict=True))


def test_candidates_replays_and_past_dates_get_the_published_interval(
    live_model: ServedModel, history: SymbolHistory
) -> None:
    intervals, bars = LiveIntervals(), questions(history, 100)
    asked(live_model, bars, intervals)
    before = found(intervals)
    past = [history.question(row, prediction_id=f"p-{row}") for row in range(200, 220)]
    plain = [essence(each) for each in asked(live_model, past, None)]
    assert [essence(each) for each in asked(live_model, past, intervals)] == plain
    together = answer_many(live_model, [prepare(live_model, each) for each in past], CHAMPION, intervals=intervals)
    assert [essence(each) for each in together] == plain
    for changes in ({"role": "candidate"}, {"source": "replay:j"}):
        of_these = replace(CHAMPION, **changes)  # type: ignore[arg-type]
        after = history.question(FIRST + 100, prediction_id="p")
        adapted, published = (answer(live_model, after, of_these, intervals=each) for each in (intervals, None))
        assert essence(adapted) == essence(published)
    assert found(intervals) == before


@pytest.mark.parametrize("size", [1, 2, 7, 60])
def test_rows_of_a_batch_see_what_single_questions_in_their_order_see(
    size: int, live_model: ServedModel, history: SymbolHistory
) -> None:
    """Bars that are new, repeated, late, without a price or a volatility, and of two symbols."""
    bars = questions(history, 60)
    mixed: list[Question] = []
    for number, each in enumerate(bars):
        mixed.append(replace(each, bar_volatility=None) if number % 5 == 4 else each)
        if number % 3 == 0:
            mixed.append(replace(each, price=None, symbol="GBP/USD" if number % 2 else each.symbol))
        if number % 4 == 1:
            mixed += [each, replace(bars[number - 1], prediction_id="late")]
    alone, together = LiveIntervals(), LiveIntervals()
    wanted = [essence(each) for each in asked(live_model, mixed, alone)]
    records: list[PredictionRecord] = []
    for begin in range(0, len(mixed), size):
        run = [prepare(live_model, each) for each in mixed[begin : begin + size]]
        records += answer_many(live_model, run, CHAMPION, intervals=together)
    assert [essence(each) for each in records] == wanted
    assert found(together) == found(alone)
    assert together.payload("small", "1.0.0") == alone.payload("small", "1.0.0")
    assert found(alone).num_outcomes > 40
    assert min(found(alone).num_dropped[reason] for reason in ("late", "repeated")) > 10


def test_a_batch_of_one_bar_of_each_symbol_is_live_and_a_repeated_question_is_answered_as_it_was(
    live_model: ServedModel, history: SymbolHistory
) -> None:
    intervals, twin, bars = LiveIntervals(), LiveIntervals(), questions(history, 80)
    asked(live_model, bars[:-1], intervals)
    asked(live_model, bars[:-1], twin)
    single = answer(live_model, bars[-1], CHAMPION, intervals=intervals)
    (batch,) = answer_many(live_model, [prepare(live_model, bars[-1])], CHAMPION, intervals=twin)
    assert single.interval == batch.interval
    before = found(intervals)
    assert answer(live_model, bars[-1], CHAMPION, intervals=intervals).interval == single.interval
    assert found(intervals).num_outcomes == before.num_outcomes
    assert found(intervals).num_dropped["repeated"] == before.num_dropped["repeated"] + 1


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_was_learnt_and_what_waits_outlive_the_process(
    live_model: ServedModel, history: SymbolHistory, tmp_path: Path
) -> None:
    bars, whole = questions(history, 160), LiveIntervals()
    expected = asked(live_model, bars, whole)
    first = LiveIntervals(tmp_path / "adaptive")
    asked(live_model, bars[:80], first)
    first.close()
    assert files(tmp_path) == [tmp_path / "adaptive" / "small" / "1.0.0.json"]
    second = LiveIntervals(tmp_path / "adaptive")
    assert second.coverage("small", "1.0.0") == first.coverage("small", "1.0.0")
    assert list(second) == []
    records = asked(live_model, bars[80:], second)
    assert [essence(each) for each in records] == [essence(each) for each in expected[80:]]
    assert second.coverage("small", "1.0.0") == whole.coverage("small", "1.0.0")
    second.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"num_outcomes":9', '"num_outcomes":-9'),
        lambda text: text.replace('"level":0.9', '"level":1e999'),
        lambda text: text.replace('"small"', '"other"'),
        lambda text: text.replace('"digest":"', '"digest":"0'),
        lambda text: "[1, 2]",
    ],
)
def test_a_torn_or_foreign_file_starts_anew_and_says_so(
    model: ServedModel, tmp_path: Path, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = LiveIntervals(tmp_path)
    for hour in range(10):
        told(first, model, MONDAY_MS + hour * HOUR_MS, 1.0)
    first.close()
    path = tmp_path / "small" / "1.0.0.json"
    text = path.read_text(encoding="utf-8")
    assert spoil(text) != text
    path.write_text(spoil(text), encoding="utf-8")
    second = LiveIntervals(tmp_path)
    with caplog.at_level(logging.WARNING):
        told(second, model, MONDAY_MS + 10 * HOUR_MS, 1.0)
    assert found(second).num_outcomes == 0
    assert "set aside" in caplog.text or "start anew" in caplog.text
    second.close()
    assert found(LiveIntervals(tmp_path)).num_outcomes == 0


def test_files_are_written_now_and_then_and_a_disk_that_refuses_stops_nothing(
    model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    intervals, path = LiveIntervals(tmp_path), tmp_path / "small" / "1.0.0.json"
    told(intervals, model, MONDAY_MS, 1.0)
    assert intervals._writer is not None
    intervals._writer.submit(lambda: None).result()
    written = path.read_bytes()
    told(intervals, model, MONDAY_MS + HOUR_MS, 1.0)
    intervals._writer.submit(lambda: None).result()
    assert path.read_bytes() == written, "not again within a moment"
    monkeypatch.setattr(adaptive, "SAVE_EVERY_S", 0.0)
    told(intervals, model, MONDAY_MS + 2 * HOUR_MS, 1.0)
    intervals._writer.submit(lambda: None).result()
    assert path.read_bytes() != written
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("no folder", encoding="utf-8")
    told(intervals, model, MONDAY_MS + 3 * HOUR_MS, 1.0)
    intervals.close()
    assert "were not written" in caplog.text
    assert found(intervals).num_outcomes == 3


def test_of_a_purged_version_nothing_is_kept_and_nothing_is_written_again(
    model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive, "SAVE_EVERY_S", 0.05)
    path, other = tmp_path / "small" / "1.0.0.json", tmp_path / "other" / "1.0.0.json"
    other.parent.mkdir()
    other.write_text("{}", encoding="utf-8")
    intervals = LiveIntervals(tmp_path)
    for hour in range(4):  # the last ones are still to be written
        told(intervals, model, MONDAY_MS + hour * HOUR_MS, 1.0)
    intervals.forget(lambda model_id, version: False)
    assert found(intervals).num_outcomes == 3
    intervals.forget(lambda model_id, version: model_id == "small")
    assert intervals.coverage("small", "1.0.0") is None
    assert intervals._writer is not None
    intervals._writer.submit(lambda: None).result()
    assert not path.parent.exists()
    time.sleep(0.2)
    intervals.close()
    assert files(tmp_path) == [other]
    path.parent.mkdir()
    path.write_text("{}", encoding="utf-8")  # what an earlier version of the service left behind
    LiveIntervals(tmp_path).forget(lambda model_id, version: model_id == "small")
    assert files(tmp_path) == [other]


def test_a_killed_service_forgets_only_the_last_moments(
    model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive, "SAVE_EVERY_S", 0.2)
    intervals = LiveIntervals(tmp_path)
    for hour in range(20):  # within the moment after the first was written
        told(intervals, model, MONDAY_MS + hour * HOUR_MS, 1.0)
    after_a_kill = LiveIntervals(tmp_path)
    deadline = time.monotonic() + 10
    while after_a_kill.coverage("small", "1.0.0") != found(intervals) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert after_a_kill.coverage("small", "1.0.0") == found(intervals)
    assert found(intervals).num_outcomes == 19
    intervals.close()


def test_live_versions_are_in_the_metrics_again_before_anybody_asks(model: ServedModel, tmp_path: Path) -> None:
    first = LiveIntervals(tmp_path)
    for hour in range(5):
        told(first, model, MONDAY_MS + hour * HOUR_MS, 1.0)
    first.close()
    second, metrics = LiveIntervals(tmp_path), Metrics()
    second.recall([("small", "1.0.0"), ("never_asked", "1.0.0")])
    metrics.watch_intervals(second)
    assert 'interval_outcomes_total{model_id="small",version="1.0.0"} 4.0' in metrics.render().decode()
    told(second, model, MONDAY_MS + 5 * HOUR_MS, 1.0)
    assert found(second).num_outcomes == 5
    second.close()


def test_the_least_asked_version_leaves_memory_for_its_file(model: ServedModel, tmp_path: Path) -> None:
    intervals = LiveIntervals(tmp_path)
    for number in range(adaptive.MOST_VERSIONS + 3):
        other = of_target(model, "price_change_1h", version=f"1.{number}.0")
        for hour in range(2):
            told(intervals, other, MONDAY_MS + hour * HOUR_MS, 1.0)
    assert len(list(intervals)) == adaptive.MOST_VERSIONS
    intervals.close()
    left = intervals.coverage("small", "1.0.0")
    assert left is not None
    assert left.num_outcomes == 1
    assert intervals.mature("small", "1.1.0", "EUR/USD", MONDAY_MS + HOUR_MS, 0.0)


def test_questions_and_outcomes_from_many_threads_are_each_counted_once(model: ServedModel) -> None:
    intervals, num, symbols = LiveIntervals(), 400, ("EUR/USD", "GBP/USD")
    stated = Interval(level=0.9, lower=-1, upper=1)
    begin = threading.Barrier(len(symbols) + 1)

    def ask(symbol: str) -> None:
        begin.wait()
        for as_of_ms in range(MONDAY_MS, MONDAY_MS + num * HOUR_MS, HOUR_MS):
            moment = intervals.ask(model, symbol, as_of_ms=as_of_ms, price=1.0)
            assert moment is not None
            moment.widening(SCALE)
            moment.stated(stated, due_ms=as_of_ms + HOUR_MS, bar_ms=HOUR_MS, horizon=1)

    def settle() -> None:
        begin.wait()
        for number in range(20 * num):
            as_of_ms = MONDAY_MS + number % num * HOUR_MS
            intervals.mature("small", "1.0.0", symbols[number % 2], as_of_ms, 0.0)

    with ThreadPoolExecutor(3) as pool:
        for work in [*(pool.submit(ask, symbol) for symbol in symbols), pool.submit(settle)]:
            work.result()
    for symbol in symbols:  # the last bar's, unless it was settled
        intervals.mature("small", "1.0.0", symbol, MONDAY_MS + (num - 1) * HOUR_MS, 0.0)
    assert found(intervals).num_outcomes == 2 * num


def test_metrics_show_each_live_version(model: ServedModel) -> None:
    intervals, metrics = LiveIntervals(), Metrics()
    metrics.watch_intervals(intervals)
    assert b"interval_coverage{" not in metrics.render()
    for hour in range(5):
        told(intervals, model, MONDAY_MS + hour * HOUR_MS, 1.0 + hour % 2, reach=1.2 - hour)
    text = metrics.render().decode()
    labels = '{model_id="small",version="1.0.0"}'
    assert f"ml_workbench_interval_coverage{labels} {found(intervals).coverage}" in text
    assert f"ml_workbench_interval_outcomes_total{labels} 4.0" in text
    assert f"ml_workbench_interval_factor{labels} {found(intervals).factor}" in text


@pytest.fixture
def shelf(bench: Workbench, tmp_path: Path) -> Iterator[Shelf]:
    shutil.copytree(bench.registry.root, tmp_path / "registry")
    shelf = Shelf(tmp_path / "registry")
    yield shelf
    shelf.serving.close()


async def test_serving_follows_the_deployed_version_alone(shelf: Shelf, history: SymbolHistory, tmp_path: Path) -> None:
    shelf.deploy("1.0.0")
    serving = ModelServer(
        shelf.registry, live=DeploymentHistory(shelf.root).live, intervals=LiveIntervals(tmp_path / "adaptive")
    )
    later = [
        replace(each, as_of_ms=each.as_of_ms + AFTER_MS, newest_available_at_ms=each.newest_available_at_ms + AFTER_MS)
        for each in questions(history, 30)
    ]
    for version in ("1.0.0", "1.1.0"):
        chosen = await serving.choose("small", version)
        for question in later:
            await serving.answer(chosen, question, "c")
    live = serving.intervals.coverage("small", "1.0.0")
    assert live is not None
    assert live.num_outcomes > 20
    assert serving.intervals.coverage("small", "1.1.0") is None
    serving.close()
    assert files(tmp_path / "adaptive") == [tmp_path / "adaptive" / "small" / "1.0.0.json"]
    assert LiveIntervals(tmp_path / "adaptive").coverage("small", "1.0.0") == live
