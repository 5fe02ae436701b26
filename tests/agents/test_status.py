"""What is shown of an agent: of one process, of several shards together, before it has begun and after a stop."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common_lib.exceptions import AgentNotFoundError, DataValidationError
from ml_workbench_service.agents.definition import write_definition
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.status import PROCESS_FILE, agent_folders, read_agent, read_agents, shard_folder
from ml_workbench_service.api.metrics import AgentCollector
from ml_workbench_service.contracts.agents import AgentDefinition, QLearningHyperparameters
from ml_workbench_service.jobs.process_record import ProcessRecord
from tests.agents.weeks import applied, series, week_of_hours

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SYMBOLS = ("EUR/USD", "GBP/USD", "AUD/USD")


def definition(**changes: object) -> AgentDefinition:
    body = {"id": "a", "hyperparameters": {"exploration_rate": 0.5}, "created_at": "2026-01-02T00:00:00Z", **changes}
    return AgentDefinition.model_validate(body)


def runs(folder: Path, *, ended: bool = False) -> None:
    ProcessRecord.of(os.getpid()).model_copy(update={"ended": ended}).write(folder / PROCESS_FILE)


def test_an_agent_is_shown_from_its_definition_before_its_process_has_begun(tmp_path: Path) -> None:
    home = tmp_path / "agents" / "a"
    with pytest.raises(AgentNotFoundError):
        read_agent(home)
    write_definition(home, definition())
    agent = read_agent(home)
    assert (agent.status, agent.wanted, agent.num_applied, agent.exploration_rate) == ("starting", "running", 0, 0.5)
    assert (agent.created_at, agent.updated_at, agent.last_applied_id) == (NOW, None, None)
    write_definition(home, definition(wanted="stopped"))
    assert read_agent(home).status == "stopped"
    assert [each.id for each in read_agents(tmp_path)] == ["a"]


def test_shards_are_shown_as_one_agent(tmp_path: Path) -> None:
    home = tmp_path / "agents" / "a"
    write_definition(home, definition())
    agents = []
    for shard, symbol in enumerate(SYMBOLS):
        agent = QLearningAgent("a", hyperparameters=QLearningHyperparameters(exploration_rate=0.5, seed=shard))
        applied(agent, series(week_of_hours()[: 20 + 5 * shard], seed=shard, symbol=symbol), first_id=100 - shard)
        folder = shard_folder(tmp_path, "a", shard=shard, num_shards=len(SYMBOLS))
        agent.checkpoint().save(folder)
        runs(folder)
        agents.append(agent)
    agent = read_agent(home)
    assert agent.num_processes == 3
    assert agent.num_applied == 20 + 25 + 30
    assert agent.num_settled == 19 + 24 + 29
    assert agent.cumulative_reward == sum(each.counters.cumulative_reward for each in agents)
    assert set(agent.positions) == set(SYMBOLS)
    assert agent.last_applied_id == "127-0"
    assert agent.exploration_rate == pytest.approx(sum(each.exploration_rate for each in agents) / 3)
    assert agent.status == "running"
    (shard_folder(tmp_path, "a", shard=1, num_shards=3) / PROCESS_FILE).write_text('{"pid": 1, "started_at": 1.0}')
    assert read_agent(home).status == "failed", "one of its processes has died"


def test_an_agent_is_starting_until_each_of_its_processes_has_begun(tmp_path: Path) -> None:
    home = tmp_path / "agents" / "a"
    write_definition(home, definition())
    folders = [shard_folder(tmp_path, "a", shard=shard, num_shards=2) for shard in range(2)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        assert (read_agent(home).status, read_agent(home).num_processes) == ("starting", number + 1)
    QLearningAgent("a").checkpoint().save(folders[1])
    runs(folders[1])
    assert (read_agent(home).status, read_agent(home).num_processes) == ("starting", 2)
    runs(folders[0])
    assert read_agent(home).status == "running"


def test_what_was_learnt_under_another_number_of_shards_is_not_shown(tmp_path: Path) -> None:
    home = tmp_path / "agents" / "a"
    old = QLearningAgent("a")
    applied(old, series(week_of_hours(), seed=1))
    old.checkpoint().save(shard_folder(tmp_path, "a", shard=0, num_shards=1))
    new = QLearningAgent("a")
    applied(new, series(week_of_hours()[:3], seed=1))
    new.checkpoint().save(shard_folder(tmp_path, "a", shard=1, num_shards=2))
    agent = read_agent(home)
    assert (agent.num_applied, agent.num_processes) == (3, 1)


def test_an_agent_that_was_stopped_is_stopped_even_if_it_had_to_be_killed(tmp_path: Path) -> None:
    home = tmp_path / "agents" / "a"
    write_definition(home, definition(wanted="stopped"))
    QLearningAgent("a").checkpoint().save(home)
    (home / PROCESS_FILE).write_text('{"pid": 1, "started_at": 1.0}')
    assert read_agent(home).status == "stopped"
    write_definition(home, definition())
    assert read_agent(home).status == "failed"
    runs(home)
    assert read_agent(home).status == "running"


def test_an_agent_that_cannot_be_read_is_said_once_and_left_out_while_the_others_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agents = tmp_path / "agents"
    write_definition(agents / "fine", definition(id="fine"))
    for name, file in (("empty", "agent.json"), ("foreign", "checkpoint.1.json")):
        (agents / name).mkdir()
        (agents / name / file).write_text("" if name == "empty" else '{"format": 3}')
    (agents / "sharded" / "shard1of2" / "checkpoint.7.json").mkdir(parents=True)  # reading it is an OSError
    (agents / "odd" / "agent.json").mkdir(parents=True)
    (agents / "no_agent" / "shard0of2").mkdir(parents=True)
    for _ in range(3):
        assert [agent.id for agent in read_agents(tmp_path)] == ["fine"]
    assert [folder.name for folder in agent_folders(tmp_path)] == ["empty", "fine", "foreign", "odd", "sharded"]
    broken = ("empty", "foreign", "odd", "sharded")
    for name in broken:
        with pytest.raises(DataValidationError, match=r"away|restore"):
            read_agent(agents / name)
        assert sum(f"agents/{name} " in message for message in caplog.messages) == 1
    families = {family.name: family for family in AgentCollector(tmp_path).collect()}
    up = {sample.labels["agent"]: sample.value for sample in families["ml_workbench_agent_up"].samples}
    assert up == dict.fromkeys((*broken, "fine"), 0)
    assert {sample.labels["agent"] for sample in families["ml_workbench_agent_applied"].samples} == {"fine"}
