"""The agent: rewards and costs against a straightforward computation from prices, and what counts as what."""

import itertools
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.agents.agent import MAX_REPLAY_SERIES
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.contracts.agents import QLearningHyperparameters, RewardSettings
from ml_workbench_service.contracts.prediction import PredictionRecord
from tests.agents.weeks import COSTS, always_long, applied, expected_steps, nights, series, week_of_hours
from tests.prediction_records import prediction_record


@pytest.mark.parametrize(("fill", "scaling"), [("next_open", 1.0), ("next_close", 1.0), ("next_open", 0.25)])
def test_rewards_and_costs_are_those_of_the_prices_over_a_week_with_its_triple_swap(fill: str, scaling: float) -> None:
    times = week_of_hours()
    agent = QLearningAgent("a", costs=COSTS, hyperparameters=QLearningHyperparameters(exploration_decay=0.99))
    decisions = applied(agent, series(times, seed=1, metadata={"fill": fill}, scaling_factor=scaling))
    expected = expected_steps(decisions, pip=0.0001, fill=fill, scaling=[scaling] * len(decisions))
    assert len(decisions) == len(times)
    for decision, step in zip(decisions, expected, strict=True):
        if step is None:
            assert (decision.reward, decision.cost) == (None, None)
            continue
        assert decision.reward == pytest.approx(step[0], abs=1e-15)
        assert decision.cost == pytest.approx(step[1], abs=1e-15)
    rewards = [step[0] for step in expected if step is not None]
    costs = [step[1] for step in expected if step is not None]
    assert decisions[-1].cumulative_reward == pytest.approx(sum(rewards))
    assert agent.counters.cumulative_cost == pytest.approx(sum(costs))
    assert sum(costs) > 0
    held = [decision.position for decision in decisions]
    assert {-1, 0, 1} == set(held)
    swaps = [nights(start, end) for start, end in itertools.pairwise(times)]
    assert (sum(swaps), max(swaps)) == (7, 3), "the week has seven nights, three of them on Wednesday"


def test_a_position_held_over_the_weekend_earns_the_gap_and_pays_fridays_roll() -> None:
    agent = always_long()
    friday, sunday = datetime(2025, 3, 7, 21, tzinfo=UTC), datetime(2025, 3, 9, 22, tzinfo=UTC)
    records = [prediction_record(0, as_of=friday, price=150.0, symbol="USD/JPY")]
    records.append(prediction_record(1, as_of=sunday, price=151.0, symbol="USD/JPY"))
    decision = applied(agent, records)[1]
    cost = (1.2 * 0.01 / 2 / 150 + 0.7e-4) + 0.7 * 0.01 / 150
    assert decision.cost == pytest.approx(cost, abs=1e-15)
    assert decision.reward == pytest.approx(math.log(1 + 1 / 150 - cost), abs=1e-15)


def test_a_changed_scaling_factor_pays_for_the_difference_alone() -> None:
    agent = always_long()
    scaling = [1.0, 0.5, 0.5, 0.0]
    records = [prediction_record(n, scaling_factor=factor) for n, factor in enumerate([*scaling, 0.0])]
    decisions = applied(agent, records)
    expected = expected_steps(decisions, pip=0.0001, fill="next_open", scaling=[*scaling, 0.0])
    assert [d.reward for d in decisions] == [None, *(pytest.approx(step[0], abs=1e-15) for step in expected if step)]
    assert [d.size for d in decisions] == [1.0, 0.5, 0.5, 0.0, 0.0]


def test_lanes_do_not_mix() -> None:
    times = week_of_hours()[:40]
    separate = [series(times, seed=2, symbol="EUR/USD"), series(times, seed=3, symbol="GBP/USD")]
    separate.append(series(times, seed=4, source="replay:job"))
    greedy = {"hyperparameters": QLearningHyperparameters(exploration_rate=0.0), "costs": COSTS}
    mixed = [record for records in zip(*separate, strict=True) for record in records]
    together = applied(always_long(**greedy), mixed)
    for records in separate:
        alone = applied(always_long(**greedy), records)
        standing = [decision for decision in together if decision.lane == records[0].position_key]
        assert [d.reward for d in standing] == [d.reward for d in alone]


