"""Closing records: a series ends flat, at the last price known, with every step realised by the one fill rule."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.agents.agent import Agent
from ml_workbench_service.agents.policy_agent import PolicyAgent
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.prediction import PredictionRecord
from tests.prediction_records import MONDAY, prediction_record

COSTS = {
    "spread_pips": 1.0, "commission_bp": 0.0, "slippage_bp": 0.0, "swap_long_pips": 0.0, "swap_short_pips": 0.0,
}  # fmt: skip
UNIT = 0.5 * 0.0001
"""Half a spread of one pip, in price units."""


def bar(number: int, price: float, **changes: Any) -> PredictionRecord:
    """A policy's record of a bar that opens and closes at this price: it goes long from wherever it is."""
    opened = MONDAY + timedelta(hours=number - 1)
    about = {"actions_by_position": (1, 1, 1), "costs": COSTS, "filling_rule": "next_bar"}
    return prediction_record(
        number, price=price, open=price, close=price, bar_open=opened, prev_bar_open=opened - timedelta(hours=1),
        metadata=about, **changes,
    )  # fmt: skip


def closing(price: float | None, *, minutes: int, model_id: str = "model") -> PredictionRecord:
    return prediction_record(
        0, as_of=MONDAY + timedelta(minutes=minutes), price=price, status="abstain", prediction=None, direction="hold",
        abstain_reasons=("undeployed",), prediction_id="closing", model_id=model_id,
        metadata={"costs": COSTS, "filling_rule": "next_bar"},
    )  # fmt: skip


@pytest.fixture
def policy() -> PolicyAgent:
    """Long since bar 0, filled at bar 1's open of 1.10."""
    agent = PolicyAgent("a", family="dqn", model_id="model", mode="frozen")
    for number, price in enumerate((1.09, 1.10)):
        agent.apply(f"{number + 1}-0", bar(number, price))
    return agent


def told(agent: Agent, record: PredictionRecord) -> Decision:
    decision = agent.apply("9-0", record)
    assert decision is not None
    return decision


def test_the_position_earns_up_to_the_closing_price_and_pays_its_way_out(policy: PolicyAgent) -> None:
    decision = told(policy, closing(1.12, minutes=90))
    # Two steps of one unit: 1.10 to 1.10 (bar 1's decision lacks its open, so the close of bar 1 stands for it) …
    entered = np.log(1 + 1 * (1.12 / 1.10 - 1) - UNIT / 1.10)
    left = np.log(1 - UNIT / 1.12)
    assert decision.reward == pytest.approx(entered + left, abs=1e-12)
    assert (decision.action, decision.size, decision.fill) == ("flat", 0.0, "approximate")
    assert policy.counters.num_settled == policy.counters.num_actions == 3
    assert policy.counters.cumulative_reward == pytest.approx(decision.reward)
    checkpoint = policy.checkpoint()
    assert checkpoint.positions == {"EUR/USD": 0}
    assert [(each.steps, each.exposure) for each in checkpoint.lanes.values()] == [((), 0.0)]


def test_without_a_price_the_last_one_known_ends_it(policy: PolicyAgent) -> None:
    decision = told(policy, closing(None, minutes=90))
    assert decision.price == 1.10
    assert decision.reward == pytest.approx(np.log(1 - UNIT / 1.10) * 2, abs=1e-12)


def test_the_series_goes_on_where_the_model_is_live_again(policy: PolicyAgent) -> None:
    told(policy, closing(1.12, minutes=90))
    earned = policy.counters.cumulative_reward
    for number, price in ((50, 1.5), (51, 1.5), (52, 1.5)):
        decision = policy.apply(f"{number}-0", bar(number, price))
    assert decision is not None
    assert policy.counters.cumulative_reward == pytest.approx(earned + np.log(1 - UNIT / 1.5)), (
        "what the price did in between was nobody's"
    )


@pytest.mark.parametrize("record", [closing(1.1, minutes=30), closing(1.1, minutes=90, model_id="other")])
def test_a_late_one_and_another_models_change_nothing(policy: PolicyAgent, record: PredictionRecord) -> None:
    before = policy.checkpoint()
    assert policy.apply("9-0", record) is None
    after = policy.checkpoint()
    assert (after.lanes, after.positions) == (before.lanes, before.positions)
    assert (after.counters.num_observed, after.counters.num_applied) == (1, before.counters.num_applied + 1)


def test_one_that_comes_twice_is_observed_the_second_time(policy: PolicyAgent) -> None:
    told(policy, closing(1.12, minutes=90))
    assert policy.apply("10-0", closing(1.12, minutes=90)) is None
    assert policy.apply("11-0", closing(1.3, minutes=95)) is None
    assert (policy.counters.num_observed, policy.counters.num_actions) == (2, 3)


def test_a_learning_agent_learns_from_the_end() -> None:
    agent = QLearningAgent("a")
    for number in range(10):
        agent.apply(f"{number + 1}-0", prediction_record(number, price=1.1 + number / 1000))
    visits = agent.table.visits_SA.sum()
    assert agent.apply("11-0", closing(1.2, minutes=9 * 60 + 5)) is not None
    assert agent.table.visits_SA.sum() == visits + (agent.counters.num_settled - 9)
    assert agent.counters.num_settled == agent.counters.num_actions == 11
