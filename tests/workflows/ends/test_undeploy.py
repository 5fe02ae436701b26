"""Undeploying: nothing is live any more, the engine knows, agents are flat, and the queue's accounting balances."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from common_lib.exceptions import BundleDamagedError, ConflictError, ModelNotFoundError, UpstreamError
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.contracts.clock import WallClock
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import Outgoing
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.integrations.strategy_engine import StrategyEngine
from ml_workbench_service.resources import Workbench
from ml_workbench_service.workflows import undeploy as workflow
from ml_workbench_service.workflows.deploy import Sender, rollback
from ml_workbench_service.workflows.end_versions import archive, purge_version
from ml_workbench_service.workflows.undeploy import send_closing_records, undeploy
from tests.integrations.strategy_engine_server import StrategyEngineServer
from tests.prediction_records import MONDAY, prediction_record
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401
from tests.workflows.agents_at_work import RunningAgent, running_decisions, until
from tests.workflows.ends.published_versions import bench_of, deploy, publish, ungated_fixture  # noqa: F401

pytestmark = pytest.mark.usefixtures("ungated")
SYMBOLS = ("EUR/USD", "GBP/USD", "USD/JPY")
"""Of the model; the last one is never asked about."""


class Later(WallClock):
    """Half a day after the first records."""

    def now(self) -> datetime:
        return MONDAY + timedelta(hours=12, minutes=10)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """`model` with 1.0.0 and 1.1.0 on three symbols; the bars' folder is empty."""
    bench = replace(bench_of(tmp_path), clock=Later())
    for version in ("1.0.0", "1.1.0"):
        publish(bench.registry, "model", version, symbols=SYMBOLS)
    return bench


@pytest.fixture
def queued(bench: Workbench, redis_server: RedisForTests) -> Iterator[Workbench]:
    """With a queue of its own."""
    queue = ShardedQueue(redis_server.url, capacity=100)
    yield replace(bench, queue=queue)
    queue.close()


def enqueue(bench: Workbench, records: list[PredictionRecord]) -> None:
    bench.required_queue().enqueue([Outgoing(each, "corr", time.time()) for each in records])


def told(bench: Workbench) -> list[tuple[str, str]]:
    return [(each.version, each.status) for each in DeploymentHistory(bench.history.root).of("model")]


def length(bench: Workbench) -> int:
    return bench.required_queue().accounting().length


def test_agents_go_flat_and_every_step_is_realised(
    queued: Workbench, redis_server: RedisForTests, tmp_path: Path
) -> None:
    deploy(queued, "model", "1.0.0")
    agent = RunningAgent(redis_server, tmp_path / "agent")
    try:
        until(lambda: bool(queued.required_queue().accounting().groups))
        asked = [
            prediction_record(hour, symbol=symbol, price=1.1 + hour / 1000, prediction_id=f"{symbol}-{hour}")
            for hour in range(12)
            for symbol in SYMBOLS[:2]
        ]
        enqueue(queued, asked)
        agent.wait_for(len(asked))
        answer = undeploy(queued, "model", full="wait")
        assert answer.warnings == ()
        assert answer.deployment is not None
        assert (answer.deployment.status, answer.deployment.closing_sent) == ("undeployed", True)
        agent.wait_for(len(asked) + len(SYMBOLS))
        accounting = agent.accounting()
    finally:
        agent.end()
    assert (accounting.balance, accounting.pending, accounting.undelivered) == (0, 0, 0)
    assert accounting.enqueued == accounting.acked == len(asked) + 3
    checkpoint = Checkpoint.load(tmp_path / "agent")
    assert checkpoint is not None
    assert checkpoint.positions == {"EUR/USD": 0, "GBP/USD": 0}
    assert all(not each.steps and not each.exposure for each in checkpoint.lanes.values())
    counted = checkpoint.counters
    assert counted.num_applied == accounting.acked
    assert counted.num_settled == counted.num_actions == len(asked) + 2
    assert counted.num_observed == 1, "of the symbol that nobody asked about"
    decisions = running_decisions(redis_server)
    closing = decisions[-2:]
    assert {each.symbol for each in closing} == set(SYMBOLS[:2])
    assert {(each.action, each.size, each.as_of, each.fill) for each in closing} == {
        ("flat", 0.0, Later().now(), "approximate")
    }
    earned = sum(each.reward or 0.0 for each in decisions)
    assert counted.cumulative_reward == pytest.approx(earned) == decisions[-1].cumulative_reward


