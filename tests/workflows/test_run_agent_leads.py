"""Who leads, and what is counted: deaths and lost answers, a holder that was cut off, a server without memory."""

import threading
from pathlib import Path
from typing import Any

import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.leader_election import Candidacy
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.status import agent_group, read_agent
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import DEAD_LETTERS_STREAM
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.workflows.run_agent import run_agent
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401
from tests.workflows.agents_at_work import RunningAgent, running_decisions, timeless, two_symbols, uninterrupted, until


class Died(BaseException):
    """As the end of the process: nothing catches it."""


class Mortal(QLearningAgent):
    """Dies of one record."""

    def apply(self, entry_id: str, record: PredictionRecord) -> Decision | None:
        if record.prediction_id == "EUR/USD-3":
            raise Died
        return super().apply(entry_id, record)


def test_an_entry_that_ends_the_process_five_times_is_dead_lettered_untried(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    """Its neighbours of the same batch are applied, each of them once."""
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    decisions = DecisionStream(redis_server.url)
    queue.create_group(agent_group("default"))
    queue.publish([prediction_record(number) for number in range(6)])

    def mortal() -> QLearningAgent:
        checkpoint = Checkpoint.load(tmp_path)
        return Mortal("default") if checkpoint is None else Mortal.restored(checkpoint)

    for _ in range(5):
        with pytest.raises(Died):
            run_agent(
                "default", tmp_path, open_agent=mortal, queue=queue, decisions=decisions, stop=threading.Event(),
                candidacy=Candidacy(owner="mortal", is_dead=lambda owner: owner == "mortal"),
            )  # fmt: skip
    running = RunningAgent(redis_server, tmp_path, is_dead=lambda owner: owner == "mortal")
    running.wait_for(6)
    running.end()
    client = redis_server.client()
    ((_, letter),) = client.xrange(DEAD_LETTERS_STREAM)
    assert (letter[b"prediction_id"], b"ended 5 times" in letter[b"reason"]) == (b"EUR/USD-3", True)
    assert read_agent(tmp_path).num_applied == 5
    client.close()
    decisions.close()
    queue.close()


def test_answers_that_get_lost_make_no_dead_letters(redis_server: RedisForTests, tmp_path: Path) -> None:
    """The server counts such deliveries too; nobody began to apply anything."""
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    group = agent_group("default")
    queue.create_group(group)
    queue.publish([prediction_record(number) for number in range(8)])
    for _ in range(7):
        reader = RedisPredictionQueue(redis_server.url, capacity=100)
        assert len(reader.consume(group, "agent", block_ms=0)) == 8
        reader.close()
    running = RunningAgent(redis_server, tmp_path)
    running.wait_for(8)
    accounting = running.accounting()
    running.end()
    assert (accounting.acked, accounting.dead_lettered) == (8, 0)
    queue.close()


def test_a_holder_that_was_cut_off_reads_the_checkpoint_again(redis_server: RedisForTests, tmp_path: Path) -> None:
    """Another led meanwhile and ended in an orderly way: the lease is free, and what is in memory is out of date."""
    queue = RedisPredictionQueue(redis_server.url, capacity=1000)
    records = two_symbols(60)
    first = RunningAgent(redis_server, tmp_path)
    queue.publish(records[:40])
    first.wait_for(40)
    cut = Cut(first.queue)
    second = RunningAgent(redis_server, tmp_path, is_dead=lambda owner: True)
    until(lambda: Checkpoint.load(tmp_path).term > 1)  # type: ignore[union-attr]
    queue.publish(records[40:80])
    second.wait_for(80)
    second.end()
    cut.heal()
    queue.publish(records[80:])
    first.wait_for(len(records))
    first.end()
    agent, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(tmp_path)) == timeless(agent.checkpoint())
    assert running_decisions(redis_server) == decisions
    queue.close()


class Cut:
    """Fails every call of a queue, as a network that is cut."""

    def __init__(self, queue: RedisPredictionQueue) -> None:
        self._queue = queue
        self._whole = queue._run
        self._wait = queue._wait

        def fail(*arguments: Any, **more: Any) -> Any:
            raise UnavailableError("cut")

        queue._run = fail  # type: ignore[method-assign]
        queue._wait = fail  # type: ignore[method-assign]

    def heal(self) -> None:
        """Everything passes again."""
        self._queue._run = self._whole  # type: ignore[method-assign]
        self._queue._wait = self._wait  # type: ignore[method-assign]


def test_a_server_at_its_memory_limit_is_consumed_until_it_has_room(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=50_000)
    queue.create_group(agent_group("default"))
    client = redis_server.client()
    queue.publish([prediction_record(number) for number in range(500)])
    client.config_set("maxmemory", client.info("memory")["used_memory"])
    with pytest.raises(UnavailableError):
        queue.publish([prediction_record(1000 + number) for number in range(500)])
    running = RunningAgent(redis_server, tmp_path)
    running.wait_for(500)
    running.end()
    client.config_set("maxmemory", 0)
    client.close()
    queue.close()
