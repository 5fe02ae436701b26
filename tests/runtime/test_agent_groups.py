"""A consumer group that is not wanted goes by itself, whatever failed or was killed in between; nobody else's does."""

import errno
from pathlib import Path

import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.agents.definition import write_definition
from ml_workbench_service.agents.status import agent_folder, agent_folders, agent_group
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.runtime import agent_supervisor as module
from ml_workbench_service.runtime.agent_supervisor import mark_start, unfinished_starts
from tests.redis_server import RedisForTests, prediction_queue_fixture, redis_server_fixture  # noqa: F401
from tests.runtime.test_agent_supervisor import Groups, definition, supervisor_without_processes, until


async def test_the_group_of_a_stop_that_failed_is_given_up_by_itself_and_nobody_elses(
    tmp_path: Path, redis_server: RedisForTests, prediction_queue: RedisPredictionQueue
) -> None:
    groups = Groups()
    agent_supervisor = supervisor_without_processes(tmp_path, groups)
    await agent_supervisor.start(autostart=True)
    await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
    await agent_supervisor.start_agent(definition("goes_on"), None, is_named=True)
    groups.is_away = True
    with pytest.raises(UnavailableError):
        await agent_supervisor.dismiss("mine")
    with pytest.raises(UnavailableError):
        await agent_supervisor.reconcile()
    await agent_supervisor.stop()

    for name in ("agent:mine", "agent:goes_on", "agent:default", "agent:of_another_service"):
        prediction_queue.create_group(name)
    real = {"make_group": prediction_queue.create_group, "give_up_group": prediction_queue.remove_group}
    following = supervisor_without_processes(tmp_path, groups, **real)
    await following.start(autostart=False)
    await until(lambda: "agent:mine" not in {accounting.group for accounting in prediction_queue.accounting().groups})
    await following.reconcile()
    await following.stop()
    left = {accounting.group for accounting in prediction_queue.accounting().groups}
    assert left == {"agent:goes_on", "agent:default", "agent:of_another_service"}


async def test_a_start_whose_answer_came_too_late_leaves_no_group_however_late_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, home = Groups("agent:theirs"), agent_folder(tmp_path, "mine")
    agent_supervisor = supervisor_without_processes(tmp_path, groups)
    await agent_supervisor.start(autostart=False)
    groups.is_late = True
    with pytest.raises(UnavailableError):
        await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
    assert groups.existing == {"agent:mine", "agent:theirs"}
    for _ in range(2):
        await agent_supervisor.reconcile()
        assert groups.existing == {"agent:theirs"}
        groups.existing.add("agent:mine")  # the request was still under way
    monkeypatch.setattr(module, "LATE_S", 0.0)
    groups.is_away = True
    with pytest.raises(UnavailableError):
        await agent_supervisor.reconcile()
    assert home.exists(), "not before the group is gone"
    groups.is_away = groups.is_late = False
    await agent_supervisor.reconcile()
    assert (groups.existing, home.exists()) == ({"agent:theirs"}, False)
    monkeypatch.undo()

    groups.is_late = True
    with pytest.raises(UnavailableError):
        await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
    groups.is_late = False
    await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
    await agent_supervisor.reconcile()
    assert groups.existing == {"agent:mine", "agent:theirs"}, "the second try made it"
    groups.is_late = True
    await agent_supervisor.dismiss("mine")
    with pytest.raises(UnavailableError):
        await agent_supervisor.resume("mine")
    await agent_supervisor.reconcile()
    assert groups.existing == {"agent:theirs"}
    await agent_supervisor.stop()


async def test_the_group_of_a_start_that_was_killed_is_given_up_by_the_next_service(tmp_path: Path) -> None:
    groups = Groups()
    for agent_id, is_defined in (("killed_before", False), ("killed_after", True)):
        mark_start(agent_folder(tmp_path, agent_id))
        groups.make(agent_group(agent_id))
        if is_defined:
            write_definition(agent_folder(tmp_path, agent_id), definition(agent_id))
    following = supervisor_without_processes(tmp_path, groups)
    await following.start(autostart=False)
    await until(lambda: groups.existing == {"agent:killed_after"})
    assert following.wanted == ("killed_after",)
    await following.reconcile()
    assert [home.name for home in unfinished_starts(tmp_path)] == ["killed_before"]
    await following.stop()


@pytest.mark.parametrize("is_away", [False, True])
async def test_on_a_full_disk_an_agent_is_not_made_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    groups = Groups()
    agent_supervisor = supervisor_without_processes(tmp_path, groups)
    await agent_supervisor.start(autostart=False)

    def full(home: Path, *_: object) -> None:
        write_definition(home, definition("mine"))  # all but the folder's own entry is on disk
        groups.is_away = is_away
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_definition", full)
    with pytest.raises(UnavailableError, match="disk is full"):
        await agent_supervisor.start_agent(definition("mine"), None, is_named=True)
    groups.is_away = False
    assert (agent_supervisor.wanted, agent_folders(tmp_path)) == ((), [])
    await agent_supervisor.reconcile()
    assert groups.existing == set()
    assert bool(unfinished_starts(tmp_path)) == is_away
    await agent_supervisor.stop()
