"""Agent processes that are killed, frozen, doubled, or find the disk full: each record still counts once."""

import random
import resource
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from common_lib.exceptions import AgentNotFoundError
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.status import PROCESS_FILE, agent_folder, agent_group, read_agent, read_agents
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.jobs.process_record import end_leftover
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401
from tests.workflows.agents_at_work import (
    pid_in,
    running_decisions,
    start_agent,
    timeless,
    two_symbols,
    uninterrupted,
    until,
)


@pytest.mark.more
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
            position += queue.publish(records[position : position + 5], full="wait")
            time.sleep(0.003)

    def num_applied() -> int:
        return read_agent(folder).num_applied if Checkpoint.load(folder) is not None else 0

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
        until(lambda: queue.accounting().length == 0)
        assert read_agent(folder).status == "running"
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0, (tmp_path / "agent.out").read_text()
    finally:
        finished.set()
        producer.join()
        agent.kill()
        agent.wait()
    agent, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(folder)) == timeless(agent.checkpoint())
    assert running_decisions(redis_server) == decisions, "a decision is missing, doubled or different"
    (accounting,) = queue.accounting().groups
    assert (accounting.acked, accounting.balance, accounting.dropped_oldest) == (len(records), 0, 0)
    assert read_agent(folder).status == "stopped"
    assert [agent.id for agent in read_agents(tmp_path)] == ["default"]
    queue.close()


def test_a_second_process_stands_by_and_takes_over_at_once_when_the_first_is_killed(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    records = two_symbols(400)
    folder = agent_folder(tmp_path, "default")
    queue = RedisPredictionQueue(redis_server.url, capacity=10_000)
    with pytest.raises(AgentNotFoundError):
        read_agent(folder)
    first = start_agent(redis_server, tmp_path)
    second = None
    try:
        until(lambda: pid_in(folder / PROCESS_FILE) == first.pid)
        second = start_agent(redis_server, tmp_path)
        until(lambda: "stands by" in (tmp_path / "agent.out").read_text())
        queue.publish(records[:500])
        until(lambda: read_agent(folder).num_applied == 500)
        assert pid_in(folder / PROCESS_FILE) == first.pid
        queue.publish(records[500:])
        first.kill()
        first.wait()
        until(lambda: read_agent(folder).num_applied == len(records))
        assert pid_in(folder / PROCESS_FILE) == second.pid
        assert end_leftover(folder / PROCESS_FILE) is True
        assert second.wait(60) == 0
    finally:
        for agent in (first, second):
            if agent is not None:
                agent.kill()
                agent.wait()
    agent, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(folder)) == timeless(agent.checkpoint())
    assert running_decisions(redis_server) == decisions
    queue.close()


@pytest.mark.more
def test_a_frozen_process_is_overtaken_and_changes_nothing_when_it_wakes(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    records = two_symbols(600)
    folder = agent_folder(tmp_path, "default")
    queue = RedisPredictionQueue(redis_server.url, capacity=10_000)
    agents = [start_agent(redis_server, tmp_path)]
    try:
        until(lambda: pid_in(folder / PROCESS_FILE) == agents[0].pid)
        agents.append(start_agent(redis_server, tmp_path))
        until(lambda: "stands by" in (tmp_path / "agent.out").read_text())
        queue.publish(records[:600])
        until(lambda: read_agent(folder).num_applied > 100)
        agents[0].send_signal(signal.SIGSTOP)
        until(lambda: pid_in(folder / PROCESS_FILE) == agents[1].pid)
        until(lambda: read_agent(folder).num_applied == 600)
        agents[0].send_signal(signal.SIGCONT)
        queue.publish(records[600:])
        until(lambda: read_agent(folder).num_applied == len(records))
        until(lambda: queue.accounting().length == 0)
        assert pid_in(folder / PROCESS_FILE) == agents[1].pid
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    agent, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(folder)) == timeless(agent.checkpoint())
    assert running_decisions(redis_server) == decisions
    (accounting,) = queue.accounting().groups
    assert (accounting.acked, accounting.pending, accounting.balance) == (len(records), 0, 0)
    queue.close()


def test_a_full_disk_is_waited_for_and_nothing_is_acknowledged_before_the_checkpoint(
    redis_server: RedisForTests, tmp_path: Path
) -> None:
    records = two_symbols(100)
    queue = RedisPredictionQueue(redis_server.url, capacity=10_000)
    folder = agent_folder(tmp_path, "default")
    agent = start_agent(redis_server, tmp_path)
    try:
        until(lambda: Checkpoint.load(folder) is not None)
        process = psutil.Process(agent.pid)
        process.rlimit(psutil.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        queue.publish(records)
        group = agent_group("default")
        until(lambda: any(each.group == group and each.pending for each in queue.accounting().groups))
        time.sleep(0.5)
        (accounting,) = queue.accounting().groups
        assert (accounting.acked, read_agent(folder).num_applied) == (0, 0)
        assert agent.poll() is None, "a full disk ended the agent"
        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: read_agent(folder).num_applied == len(records))
    finally:
        agent.kill()
        agent.wait()
    agent, decisions = uninterrupted(records)
    assert timeless(Checkpoint.load(folder)) == timeless(agent.checkpoint())
    assert running_decisions(redis_server) == decisions
    queue.close()
