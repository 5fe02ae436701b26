"""Filling rules of the live agent: the next bar's open, what is approximate, the rule of earlier versions by name."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.policy_agent import PolicyAgent
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import PredictionRecord
from tests.prediction_records import prediction_record

COSTS = Costs(spread_pips=1.0, commission_bp=0.0, slippage_bp=0.0, swap_long_pips=0.0, swap_short_pips=0.0)
HOUR = timedelta(hours=1)


def record(
    number: int, position: int = 1, *, rule: str = "next_bar", opens: bool = True, **changes: Any
) -> PredictionRecord:
    """The record of one hour, whose bar opens half a cent above a round price and closes at it."""
    metadata = {"actions_by_position": (position,) * 3, "filling_rule": rule, "costs": COSTS}
    told = prediction_record(
        number, symbol="EUR/USD", model_id="trader", prediction=float(position), interval=None,
        price=1.1 + number / 100,
        metadata=metadata, **changes,
    )  # fmt: skip
    if not opens:
        return told
    opened = told.as_of - HOUR
    bar = {"bar_open": opened, "open": 1.105 + number / 100, "close": told.price, "spread_open": 0.0004}
    return told.model_copy(update={**bar, "prev_bar_open": opened - HOUR})


def applied(agent: PolicyAgent, records: list[PredictionRecord], *, first: int = 1) -> list[Decision]:
    decisions = [agent.apply(f"{first + number}-0", each) for number, each in enumerate(records)]
    return [each for each in decisions if each is not None]


def trader() -> PolicyAgent:
    return PolicyAgent("a", family="dqn", model_id="trader")


def test_a_decision_is_filled_at_the_next_open_with_its_spread_and_told_a_bar_later() -> None:
    found = applied(trader(), [record(number) for number in range(4)])
    assert [each.fill for each in found] == [None, None, "next_open", "next_open"]
    entry, end = 1.115, 1.125
    assert found[2].reward == pytest.approx(np.log(end / entry - 0.0002 / entry), abs=1e-15)
    assert found[3].reward == pytest.approx(np.log(1.135 / 1.125), abs=1e-15)


def test_a_missing_open_or_a_skipped_bar_makes_a_step_approximate() -> None:
    agent = trader()
    found = applied(agent, [record(0), record(1), record(2, opens=False), record(3), record(5), record(6), record(7)])
    assert [each.fill for each in found[2:]] == ["approximate"] * 4 + ["next_open"]
    assert found[2].reward == pytest.approx(np.log(1.11 / 1.115 - 0.0002 / 1.115)), "the close before stands for it"
    assert agent.counters.num_approximate == 4


def test_records_of_earlier_versions_are_filled_at_their_own_close() -> None:
    found = applied(trader(), [record(number, rule="record_close", opens=False) for number in range(3)])
    assert [each.fill for each in found] == [None, "record_close", "record_close"]
    assert found[1].reward == pytest.approx(np.log(1.11 / 1.1 - 0.0001 / 2 / 1.1))


def test_a_step_of_an_earlier_versions_checkpoint_ends_by_its_own_rule(tmp_path) -> None:  # type: ignore[no-untyped-def]
    agent = trader()
    applied(agent, [record(0, rule="record_close", opens=False)])
    plain = agent.checkpoint().model_dump(mode="json")
    for lane in plain["lanes"].values():  # as it was written then
        del lane["last_bar_ms"], lane["last_price"]
        for step in lane["steps"]:
            del step["rule"], step["is_exact"]
    again = PolicyAgent.restored(Checkpoint.model_validate(plain))
    found = applied(again, [record(number) for number in range(1, 4)], first=2)
    assert [each.fill for each in found] == ["record_close", None, "next_open"]
    assert found[0].reward == pytest.approx(np.log(1.11 / 1.1 - 0.0001 / 2 / 1.1))


def test_a_closed_market_keeps_the_position_and_any_other_abstention_closes_it() -> None:
    silent = {"status": "abstain", "prediction": None}
    for reasons, position in ((("market_closed",), 1), (("market_closed", "model_expired"), 0), (("novel_input",), 0)):
        gone = record(1, position=-1).model_copy(update={**silent, "abstain_reasons": reasons})
        assert applied(trader(), [record(0), gone])[1].position == position
    old = record(1, rule="record_close", opens=False).model_copy(
        update={**silent, "abstain_reasons": ("market_closed",)}
    )
    assert applied(trader(), [record(0, rule="record_close", opens=False), old])[1].position == 0


def test_the_same_bar_asked_about_again_is_counted_and_not_realised() -> None:
    agent = trader()
    again = record(1).model_copy(update={"as_of": record(1).as_of + HOUR / 4})
    assert len(applied(agent, [record(0), record(1), again, record(2)])) == 3
    assert (agent.counters.num_late, agent.counters.num_repeated, agent.counters.num_settled) == (1, 1, 1)