def test_the_q_table_learns_from_each_settled_step_with_the_next_decisions_state() -> None:
    agent = QLearningAgent(
        "a", costs=COSTS, hyperparameters=QLearningHyperparameters(learning_rate=1.0, discount_factor=0.0)
    )
    decisions = applied(agent, series(week_of_hours()[:30], seed=5))
    assert agent.table.visits_SA.sum() == agent.counters.num_settled == len(decisions) - 1
    last = agent.table.values_SA[agent.table.visits_SA == 1]
    rewards = [decision.reward for decision in decisions if decision.reward is not None]
    assert set(last) <= set(rewards), "with rate 1 and discount 0 a value is the last reward itself"


def test_only_predictions_of_the_live_version_with_a_price_cause_actions() -> None:
    agent = QLearningAgent("a")
    assert agent.apply("1-0", prediction_record(0, role="candidate")) is None
    assert agent.apply("2-0", prediction_record(1, price=None)) is None
    assert agent.apply("3-0", prediction_record(2)) is not None
    counters = agent.counters
    assert (counters.num_applied, counters.num_observed, counters.num_actions) == (3, 2, 1)


def test_late_and_repeated_bars_change_nothing_but_their_counters() -> None:
    agent = QLearningAgent("a", costs=COSTS)
    applied(agent, [prediction_record(number, price=1.1 + number / 1000) for number in range(7)])
    before = agent.checkpoint()
    assert agent.apply("8-0", prediction_record(6, price=1.5, prediction_id="again")) is None
    assert agent.apply("9-0", prediction_record(3, price=1.5)) is None
    assert agent.apply("10-0", prediction_record(5, price=0.5, status="abstain", prediction=None)) is None
    after = agent.checkpoint()
    counters = after.counters
    assert (counters.num_late, counters.num_repeated, counters.num_out_of_order) == (3, 1, 2)
    counters.num_applied -= 3
    counters.num_late = counters.num_repeated = counters.num_out_of_order = 0
    unmoved = {"saved_at": None, "last_applied_id": None}
    assert after.model_copy(update=unmoved) == before.model_copy(update=unmoved)


def test_friday_to_monday_is_one_bar_with_the_gap_and_one_night() -> None:
    friday, monday = datetime(2025, 3, 7, 15, tzinfo=UTC), datetime(2025, 3, 10, 15, tzinfo=UTC)
    over, within = always_long(), always_long()
    rows = [
        (over, friday, monday),
        (within, datetime(2025, 3, 5, 15, tzinfo=UTC), datetime(2025, 3, 5, 16, tzinfo=UTC)),
    ]
    found = []
    for agent, start, end in rows:
        decisions = applied(
            agent, [prediction_record(0, as_of=start), prediction_record(1, as_of=end, price=1.1 * 1.01)]
        )
        assert (agent.counters.num_actions, agent.counters.num_settled) == (2, 1)
        found.append(decisions[1])
    night = 0.7e-4 / 1.1
    assert found[0].cost == pytest.approx((found[1].cost or 0) + night, abs=1e-15), "Friday's roll and no other"
    gains = [math.expm1(each.reward or 0) + (each.cost or 0) for each in found]
    assert gains == pytest.approx([0.01, 0.01], abs=1e-12), "the gap as it is, whatever time has passed"


def test_an_agent_bound_to_a_model_observes_the_others() -> None:
    agent = QLearningAgent("a", model_id="mine")
    assert agent.apply("1-0", prediction_record(0)) is None
    assert agent.apply("2-0", prediction_record(0, model_id="mine")) is not None
    assert (agent.counters.num_observed, agent.counters.num_actions) == (1, 1)


