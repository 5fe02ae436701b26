"""Definitions: what goes together, what a copy begins with, and the agent that begins or continues."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import ConflictError, DataValidationError
from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.definition import (
    DEFINITION_FILE,
    define,
    open_agent,
    read_definition,
    write_definition,
)
from ml_workbench_service.agents.policy_agent import PolicyAgent
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.contracts.agents import AgentDefinition, AgentRequest, Beginning, QLearningHyperparameters
from tests.agents.weeks import applied, series, week_of_hours

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def learnt(*, seed: int = 6, **changes: Any) -> Checkpoint:
    """What an agent knows after a week."""
    agent = QLearningAgent("teacher", **changes)
    applied(agent, series(week_of_hours(), seed=seed))
    return agent.checkpoint()


def defined(*copied: Checkpoint, **request: Any) -> tuple[AgentDefinition, Beginning | None]:
    return define(AgentRequest.model_validate(request), agent_id="a", created_at=NOW, copied=copied)


def test_what_is_not_said_has_the_default_of_its_family() -> None:
    plain, beginning = defined()
    assert (plain.family, plain.mode, plain.wanted, beginning) == ("q_learning", "learn", "running", None)
    assert plain.hyperparameters == QLearningHyperparameters()
    deep, _ = defined(family="ppo", model_id="trader")
    assert (deep.mode, deep.hyperparameters) == ("shadow", None)


@pytest.mark.parametrize(
    ("request_body", "place", "output"),
    [
        ({"family": "dqn"}, "model_id", "name it"),
        ({"family": "dqn", "model_id": "m", "mode": "learn"}, "mode", "POST /api/v1/models/train"),
        ({"family": "ppo", "model_id": "m", "copy_of": "teacher"}, "copy_of", "leave `copy_of` out"),
        ({"family": "ppo", "model_id": "m", "hyperparameters": {"seed": 1}}, "hyperparameters", "leave it out"),
        ({"mode": "frozen"}, "copy_of", "always stay flat"),
        ({"mode": "shadow"}, "copy_of", "always stay flat"),
        ({"mode": "frozen", "copy_of": "teacher", "reward": {"risk_aversion": 5}}, "reward", "mode `learn`"),
        ({"costs": {"spread_pips": -1}}, "costs.spread_pips", "correct it"),
    ],
)
def test_what_an_agent_would_have_to_ignore_is_refused(request_body: dict[str, Any], place: str, output: str) -> None:
    with pytest.raises(DataValidationError, match=output) as caught:
        defined(learnt(), **request_body)
    assert caught.value.details["errors"][0]["path"] == f"body.{place}"


def test_a_frozen_copy_acts_by_exactly_what_was_learnt_and_learns_no_more(tmp_path: Path) -> None:
    teacher = learnt(hyperparameters=QLearningHyperparameters(learning_rate=0.3))
    definition, beginning = defined(teacher, mode="frozen", copy_of="teacher")
    assert definition.hyperparameters == teacher.hyperparameters, "what the table was learnt with"
    write_definition(tmp_path, definition, beginning)
    assert read_definition(tmp_path) == definition
    agent = open_agent(tmp_path, "a")
    assert isinstance(agent, QLearningAgent)
    assert agent.table.values_SA.tolist() == teacher.values_SA
    assert agent.table.visits_SA.tolist() == teacher.visits_SA
    assert (agent.mode, agent.exploration_rate, agent.counters.num_applied) == ("frozen", 0.0, 0)
    decisions = applied(agent, series(week_of_hours(), seed=9))
    assert agent.table.values_SA.tolist() == teacher.values_SA
    assert {each.mode for each in decisions} == {"frozen"}
    assert any(each.size for each in decisions)


def test_a_copy_that_learns_goes_on_from_what_was_learnt_with_its_own_settings(tmp_path: Path) -> None:
    teacher = learnt()
    definition, beginning = defined(teacher, copy_of="teacher", hyperparameters={"exploration_rate": 0.25})
    write_definition(tmp_path, definition, beginning)
    agent = open_agent(tmp_path, "a")
    assert isinstance(agent, QLearningAgent)
    assert (agent.exploration_rate, agent.table.visits_SA.sum()) == (0.25, np.sum(teacher.visits_SA))
    applied(agent, series(week_of_hours(), seed=9))
    assert agent.table.values_SA.tolist() != teacher.values_SA


def test_a_copy_of_several_processes_is_the_mean_by_visits() -> None:
    one, two = learnt(seed=1), learnt(seed=2)
    _, beginning = defined(one, two, copy_of="teacher")
    assert beginning is not None
    visits = [np.array(each.visits_SA) for each in (one, two)]
    assert np.array_equal(beginning.visits_SA, visits[0] + visits[1])
    values = [np.array(each.values_SA) for each in (one, two)]
    alone = (visits[0] > 0) & (visits[1] == 0)
    np.testing.assert_allclose(np.array(beginning.values_SA)[alone], values[0][alone], rtol=1e-14)
    both = (visits[0] > 0) & (visits[1] > 0)
    mean = (values[0] * visits[0] + values[1] * visits[1])[both] / (visits[0] + visits[1])[both]
    assert both.any()
    np.testing.assert_allclose(np.array(beginning.values_SA)[both], mean, rtol=1e-14)


def test_nothing_learnt_or_no_table_cannot_be_copied() -> None:
    with pytest.raises(ConflictError, match="nothing to copy"):
        defined(QLearningAgent("teacher").checkpoint(), copy_of="teacher")
    with pytest.raises(ConflictError, match="nothing to copy"):
        defined(copy_of="teacher")
    policy = PolicyAgent("teacher", family="dqn", model_id="trader").checkpoint()
    with pytest.raises(DataValidationError, match="no table"):
        defined(policy, copy_of="teacher")


def test_a_mind_begins_by_its_definition_and_continues_from_its_checkpoint(tmp_path: Path) -> None:
    assert open_agent(tmp_path, "default").mode == "learn", "the autostarted agent needs no definition"
    definition, _ = defined(family="dqn", model_id="trader", mode="frozen", costs={"spread_pips": 0.3})
    write_definition(tmp_path, definition)
    shard = tmp_path / "shard1of2"
    shard.mkdir()
    for folder in (tmp_path, shard):
        agent = open_agent(folder, "a")
        assert isinstance(agent, PolicyAgent)
        assert (agent.family, agent.mode, agent.model_id) == ("dqn", "frozen", "trader")
    agent.reject("7-0", None)
    agent.checkpoint().save(shard)
    assert open_agent(shard, "a").last_applied_id == "7-0"
    assert open_agent(tmp_path, "a").last_applied_id is None


def test_an_unreadable_definition_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / DEFINITION_FILE).write_text('{"id": "a"')
    with pytest.raises(DataValidationError, match="restore a copy"):
        open_agent(tmp_path, "a")
