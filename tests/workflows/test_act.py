"""The agent loop: each entry applied exactly once, through faults, outages and an agent process killed with -9."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import AgentNotFoundError
from common_lib.logging import RL_LOGGER
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.learner import Learner
from ml_workbench_service.agents.state import PROCESS_FILE, agent_folder, agent_group, read_agent, read_agents
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import DEAD_LETTERS_STREAM, PREDICTIONS_STREAM, GroupBooks
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.processes import ProcessRecord, end_leftover
from ml_workbench_service.workflows.act import act
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401


def two_symbols(num_bars: int) -> list[PredictionRecord]:
    """Two interleaved random walks with forecasts that know a little, an abstention and a candidate now and then."""
    rng = np.random.default_rng(11)
    records: list[PredictionRecord] = []
    price = {"EUR/USD": 1.1, "USD/JPY": 150.0}
    for number in range(num_bars):
        for symbol in price:
            move = rng.normal(0, 0.001)
            changes: dict[str, Any] = {"prediction": float(0.2 * move + rng.normal(0, 0.0002))}
            if number % 17 == 3:
                changes = {"status": "abstain", "prediction": None, "abstain_reasons": ("novel_input",)}
            if number % 29 == 5:
                changes["role"] = "candidate"
            records.append(prediction_record(number, symbol=symbol, price=price[symbol], **changes))
            price[symbol] *= float(np.exp(move))
    return records


def uninterrupted(records: list[PredictionRecord]) -> tuple[Learner, list[Decision]]:
    """What the default agent must end with."""
    learner = Learner("default")
    decisions = [learner.apply(f"{number + 1}-0", record) for number, record in enumerate(records)]
    return learner, [decision for decision in decisions if decision is not None]


def timeless(checkpoint: Checkpoint | None) -> Checkpoint:
    """A checkpoint without what depends on the clock."""
    assert checkpoint is not None
    return checkpoint.model_copy(update={"saved_at": None, "last_applied_id": None})


def until(condition: Callable[[], bool], *, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.003)


class RunningAct:
    """The loop in a thread, as the agent's process runs it."""

    def __init__(self, server: RedisForTests, folder: Path, learner: Learner | None = None) -> None:
        self.folder = folder
        self.queue = RedisPredictionQueue(server.url, capacity=10_000)
        self.decisions = DecisionStream(server.url)
        self.stop = threading.Event()
        checkpoint = Checkpoint.load(folder)
        self.learner = learner or (Learner.restored(checkpoint) if checkpoint else Learner("default"))
        arguments: dict[str, Any] = {"queue": self.queue, "decisions": self.decisions, "stop": self.stop}
        self.thread = threading.Thread(target=act, args=(self.learner, folder), kwargs=arguments)
        self.thread.start()

    def books(self) -> GroupBooks:
        return next(books for books in self.queue.books()[2] if books.group == agent_group("default"))

    def wait_for(self, num_settled: int) -> None:
        """Until so many entries are settled in the queue, in one way or another."""

        def settled() -> bool:
            groups = [books for books in self.queue.books()[2] if books.group == agent_group("default")]
            return bool(groups) and groups[0].acked + groups[0].dead_lettered >= num_settled

        until(settled)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.queue.close()
        self.decisions.close()


def test_every_record_is_applied_once_and_its_decision_published(redis_server: RedisForTests, tmp_path: Path) -> None:
    records = two_symbols(100)
    producer = RedisPredictionQueue(redis_server.url, capacity=10_000)
    producer.publish(records)
    running = RunningAct(redis_server, tmp_path)
    running.wait_for(len(records))
    books = running.books()
    written = running.decisions.read()
    running.end()
    producer.close()
    learner, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(tmp_path)) == timeless(learner.checkpoint())
    assert written == decisions
    assert (books.enqueued, books.acked, books.balance) == (len(records), len(records), 0)