def test_a_decision_says_what_it_answers_what_it_would_cost_and_until_when_it_holds() -> None:
    record = prediction_record(0, scaling_factor=0.5, version="1.2.0", version_id="1.2.0")
    first, second = applied(always_long(), [record, prediction_record(1, scaling_factor=0.5)])
    assert (first.model_id, first.version, first.symbol) == ("model", "1.2.0", "EUR/USD")
    assert (first.prediction_id, first.as_of, first.valid_until) == (
        record.prediction_id,
        record.as_of,
        record.valid_until,
    )
    assert first.expected_cost == 0.5 * (1.2e-4 / 2 / 1.1 + 0.7e-4)
    assert (second.position, second.expected_cost, second.cost) == (1, 0.0, first.expected_cost)


def test_risk_aversion_shapes_what_is_learnt_and_not_what_is_reported() -> None:
    greedy = QLearningHyperparameters(learning_rate=1.0, discount_factor=0.0, exploration_rate=0.0)
    agents = []
    for aversion in (0.0, 300.0):
        agent = QLearningAgent("a", costs=COSTS, hyperparameters=greedy, reward=RewardSettings(risk_aversion=aversion))
        agent.table.values_SA[:, 2] = 1.0
        applied(agent, [prediction_record(0), prediction_record(1, price=1.11)])
        agents.append(agent)
    plain, averse = agents
    earned = plain.counters.cumulative_reward
    assert averse.counters == plain.counters
    assert earned > 0
    state = int(np.flatnonzero(plain.table.visits_SA[:, 2])[0])
    assert plain.table.values_SA[state, 2] == pytest.approx(earned, abs=1e-16)
    assert averse.table.values_SA[state, 2] == pytest.approx(earned - 150 * earned**2, abs=1e-16)


def test_an_abstention_goes_flat_and_pays_for_it() -> None:
    agent = always_long()
    abstention = {"status": "abstain", "prediction": None, "abstain_reasons": ("novel_input",)}
    decisions = applied(agent, [prediction_record(0), prediction_record(1, **abstention), prediction_record(2)])
    assert [(d.action, d.position, d.explored) for d in decisions][:2] == [("long", 1, False), ("flat", 0, False)]
    assert decisions[2].cost == pytest.approx(1.2e-4 / 2 / 1.1 + 0.7e-4)


def test_a_learning_agent_only_recommends_and_a_frozen_one_trades() -> None:
    learning = applied(QLearningAgent("a"), [prediction_record(n) for n in range(50)])
    assert {(d.mode, d.size) for d in learning} == {("shadow", 0.0)}
    assert any(d.explored for d in learning)
    frozen = always_long()
    (decision,) = applied(frozen, [prediction_record(0, scaling_factor=0.5)])
    assert (decision.mode, decision.size, decision.explored) == ("frozen", 0.5, False)
    table = frozen.table.values_SA.copy()
    applied(frozen, [prediction_record(n) for n in range(1, 9)])
    assert np.array_equal(frozen.table.values_SA, table), "a frozen agent learned"
    (decision,) = applied(always_long(), [prediction_record(0, source="replay:job")])
    assert (decision.mode, decision.size, decision.position) == ("shadow", 0.0, 1), "nobody trades on a replay"
    shadow = QLearningAgent("a", mode="shadow")
    shadow.table.values_SA[:, 2] = 1.0
    (decision,) = applied(shadow, [prediction_record(0)])
    assert (decision.mode, decision.position, decision.size) == ("shadow", 1, 0.0)


def test_learning_pays_where_the_forecast_is_right() -> None:
    rng = np.random.default_rng(0)
    moves = rng.normal(0, 0.002, 4001)
    prices = 1.1 * np.exp(np.cumsum(moves))
    start = datetime(2024, 1, 1, tzinfo=UTC)
    agent = QLearningAgent("a", hyperparameters=QLearningHyperparameters(exploration_decay=0.998))
    records = [
        prediction_record(
            n,
            as_of=start + timedelta(minutes=n),
            price=float(prices[n]),
            prediction=float(moves[n + 1]),
            metadata={"volatility": 0.002},
        )
        for n in range(4000)
    ]
    rewards = [d.reward for d in applied(agent, records) if d.reward is not None]
    assert np.mean(rewards[-1000:]) > 0.5 * np.mean(np.abs(moves))