def test_it_is_idempotent_and_a_deployment_afterwards_works(queued: Workbench) -> None:
    assert undeploy(queued, "model", full="wait").deployment is None
    with pytest.raises(ModelNotFoundError):
        undeploy(queued, "unknown", full="wait")
    assert not (queued.registry.root / "unknown").exists()
    deploy(queued, "model", "1.0.0")
    deploy(queued, "model", "1.1.0")
    first = undeploy(queued, "model", full="wait")
    assert undeploy(queued, "model", full="wait") == first
    assert length(queued) == len(SYMBOLS)
    assert told(queued) == [("1.0.0", "superseded"), ("1.1.0", "undeployed")]
    assert first.deployment is not None
    assert queued.registry.card("model", "1.1.0").status == "experimental"
    with pytest.raises(ConflictError, match="undeployed, not live"):
        rollback(queued, first.deployment.id, Sender("x", ""))
    again = deploy(queued, "model", "1.0.0")
    assert again.previous_version is None
    newer = deploy(queued, "model", "1.1.0")
    assert rollback(queued, newer.id, Sender("back", "")).version == "1.0.0"
    assert queued.history.live_version("model") == "1.0.0"
    undeploy(queued, "model", full="wait")
    assert length(queued) == 2 * len(SYMBOLS)


def test_closing_records_are_abstentions_at_the_newest_price(queued: Workbench, tmp_path: Path) -> None:
    opened = [Later().now().replace(minute=0) - timedelta(hours=back) for back in (3, 2, 1)]
    lines = [f"{each:%Y-%m-%dT%H:%M:%SZ},1.1,1.2,1.0,{1.1 + number / 100}" for number, each in enumerate(opened)]
    (tmp_path / "bars" / "EURUSD_1h.csv").write_text("\n".join(["timestamp,open,high,low,close", *lines]))
    card = publish(queued.registry, "priced", "1.0.0", symbols=("EUR/USD",))
    live = deploy(queued, "priced", "1.0.0")
    ended = live.model_copy(update={"closing_as_of": Later().now()})
    (record,) = workflow.closing_records(card, ended, costs={}, prices=workflow._prices(queued, card))
    assert (record.status, record.abstain_reasons, record.role) == ("abstain", ("undeployed",), "champion")
    assert (record.price, record.as_of, record.direction) == (1.12, Later().now(), "hold")
    assert record.metadata.deployment_id == live.id
    assert record.is_closing


def test_a_queue_that_is_away_gets_them_later_once(queued: Workbench, redis_server: RedisForTests) -> None:
    deploy(queued, "model", "1.0.0")
    redis_server.stop()
    answer = undeploy(queued, "model", full="wait")
    assert answer.warnings == ("closing_records_pending",)
    assert queued.history.live("model") is None
    archive(queued, "model", "1.0.0")
    with pytest.raises(ConflictError, match="agents were not told yet"):
        purge_version(queued, "model", "1.0.0", confirm="model", unfinished=())
    redis_server.start()
    for _ in range(2):
        send_closing_records(queued, full="wait")
    assert length(queued) == len(SYMBOLS)
    assert undeploy(queued, "model", full="wait").warnings == ()
    assert purge_version(queued, "model", "1.0.0", confirm="model", unfinished=()).was_live


def test_a_full_queue_is_waited_for_unless_it_drops(queued: Workbench) -> None:
    deploy(queued, "model", "1.0.0")
    enqueue(queued, [prediction_record(number) for number in range(100)])
    assert undeploy(queued, "model", full="wait").warnings == ("closing_records_pending",)
    send_closing_records(queued, full="drop_oldest")
    assert undeploy(queued, "model", full="wait").warnings == ()
    assert length(queued) == 100