def test_a_crash_between_decisions_and_checkpoint_or_acknowledgment_repeats_nothing(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    records = two_symbols(60)
    queue = RedisPredictionQueue(redis_server.url, capacity=10_000)
    queue.create_group(agent_group("default"))
    queue.publish(records)
    # A predecessor that decided on 30 entries, saved 20 of them, and acknowledged none.
    decisions = DecisionStream(redis_server.url)
    dead = Learner("default")
    for number, delivery in enumerate(queue.consume(agent_group("default"), "agent", count=30, block_ms=0)):
        assert delivery.record is not None
        decision = dead.apply(delivery.entry_id, delivery.record)
        if decision is not None:
            decisions.write("default", [(delivery.entry_id, decision)])
        if number == 19:
            dead.checkpoint().save(tmp_path)
    running = RunningAct(redis_server, tmp_path)
    running.wait_for(len(records))
    running.end()
    learner, expected = uninterrupted(records)
    assert timeless(Checkpoint.load(tmp_path)) == timeless(learner.checkpoint())
    assert decisions.read() == expected
    queue.close()
    decisions.close()


def test_a_record_that_fails_is_dead_lettered_after_five_tries_and_the_next_ones_go_on(
    redis_server: RedisForTests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    running = RunningAct(redis_server, tmp_path)
    bad = prediction_record(1, symbol="EUR/XAU")
    queue.publish([prediction_record(0), bad])
    client = redis_server.client()
    client.xadd(PREDICTIONS_STREAM, {"record": "no record"})
    queue.publish([prediction_record(2)])
    until(lambda: queue.books()[0] == 0)
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
    running = RunningAct(redis_server, tmp_path)
    for start in range(0, len(records), 50):
        queue.publish(records[start : start + 50])
        if start == 100:
            redis_server.kill()
            time.sleep(0.1)
            redis_server.start()
    running.wait_for(len(records))
    books = running.books()
    written = running.decisions.read()
    running.end()
    learner, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(tmp_path)) == timeless(learner.checkpoint())
    assert written == decisions
    assert books.balance == 0
    queue.close()


def test_each_decision_is_logged_with_action_reward_and_cumulative_reward(
    redis_server: RedisForTests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    queue.publish([prediction_record(number, price=1.1 + number / 1000) for number in range(5)])
    logger = logging.getLogger(RL_LOGGER)
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    running = RunningAct(redis_server, tmp_path)
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


def running_decisions(server: RedisForTests) -> list[Decision]:
    stream = DecisionStream(server.url)
    decisions = stream.read()
    stream.close()
    return decisions


def start_agent(server: RedisForTests, state_dir: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "REDIS_URL": server.url,
        "STATE_DIR": str(state_dir),
        "LOG_DIR": str(state_dir / "logs"),
        "LOG_LEVEL": "INFO",
    }
    with (state_dir / "agent.out").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ml_workbench_service.jobs.agent", "--agent", "default"],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def test_an_agent_killed_five_times_ends_as_if_it_had_never_stopped(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    records = two_symbols(1500)
    folder = agent_folder(tmp_path, "default")
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    finished = threading.Event()

    def publish() -> None:
        position = 0
        while position < len(records) and not finished.is_set():
            position += queue.publish(records[position : position + 5], drop_oldest=False)
            time.sleep(0.003)

    def num_applied() -> int:
        return read_agent(folder).num_applied if (folder / "checkpoint.json").exists() else 0

    producer = threading.Thread(target=publish)
    producer.start()
    chance = random.Random(5)
    try:
        for kill in range(5):
            agent = start_agent(redis_server, tmp_path)
            goal = (kill + 1) * 400 + chance.randrange(200)
            until(lambda goal=goal: num_applied() >= goal)  # type: ignore[misc]
            time.sleep(chance.random() * 0.01)
            agent.kill()
            agent.wait()
            assert read_agent(folder).status == "failed"
            assert num_applied() < len(records), "the kill came too late to mean anything"
        agent = start_agent(redis_server, tmp_path)
        until(lambda: num_applied() == len(records))
        until(lambda: queue.books()[0] == 0)
        assert read_agent(folder).status == "running"
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(5) == 0, (tmp_path / "agent.out").read_text()
    finally:
        finished.set()
        producer.join()
        agent.kill()
        agent.wait()
    learner, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(folder)) == timeless(learner.checkpoint())
    assert running_decisions(redis_server) == decisions, "a decision is missing, doubled or different"
    (books,) = queue.books()[2]
    assert (books.acked, books.balance, books.dropped_oldest) == (len(records), 0, 0)
    assert read_agent(folder).status == "stopped"
    assert [agent.id for agent in read_agents(tmp_path)] == ["default"]
    queue.close()


def test_one_process_per_agent_and_a_leftover_is_ended(redis_server: RedisForTests, tmp_path: Path) -> None:
    folder = agent_folder(tmp_path, "default")
    with pytest.raises(AgentNotFoundError):
        read_agent(folder)
    agent = start_agent(redis_server, tmp_path)
    try:
        until(lambda: (folder / PROCESS_FILE).exists())
        record = ProcessRecord.read(folder / PROCESS_FILE)
        assert record is not None
        assert (record.pid, record.ended) == (agent.pid, False)
        second = start_agent(redis_server, tmp_path)
        assert second.wait(30) == 1
        assert "stop it first" in (tmp_path / "agent.out").read_text()
        assert agent.poll() is None
        assert end_leftover(folder / PROCESS_FILE) is True
        assert agent.wait(5) == 0
    finally:
        agent.kill()
        agent.wait()