@pytest.mark.parametrize("bad", [{"symbol": "EUR/XAU"}, {"price": -1.0}, {"price": 3.0}])
def test_an_entry_that_fails_leaves_everything_as_it_was(bad: dict[str, Any]) -> None:
    agent = QLearningAgent("a", mode="learn", hyperparameters=QLearningHyperparameters(exploration_rate=0.0))
    agent.table.values_SA[:, 0] = 1.0  # always short, so that a price of 3 ruins it
    applied(agent, [prediction_record(n) for n in range(3)])
    before = agent.checkpoint().model_copy(update={"saved_at": None})
    with pytest.raises(DataValidationError):
        agent.apply("9-0", prediction_record(4, **bad))
    assert agent.checkpoint().model_copy(update={"saved_at": None}) == before


def test_a_rejected_entry_gives_its_lane_a_new_start() -> None:
    agent = QLearningAgent("a", hyperparameters=QLearningHyperparameters(exploration_rate=0.0))
    agent.table.values_SA[:, 0] = 1.0
    applied(agent, [prediction_record(0, price=0.1)])
    with pytest.raises(DataValidationError, match="capital"):
        agent.apply("2-0", prediction_record(1))
    agent.reject("2-0", prediction_record(1))
    assert agent.has_applied("2-0")
    decision = agent.apply("3-0", prediction_record(2))
    assert decision is not None
    assert decision.reward is None


def test_the_position_of_a_rejected_lane_is_shown_no_longer_unless_another_lane_of_the_symbol_holds_one() -> None:
    def of(model_id: str, number: int, **changes: Any) -> PredictionRecord:
        return prediction_record(number, model_id=model_id, **changes)

    agent = QLearningAgent("a", hyperparameters=QLearningHyperparameters(exploration_rate=0.0))
    agent.table.values_SA[:, 0] = 1.0
    entries = [of("one", 0), of("two", 0, status="abstain"), of("two", 0, symbol="USD/JPY", price=150.0)]
    applied(agent, entries)
    held = {"EUR/USD": 0, "USD/JPY": -1}
    assert agent.checkpoint().positions == held
    agent.reject("7-0", of("two", 1, symbol="USD/CHF"))
    agent.reject("8-0", None)
    assert agent.checkpoint().positions == held, "no series was dropped"
    agent.reject("9-0", of("two", 1))
    assert agent.checkpoint().positions == {"EUR/USD": -1, "USD/JPY": -1}, "the other model's series is short"
    agent.reject("10-0", of("one", 1))
    assert agent.checkpoint().positions == {"USD/JPY": -1}


def test_missing_volatility_falls_back_to_the_interval_and_then_to_no_opinion() -> None:
    def state(**changes: Any) -> int:
        return QLearningAgent("a")._state(prediction_record(0, **changes), 0)

    wide = {"level": 0.9, "lower": -0.001645, "upper": 0.001645}
    strong = {"prediction": 0.0004, "interval": wide}
    assert state(**strong, metadata={"volatility": None}) == state(**strong, metadata={"volatility": 0.001})
    blind = state(prediction=0.0004, interval=None, metadata={"volatility": None})
    assert blind == state(prediction=0.0, interval=None)


def test_replay_lanes_are_bounded_and_live_ones_stay() -> None:
    agent = QLearningAgent("a")
    agent.apply("1-0", prediction_record(0))
    for number in range(MAX_REPLAY_SERIES + 20):
        agent.apply(f"{number + 2}-0", prediction_record(0, source=f"replay:{number}"))
    lanes = agent.checkpoint().lanes
    assert len(lanes) == MAX_REPLAY_SERIES + 1
    assert prediction_record(0).position_key in lanes
    assert "replay:0|model|EUR/USD|1h" not in lanes
