"""The supervisor: several agents on one stream by their own groups, stopped and started, back with the service."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common_lib.exceptions import AgentNotFoundError, ConflictError, UnavailableError
from ml_workbench_service.agents.definition import define, read_definition, write_definition
from ml_workbench_service.agents.status import agent_folder, agent_group, read_agent, shard_folder
from ml_workbench_service.contracts.agents import AgentDefinition, AgentRequest
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.queue import Outgoing, shard_of
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue, ShardedQueue
from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.runtime.agent_supervisor import AgentSupervisor
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, prediction_queue_fixture, redis_server_fixture  # noqa: F401


def definition(agent_id: str, **request: Any) -> AgentDefinition:
    made, _ = define(AgentRequest.model_validate(request), agent_id=agent_id, created_at=utc_now())
    return made


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


class Groups:
    """What is asked of the queue; away while `is_away`, and while `is_late` it answers too late, having done it."""

    def __init__(self, *existing: str) -> None:
        self.made: list[str] = []
        self.given_up: list[str] = []
        self.existing = set(existing)
        self.is_away = False
        self.is_late = False

    def make(self, group: str) -> None:
        self._check()
        self.made.append(group)
        self.existing.add(group)
        if self.is_late:
            raise UnavailableError("the answer comes too late")

    def give_up(self, group: str) -> None:
        self._check()
        self.given_up.append(group)
        self.existing.discard(group)

    def _check(self) -> None:
        if self.is_away:
            raise UnavailableError("the queue is away")


def supervisor_without_processes(state_dir: Path, groups: Groups, **options: Any) -> AgentSupervisor:
    """Its processes end at once, for there is no Redis that they know of."""
    environment = {**os.environ, "STATE_DIR": str(state_dir), "PYTHONPATH": "/nowhere"}
    environment.pop("REDIS_URL", None)
    changes = {"make_group": groups.make, "give_up_group": groups.give_up}
    return AgentSupervisor(state_dir, environment, **{**changes, **options})


async def test_agents_on_one_stream_each_apply_everything_and_only_the_wanted_ones_come_back(
    tmp_path: Path, redis_server: RedisForTests, prediction_queue: RedisPredictionQueue
) -> None:
    environment = {
        **os.environ,
        "REDIS_URL": redis_server.url,
        "STATE_DIR": str(tmp_path),
        "LOG_DIR": str(tmp_path / "logs"),
    }

    def agents_of_a_service() -> AgentSupervisor:
        return AgentSupervisor(tmp_path, environment, make_group=prediction_queue.create_group)

    def all_applied(number: int, *agents: str) -> bool:
        shown = [read_agent(agent_folder(tmp_path, agent)) for agent in agents]
        return all(agent.status == "running" and agent.num_applied == number for agent in shown)

    agent_supervisor = agents_of_a_service()
    await agent_supervisor.start(autostart=False)
    for agent_id, request in (("eager", {}), ("bound", {"model_id": "another"})):
        assert await agent_supervisor.start_agent(definition(agent_id, **request), None, is_named=True) == agent_id
    assert agent_supervisor.wanted == ("eager", "bound")
    prediction_queue.publish([prediction_record(number) for number in range(20)])  # while their processes still start
    await until(lambda: all_applied(20, "eager", "bound"))
    eager, bound = (read_agent(agent_folder(tmp_path, agent)) for agent in ("eager", "bound"))
    assert (eager.num_actions, bound.num_actions, bound.num_observed) == (20, 0, 20)
    decisions = DecisionStream(redis_server.url)
    assert {each.agent_id for each in decisions.read()} == {"eager"}
    decisions.close()

    await agent_supervisor.dismiss("bound")
    stopped = ProcessRecord.read(agent_folder(tmp_path, "bound") / "process.json")
    assert stopped is not None
    assert not stopped.is_alive
    await agent_supervisor.stop()
    assert read_agent(agent_folder(tmp_path, "eager")).status == "stopped"

    following = agents_of_a_service()
    await following.start(autostart=False)
    assert following.wanted == ("eager",)
    prediction_queue.publish([prediction_record(number) for number in range(20, 30)])
    await until(lambda: all_applied(30, "eager"))
    agent = read_agent(agent_folder(tmp_path, "bound"))
    assert (agent.status, agent.wanted, agent.num_applied) == ("stopped", "stopped", 20)
    await following.stop()
    by_group = {accounting.group: accounting for accounting in prediction_queue.accounting().groups}
    assert set(by_group) == {agent_group("eager"), agent_group("bound")}
    assert by_group[agent_group("eager")].acked == 30


async def test_with_shards_an_agent_has_a_process_for_each_and_is_shown_as_one(
    tmp_path: Path, redis_server: RedisForTests
) -> None:
    queue = ShardedQueue(redis_server.url, capacity=100, num_shards=2)
    environment = {
        **os.environ,
        "REDIS_URL": redis_server.url,
        "PREDICTION_QUEUE_SHARDS": "2",
        "STATE_DIR": str(tmp_path),
        "LOG_DIR": str(tmp_path / "logs"),
    }
    agent_supervisor = AgentSupervisor(
        tmp_path, environment, num_shards=2, make_group=queue.create_group, give_up_group=queue.remove_group
    )
    await agent_supervisor.start(autostart=False)
    await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
    symbols = ("EUR/USD", "USD/JPY", "GBP/USD", "AUD/USD")
    assert {shard_of(symbol, 2) for symbol in symbols} == {0, 1}
    records = [prediction_record(number, symbol=symbol) for number in range(10) for symbol in symbols]
    queue.enqueue([Outgoing(record, "", time.time()) for record in records])
    home = agent_folder(tmp_path, "mine")
    await until(lambda: (agent := read_agent(home)).num_applied == 40 and agent.status == "running")
    agent = read_agent(home)
    assert (agent.num_processes, agent.num_actions, agent.num_settled) == (2, 40, 36)
    assert set(agent.positions) == set(symbols)
    await agent_supervisor.dismiss("mine")
    assert read_agent(home).status == "stopped"
    assert queue.accounting().groups == ()
    await agent_supervisor.stop()
    queue.close()


async def test_stopping_and_starting_are_idempotent_and_change_the_group(tmp_path: Path) -> None:
    groups = Groups()
    agent_supervisor = supervisor_without_processes(tmp_path, groups)
    await agent_supervisor.start(autostart=True)
    assert agent_supervisor.wanted == ("default",)
    await agent_supervisor.dismiss("default")
    await agent_supervisor.dismiss("default")
    assert agent_supervisor.wanted == ()
    assert set(groups.given_up) == {"agent:default"}
    found = read_definition(agent_folder(tmp_path, "default"))
    assert found is not None
    assert found.wanted == "stopped"
    await agent_supervisor.stop()

    following = supervisor_without_processes(tmp_path, groups)
    await following.start(autostart=True)
    assert following.wanted == (), "whoever stopped it meant it"
    for _ in range(2):
        await following.resume("default")
    assert (following.wanted, groups.made) == (("default",), ["agent:default"])
    for change in (following.dismiss, following.resume):
        with pytest.raises(AgentNotFoundError):
            await change("absent")
    await following.stop()


async def test_ids_are_taken_once_and_derived_ones_get_a_number(tmp_path: Path) -> None:
    agent_supervisor = supervisor_without_processes(tmp_path, Groups())
    await agent_supervisor.start(autostart=True)
    for taken in ("default", "mine"):
        if taken == "mine":
            await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
        with pytest.raises(ConflictError, match="another id"):
            await agent_supervisor.start_agent(definition(taken), None, is_named=True)
    ids = [await agent_supervisor.start_agent(definition("q_learning-small"), None, is_named=False) for _ in range(3)]
    assert ids == ["q_learning-small", "q_learning-small-2", "q_learning-small-3"]
    long = "q_learning-" + "m" * 64
    assert [len(await agent_supervisor.start_agent(definition(long), None, is_named=False)) for _ in range(2)] == [
        56,
        58,
    ]
    await agent_supervisor.stop()


async def test_there_is_room_for_so_many_processes_and_no_more(tmp_path: Path) -> None:
    agent_supervisor = supervisor_without_processes(tmp_path, Groups(), num_shards=2, most_processes=4)
    await agent_supervisor.start(autostart=False)
    for agent_id in ("one", "two"):
        await agent_supervisor.start_agent(definition(agent_id), None, is_named=True)
    with pytest.raises(ConflictError, match="4 of at most 4 processes; stop one first"):
        await agent_supervisor.start_agent(definition("three"), None, is_named=True)
    assert read_definition(agent_folder(tmp_path, "three")) is None
    folders = [shard_folder(tmp_path, "one", shard=shard, num_shards=2) for shard in range(2)]
    assert all((folder / "attendant.log").exists() for folder in folders)
    await agent_supervisor.dismiss("one")
    await agent_supervisor.start_agent(definition("three"), None, is_named=True)
    with pytest.raises(ConflictError, match="stop one first"):
        await agent_supervisor.resume("one")
    await agent_supervisor.stop()
    wider = supervisor_without_processes(tmp_path, Groups(), num_shards=5, most_processes=4)
    await wider.start(autostart=False)
    assert len(wider.wanted) == 1, "one has room with any number of shards, and no second one"
    await wider.stop()


async def test_while_the_queue_is_away_nothing_new_begins_and_a_stop_can_be_sent_again(tmp_path: Path) -> None:
    groups = Groups()
    agent_supervisor = supervisor_without_processes(tmp_path, groups)
    await agent_supervisor.start(autostart=False)
    await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
    groups.is_away = True
    with pytest.raises(UnavailableError):
        await agent_supervisor.start_agent(definition("other"), None, is_named=True)
    with pytest.raises(UnavailableError):
        await agent_supervisor.dismiss("mine")
    assert agent_supervisor.wanted == ()
    assert read_definition(agent_folder(tmp_path, "other")) is None
    groups.is_away = False
    await agent_supervisor.dismiss("mine")
    assert "agent:mine" in groups.given_up
    await agent_supervisor.stop()


async def test_an_agent_that_cannot_be_read_keeps_nobody_from_starting(tmp_path: Path) -> None:
    groups = Groups("agent:empty")
    write_definition(agent_folder(tmp_path, "fine"), definition("fine"))
    for name, file in (("default", "checkpoint.1.json"), ("empty", "agent.json")):
        agent_folder(tmp_path, name).mkdir()
        (agent_folder(tmp_path, name) / file).write_text("")
    agent_supervisor = supervisor_without_processes(tmp_path, groups)
    await agent_supervisor.start(autostart=True)
    assert agent_supervisor.wanted == ("default", "fine")
    with pytest.raises(ConflictError, match="another id"):
        await agent_supervisor.start_agent(definition("empty"), None, is_named=True)
    await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
    await agent_supervisor.reconcile()
    assert "agent:empty" in groups.existing, "nobody knows whether it was stopped"
    await agent_supervisor.stop()


async def test_the_record_of_a_stand_by_that_leads_is_left_and_that_of_a_dead_process_is_not(tmp_path: Path) -> None:
    living, dead = agent_folder(tmp_path, "living"), agent_folder(tmp_path, "dead")
    for home in (living, dead):
        write_definition(home, definition(home.name))
        ProcessRecord.of(os.getpid()).write(home / "process.json")
    ProcessRecord(pid=os.getpid(), started_at=1.0, boot_id="an-earlier-one").write(dead / "process.json")
    agent_supervisor = supervisor_without_processes(tmp_path, Groups())
    await agent_supervisor.start(autostart=False)
    assert read_agent(living).status == "running"
    assert (read_agent(dead).status, (dead / "process.json").exists()) == ("starting", False)
    await agent_supervisor.stop()
