"""Replaying: the past in the order in which it became known, each bar once, waiting for room, never dropping."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, JobCancelled, QueueStalledError, UnavailableError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.resources import Workbench, close_workbench
from ml_workbench_service.serving.history import columns_needed, read_history
from ml_workbench_service.serving.predict import Circumstances, answer
from ml_workbench_service.testing.synthetic import Recorder
from ml_workbench_service.workflows import replay
from tests.integrations.model_cards import MOMENT
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401
from tests.trained_models import loaded, train_model
from tests.workflows.conftest import OpenBench

GROUP = "reader"
START = datetime(2025, 1, 7, 22, tzinfo=UTC)
BOTH = ("GBP/USD", "EUR/USD")


@pytest.fixture
def bench(open_bench: OpenBench, redis_server: RedisForTests) -> Iterator[Workbench]:
    """Two versions, a queue with one reading group, and nothing deployed."""
    opened = open_bench("1.0.0", "1.1.0", redis=redis_server.url)
    opened.required_queue().create_group(GROUP)
    yield opened
    close_workbench(opened)


def run(bench: Workbench, report: Recorder | None = None, *, job_id: str = "job-1", **changes: Any) -> dict[str, Any]:
    """Replays a day of both symbols; keyword arguments replace keys of the request."""
    hours = changes.pop("hours", 24)
    request = {
        "model_id": "small",
        "symbols": list(BOTH),
        "start_date": START.isoformat(),
        "end_date": (START + timedelta(hours=hours)).isoformat(),
        **changes,
    }
    spec = JobSpec(
        id=job_id,
        kind=JobKind.REPLAY,
        request=request,
        plan={"version": request.get("version", "1.0.0")},
        created_at=MOMENT,
        correlation_id=f"corr-{job_id}",
    )
    folder = bench.state_dir / job_id
    folder.mkdir(parents=True, exist_ok=True)
    return replay.run(spec, checkpoint=folder, report=report or Recorder(), workbench=bench)


def taken(queue: ShardedQueue, *, settle: bool = True) -> list[PredictionRecord]:
    """Everything that waits for the group, acknowledged."""
    found: list[PredictionRecord] = []
    while deliveries := queue.shards[0].consume(GROUP, "one", block_ms=20):
        assert all(each.record for each in deliveries)
        found += [each.record for each in deliveries if each.record]
        if not settle:
            break
        queue.shards[0].ack(GROUP, [each.entry_id for each in deliveries])
    return found


def make_live(bench: Workbench, version: str, **changes: Any) -> Deployment:
    """Writes a live deployment into the history."""
    fields: dict[str, Any] = {
        "id": f"live-{version}",
        "model_id": "small",
        "version": version,
        "deployment_target": "local",
        "status": "live",
        "previous_version": None,
        "created_at": MOMENT,
        "live_at": MOMENT,
    }
    deployment = Deployment.model_validate(fields | changes)
    bench.history.append(deployment)
    return deployment


def test_symbols_advance_together_in_the_order_in_which_bars_became_known(bench: Workbench) -> None:
    result = run(bench)
    records = taken(bench.required_queue())
    assert [record.symbol for record in records] == list(BOTH) * 24
    moments = [record.as_of for record in records]
    assert moments == sorted(moments)
    assert moments[0] == START + timedelta(hours=1)  # the first bar is known when it has closed
    assert moments[-1] == START + timedelta(hours=24)
    assert (result["num_bars"], result["num_published"], result["num_skipped"]) == (48, 48, 0)
    assert result["num_abstained"] == sum(record.status == "abstain" for record in records)
    assert (result["model_id"], result["version"]) == ("small", "1.0.0")


def test_records_say_where_they_come_from_and_carry_the_bars_close(bench: Workbench) -> None:
    deployment = make_live(bench, "1.0.0", scaling_factor=0.5)
    run(bench)
    records = taken(bench.required_queue())
    for record in records:
        assert (record.source, record.version, record.role) == ("replay:job-1", "1.0.0", "champion")
        assert record.metadata.deployment_id == deployment.id
        assert record.metadata.correlation_id == "corr-job-1"
        assert record.scaling_factor == 0.5
        assert "as_of_assumed" not in record.warnings
    closes = {
        table.symbol: dict(zip(table.available_at_ms.tolist(), table.columns["close"].tolist(), strict=True))
        for table in bench.feature_store.fetch(
            BOTH, "1h", start_ms=to_ms(START), end_ms=to_ms(START + timedelta(hours=24)), features=["close"]
        )
    }
    assert [record.price for record in records] == [closes[record.symbol][to_ms(record.as_of)] for record in records]


def test_a_version_that_is_not_live_replays_as_a_candidate(bench: Workbench) -> None:
    make_live(bench, "1.0.0", scaling_factor=0.5)
    run(bench, version="1.1.0")
    for record in taken(bench.required_queue()):
        assert (record.version, record.role, record.scaling_factor) == ("1.1.0", "candidate", 1.0)
        assert record.metadata.deployment_id is None


def test_repeating_a_replay_repeats_nothing_and_another_one_is_another(bench: Workbench) -> None:
    queue = bench.required_queue()
    run(bench)
    first = taken(queue)
    again = run(bench)
    assert again["num_published"] == 48  # taken, and known already
    assert taken(queue) == []
    [accounting] = [group for group in queue.accounting().groups if group.group == GROUP]
    assert (accounting.enqueued, accounting.acked, accounting.duplicates, accounting.balance) == (48, 48, 48, 0)
    run(bench, job_id="job-2")
    second = taken(queue)
    assert [record.prediction for record in second] == [record.prediction for record in first]
    assert {record.prediction_id for record in first}.isdisjoint({record.prediction_id for record in second})


def test_a_replay_longer_than_the_queue_waits_for_room_and_drops_nothing(bench: Workbench) -> None:
    queue = bench.required_queue()
    found: list[PredictionRecord] = []
    longest = 0
    done = threading.Event()

    def read_once_it_is_full() -> None:
        nonlocal longest
        while queue.accounting().length < queue.capacity and not done.is_set():
            time.sleep(0.005)
        while not done.is_set() or queue.accounting().length:
            longest = max(longest, queue.accounting().length)
            deliveries = queue.shards[0].consume(GROUP, "one", count=7, block_ms=20)
            found.extend(each.record for each in deliveries if each.record)
            queue.shards[0].ack(GROUP, [each.entry_id for each in deliveries])

    reader = threading.Thread(target=read_once_it_is_full)
    reader.start()
    try:
        result = run(bench, hours=168)
    finally:
        done.set()
        reader.join()
    assert result["num_published"] == 240 > queue.capacity
    assert len({record.prediction_id for record in found}) == len(found) == 240
    assert [record.as_of for record in found] == sorted(record.as_of for record in found)
    assert longest == queue.capacity
    [accounting] = [group for group in queue.accounting().groups if group.group == GROUP]
    assert (accounting.enqueued, accounting.acked, accounting.dropped_oldest, accounting.balance) == (240, 240, 0, 0)


def test_a_replay_that_finds_no_room_for_too_long_fails(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "STALLED_S", 0.3)
    with pytest.raises(QueueStalledError, match="/api/v1/queue") as caught:
        run(bench, hours=120)
    assert caught.value.error_code == "QUEUE_STALLED"
    queue = bench.required_queue()
    assert queue.accounting().length == queue.capacity
    assert queue.accounting().groups[0].dropped_oldest == 0


def test_a_replay_outlives_a_restart_of_the_server(bench: Workbench, redis_server: RedisForTests) -> None:
    queue = bench.required_queue()
    restarted = threading.Event()
    report = Recorder()

    def restart() -> None:
        while queue.accounting().length < 20:
            time.sleep(0.005)
        redis_server.kill()
        while not report.warnings:  # it noticed, and waits
            time.sleep(0.005)
        redis_server.start()
        restarted.set()

    thread = threading.Thread(target=restart)
    thread.start()
    result = run(bench, report, hours=48, speed=200)
    thread.join()
    assert restarted.is_set()
    assert result["num_published"] == 96
    assert any("waits for the queue" in each for each in report.warnings)
    found = [record.prediction_id for record in taken(queue)]
    assert len(set(found)) == len(found) == 96


def test_a_waiting_replay_is_cancelled(bench: Workbench) -> None:
    report = Recorder(cancel_at_check=10)
    with pytest.raises(JobCancelled):
        run(bench, report, hours=120)
    assert bench.required_queue().accounting().length <= bench.required_queue().capacity


def test_a_speed_is_kept_and_a_sleeping_replay_is_cancelled_soon(bench: Workbench) -> None:
    result = run(bench, symbols=["EUR/USD"], hours=6, speed=20)
    assert result["num_published"] == 6
    assert result["duration_s"] >= 5 / 20
    moment = time.monotonic()
    with pytest.raises(JobCancelled):
        run(bench, Recorder(cancel_at_check=4), job_id="slow", symbols=["EUR/USD"], speed=0.01)
    assert time.monotonic() - moment < 50, "a bar comes every hundred seconds"
    assert len(taken(bench.required_queue())) == 6 + 1  # what was due had been sent


def test_progress_is_reported_up_to_the_end(bench: Workbench) -> None:
    report = Recorder()
    run(bench, report)
    assert report.messages == ["fetching features", "streaming"]
    step, total, metrics = report.steps[-1]
    assert (step, total, metrics) == (48, 48, {"num_published": 48.0})


def test_a_range_without_bars_is_an_error(bench: Workbench) -> None:
    saturday = datetime(2025, 1, 11, 1, tzinfo=UTC)
    with pytest.raises(DataValidationError, match="no bar"):
        run(bench, start_date=saturday.isoformat(), end_date=(saturday + timedelta(hours=12)).isoformat())
    with pytest.raises(DataValidationError):
        run(bench, start_date="1980-01-07T00:00:00Z", end_date="1980-01-08T00:00:00Z")


def test_without_redis_a_replay_says_so(open_bench: OpenBench) -> None:
    with pytest.raises(UnavailableError, match="Redis"):
        run(open_bench("1.0.0"), hours=2)


def test_a_policy_is_told_what_it_holds_symbol_by_symbol(bench: Workbench, tmp_path: Path) -> None:
    """Each answer is the one to the position of the record before; a policy that were always flat would differ."""
    card = train_model(
        bench, "trader", checkpoint=tmp_path, model_type="reinforcement_learning", target=None, timeframe="1h",
        features=["return_1", "rsi_14"], symbols=list(BOTH), start_date="2024-01-01T00:00:00Z",
        hyperparameters={"bins": 4, "epochs": 3},
    )  # fmt: skip
    run(bench, model_id="trader", hours=48)
    records = taken(bench.required_queue())
    model = loaded(bench, card)
    tables = bench.feature_store.fetch(
        list(BOTH), "1h", start_ms=to_ms(START - timedelta(days=30)), end_ms=to_ms(START + timedelta(hours=48)),
        features=columns_needed(model),
    )  # fmt: skip
    differing = 0
    for table in tables:
        history, held = read_history(model, table), 0.0
        for record in (each for each in records if each.symbol == table.symbol):
            row = int(np.searchsorted(table.available_at_ms, to_ms(record.as_of)))
            question = history.question(row)
            told = answer(model, replace(question, position=held), Circumstances(role="candidate"))
            differing += told.outputs != answer(model, question, Circumstances(role="candidate")).outputs
            assert record.outputs == told.outputs
            held = record.prediction or 0.0
    assert differing > 0
