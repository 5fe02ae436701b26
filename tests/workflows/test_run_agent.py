"""The agent loop: each entry applied exactly once, through faults, outages and an agent process killed with -9."""

import logging
import time
from pathlib import Path

import pytest

from common_lib.exceptions import UnavailableError
from common_lib.logging import RL_LOGGER
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.status import agent_group, read_agent
from ml_workbench_service.contracts.queue import DEAD_LETTERS_STREAM, PREDICTIONS_STREAM
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401
from tests.workflows.agents_at_work import (
    RunningAgent,
    running_decisions,
    timeless,
    two_symbols,
    uninterrupted,
    until,
)


def test_every_record_is_applied_once_and_its_decision_published(redis_server: RedisForTests, tmp_path: Path) -> None:
    records = two_symbols(100)
    producer = RedisPredictionQueue(redis_server.url, capacity=10_000)
    producer.publish(records)
    running = RunningAgent(redis_server, tmp_path)
    running.wait_for(len(records))
    accounting = running.accounting()
    written = running.decisions.read()
    running.end()
    producer.close()
    agent, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(tmp_path)) == timeless(agent.checkpoint())
    assert written == decisions
    assert (accounting.enqueued, accounting.acked, accounting.balance) == (len(records), len(records), 0)


def test_a_crash_between_decisions_and_checkpoint_or_acknowledgment_repeats_nothing(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    records = two_symbols(60)
    queue = RedisPredictionQueue(redis_server.url, capacity=10_000)
    queue.create_group(agent_group("default"))
    queue.publish(records)
    # A predecessor that decided on 30 entries, saved 20 of them, and acknowledged none.
    decisions = DecisionStream(redis_server.url)
    epoch = queue.create_group(agent_group("default"))
    dead = QLearningAgent("default")
    for number, delivery in enumerate(queue.consume(agent_group("default"), "agent", count=30, block_ms=0)):
        assert delivery.record is not None
        decision = dead.apply(delivery.entry_id, delivery.record)
        if decision is not None:
            decisions.write("default", [(delivery.entry_id, decision)], epoch=epoch)
        if number == 19:
            dead.checkpoint().model_copy(update={"stream_epoch": epoch}).save(tmp_path)
    running = RunningAgent(redis_server, tmp_path)
    running.wait_for(len(records))
    running.end()
    agent, expected = uninterrupted(records)
    assert timeless(Checkpoint.load(tmp_path)) == timeless(agent.checkpoint())
    assert decisions.read() == expected
    queue.close()
    decisions.close()


def test_a_record_that_fails_is_dead_lettered_after_five_tries_and_the_next_ones_go_on(
    redis_server: RedisForTests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    running = RunningAgent(redis_server, tmp_path)
    bad = prediction_record(1, symbol="EUR/XAU")
    queue.publish([prediction_record(0), bad])
    client = redis_server.client()
    client.xadd(PREDICTIONS_STREAM, {"record": "no record"})
    queue.publish([prediction_record(2)])
    until(lambda: queue.accounting().length == 0)
    running.end()
    letters = [fields for _, fields in client.xrange(DEAD_LETTERS_STREAM)]
    assert [fields.get(b"prediction_id") for fields in letters] == [b"EUR/XAU-1", None]
    assert b"costs" in letters[0][b"reason"]
    assert sum("(try " in record.getMessage() for record in caplog.records) == 5
    agent = read_agent(tmp_path)
    assert (agent.num_applied, agent.num_actions) == (2, 2)
    client.close()
    queue.close()


def test_a_killed_redis_is_waited_for_and_nothing_is_lost(redis_server: RedisForTests, tmp_path: Path) -> None:
    records = two_symbols(150)
    queue = RedisPredictionQueue(redis_server.url, capacity=10_000)
    running = RunningAgent(redis_server, tmp_path)
    for start in range(0, len(records), 50):
        queue.publish(records[start : start + 50])
        if start == 100:
            redis_server.kill()
            time.sleep(0.1)
            redis_server.start()
            with pytest.raises(UnavailableError):
                queue.publish(records[start : start + 50])  # on the connection of before; whoever publishes tries again
    running.wait_for(len(records))
    accounting = running.accounting()
    written = running.decisions.read()
    running.end()
    agent, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(tmp_path)) == timeless(agent.checkpoint())
    assert written == decisions
    assert accounting.balance == 0
    queue.close()


def test_each_decision_is_logged_with_action_reward_and_cumulative_reward(
    redis_server: RedisForTests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    queue.publish([prediction_record(number, price=1.1 + number / 1000) for number in range(5)])
    logger = logging.getLogger(RL_LOGGER)
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    running = RunningAgent(redis_server, tmp_path)
    running.wait_for(5)
    running.end()
    logger.removeHandler(caplog.handler)
    lines = list(dict.fromkeys(r.getMessage() for r in caplog.records if r.name == RL_LOGGER))
    expected = [
        f"Action={d.action}, Reward={d.reward}, Cumulative Reward={d.cumulative_reward}"
        for d in running_decisions(redis_server)
    ]
    assert lines == list(dict.fromkeys(expected))
    assert lines[0].endswith("Reward=None, Cumulative Reward=0.0")
    queue.close()


def test_a_server_that_lost_everything_is_met_anew_even_with_its_clock_set_back(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    client = redis_server.client()
    tomorrow = f"{int((time.time() + 86_400) * 1000)}-0"
    queue.create_group(agent_group("default"))
    client.execute_command("XSETID", PREDICTIONS_STREAM, tomorrow)  # as after a step of the clock: ids are a day ahead
    running = RunningAgent(redis_server, tmp_path)
    queue.publish([prediction_record(number) for number in range(3)])
    until(lambda: running.accounting().acked == 3)
    client.flushall()  # the clock is right again: new ids are a day behind those applied
    queue.publish([prediction_record(number) for number in range(3, 6)])
    until(lambda: read_agent(tmp_path).num_applied == 6)
    running.end()
    client.close()
    queue.close()


def test_ids_stay_ahead_of_what_was_applied_where_a_failover_lost_the_last_entries(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    epoch = queue.create_group(agent_group("default"))
    agent = QLearningAgent("default")
    later = f"{int((time.time() + 3_600) * 1000)}-5"  # applied, acknowledged, and lost by the server with its clock
    agent.apply(later, prediction_record(0))
    agent.checkpoint().model_copy(update={"stream_epoch": epoch}).save(tmp_path)
    running = RunningAgent(redis_server, tmp_path)
    until(lambda: Checkpoint.load(tmp_path).term == 1)  # type: ignore[union-attr]
    queue.publish([prediction_record(1)])
    until(lambda: read_agent(tmp_path).num_applied == 2)
    running.end()
    queue.close()
