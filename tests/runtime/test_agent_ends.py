"""Agents begun anew and removed while others run: nothing in the queue is lost or counted twice."""

import os
from pathlib import Path

import pytest

from common_lib.exceptions import AgentNotFoundError, ConflictError, UnavailableError
from ml_workbench_service.agents.definition import write_definition
from ml_workbench_service.agents.status import agent_folder, agent_group, read_agent
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.runtime.agent_supervisor import AgentSupervisor
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, prediction_queue_fixture, redis_server_fixture  # noqa: F401
from tests.runtime.test_agent_supervisor import Groups, definition, supervisor_without_processes, until


async def test_a_running_agent_begins_anew_and_the_accounting_balances(
    tmp_path: Path, redis_server: RedisForTests, prediction_queue: RedisPredictionQueue
) -> None:
    environment = {
        **os.environ,
        "REDIS_URL": redis_server.url,
        "STATE_DIR": str(tmp_path),
        "LOG_DIR": str(tmp_path / "logs"),
    }
    agent_supervisor = AgentSupervisor(
        tmp_path, environment, make_group=prediction_queue.create_group, give_up_group=prediction_queue.remove_group
    )
    await agent_supervisor.start(autostart=False)
    home = agent_folder(tmp_path, "mine")
    await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
    prediction_queue.publish([prediction_record(number) for number in range(20)])
    await until(lambda: read_agent(home).num_applied == 20)
    with pytest.raises(ConflictError, match="stop it first"):
        await agent_supervisor.remove("mine")
    prediction_queue.publish([prediction_record(number) for number in range(20, 25)])  # some before, some after it
    await agent_supervisor.reset("mine")
    prediction_queue.publish([prediction_record(number) for number in range(25, 30)])
    await until(lambda: read_agent(home).num_applied == 30)
    agent = read_agent(home)
    assert 20 <= agent.num_before_reset <= 25
    assert agent.num_actions == 30 - agent.num_before_reset
    await until(lambda: prediction_queue.accounting().groups[0].acked == 30)
    (accounting,) = prediction_queue.accounting().groups
    assert (accounting.enqueued, accounting.balance, accounting.pending) == (30, 0, 0)

    await agent_supervisor.dismiss("mine")
    await agent_supervisor.reset("mine")
    again = read_agent(home)
    assert (again.status, again.num_before_reset, again.num_applied) == ("stopped", 30, 30)
    await agent_supervisor.remove("mine")
    assert not home.exists()
    assert agent_group("mine") not in [each.group for each in prediction_queue.accounting().groups]
    with pytest.raises(AgentNotFoundError):
        await agent_supervisor.remove("mine")
    assert await agent_supervisor.start_agent(definition("mine"), None, is_named=True) == "mine"
    assert read_agent(home).num_applied == 0
    await agent_supervisor.stop()


async def test_what_cannot_be_given_up_is_not_removed_and_default_stays_while_it_would_come_back(
    tmp_path: Path,
) -> None:
    groups = Groups()
    for autostart in (True, False):
        agent_supervisor = supervisor_without_processes(tmp_path, groups)
        await agent_supervisor.start(autostart=autostart)
        if autostart:
            await agent_supervisor.dismiss("default")
            with pytest.raises(ConflictError, match="AGENT_AUTOSTART=false"):
                await agent_supervisor.remove("default")
        else:
            groups.is_away = True
            with pytest.raises(UnavailableError):
                await agent_supervisor.remove("default")
            assert agent_folder(tmp_path, "default").exists()
            groups.is_away = False
            await agent_supervisor.remove("default")
            assert not agent_folder(tmp_path, "default").exists()
        await agent_supervisor.stop()


async def test_an_agent_that_found_no_room_is_still_to_run(tmp_path: Path) -> None:
    write_definition(agent_folder(tmp_path, "a"), definition("a"))
    write_definition(agent_folder(tmp_path, "b"), definition("b"))
    agent_supervisor = supervisor_without_processes(tmp_path, Groups(), most_processes=1)
    await agent_supervisor.start(autostart=False)
    assert agent_supervisor.wanted == ("a",)
    with pytest.raises(ConflictError, match="stop it first"):
        await agent_supervisor.remove("b")
    for absent in (agent_supervisor.reset, agent_supervisor.remove):
        with pytest.raises(AgentNotFoundError):
            await absent("absent")
    assert not agent_folder(tmp_path, "absent").exists()
    await agent_supervisor.stop()