def test_a_model_that_is_live_again_owes_none(queued: Workbench, redis_server: RedisForTests) -> None:
    deploy(queued, "model", "1.0.0")
    redis_server.stop()
    undeploy(queued, "model", full="wait")
    deploy(queued, "model", "1.1.0")
    redis_server.start()
    send_closing_records(queued, full="wait")
    assert length(queued) == 0
    assert not any(each.owes_closing for each in queued.history.of("model"))


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("num_lines", [0, 1, 2])
def test_a_kill_between_any_two_lines_is_finished_by_the_next_start(
    queued: Workbench, monkeypatch: pytest.MonkeyPatch, num_lines: int
) -> None:
    deploy(queued, "model", "1.0.0")
    append, calls = queued.history.append, iter(range(10))

    def killed_at(*lines: Any) -> None:
        if next(calls) == num_lines:
            raise Killed
        append(*lines)

    monkeypatch.setattr(queued.history, "append", killed_at)
    with pytest.raises(Killed):
        undeploy(queued, "model", full="wait")
    monkeypatch.undo()
    restarted = replace(queued, history=DeploymentHistory(queued.history.root))
    send_closing_records(restarted, full="wait")
    if num_lines == 0:
        assert told(restarted) == [("1.0.0", "live")]
        assert length(restarted) == 0
        return
    assert told(restarted) == [("1.0.0", "undeployed")]
    assert length(restarted) == len(SYMBOLS), "each once, though the second kill came after they were sent"
    assert not restarted.history.of("model")[0].owes_closing


@pytest.fixture
def engine() -> Iterator[StrategyEngineServer]:
    """A strategy engine in a good mood."""
    with StrategyEngineServer() as server:
        yield server


def test_the_engine_is_told_and_one_that_refuses_keeps_it_live(bench: Workbench, engine: StrategyEngineServer) -> None:
    client = StrategyEngine(engine.url, api_key=None, own_url="http://here")
    bench = replace(bench, strategy_engine=client)
    live = deploy(bench, "model", "1.0.0", "strategy_engine")
    assert list(engine.strategies) == [live.id]
    engine.mood = "refuse"
    with pytest.raises(UpstreamError, match="refused the undeployment with status 409"):
        undeploy(bench, "model", full="wait")
    engine.mood = "hang_up"
    with pytest.raises(UpstreamError, match="undeploy again"):
        undeploy(bench, "model", full="wait")
    assert told(bench) == [("1.0.0", "live")]
    engine.mood = "accept"
    assert undeploy(bench, "model", full="wait").deployment is not None
    headers, body = engine.unregistered[-1]
    assert headers["idempotency-key"] == f"undeploy-{live.id}"
    assert body["parameters"] == {"model_id": "model", "version": "1.0.0", "digest": live.digest}
    assert engine.strategies == {}
    deploy(bench, "model", "1.0.0", "strategy_engine")
    engine.strategies.clear()  # it has lost its memory, and answers 404
    assert undeploy(bench, "model", full="wait").deployment is not None
    assert bench.history.live("model") is None


def test_an_engine_that_is_not_configured_is_warned_of_and_one_not_concerned_is_left_alone(
    bench: Workbench, engine: StrategyEngineServer
) -> None:
    deploy(bench, "model", "1.0.0", "strategy_engine")
    assert "strategy_engine_not_configured" in undeploy(bench, "model", full="wait").warnings
    deploy(bench, "model", "1.0.0", "local")
    client = StrategyEngine(engine.url, api_key=None, own_url="http://here")
    undeploy(replace(bench, strategy_engine=client), "model", full="wait")
    assert engine.unregistered == []


def test_a_damaged_bundle_is_undeployed_and_told_of_once_it_is_mended(
    queued: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(queued, "model", "1.0.0")

    def damaged(*_: object) -> Any:
        raise BundleDamagedError("the bundle cannot be read")

    monkeypatch.setattr(queued.registry, "card", damaged)
    assert undeploy(queued, "model", full="wait").warnings == ("closing_records_pending",)
    assert queued.history.live("model") is None
    monkeypatch.undo()
    send_closing_records(queued, full="wait")
    assert length(queued) == len(SYMBOLS)


def test_a_history_of_before_reads_as_it_did(bench: Workbench) -> None:
    live = deploy(bench, "model", "1.0.0")
    earlier = live.model_dump_json(exclude={"closing_as_of", "closing_sent"})
    (bench.registry.root / "model" / "deployments.jsonl").write_text(earlier + "\n")
    assert DeploymentHistory(bench.history.root).live("model") == live
    assert cast(datetime, live.live_at).tzinfo is UTC
