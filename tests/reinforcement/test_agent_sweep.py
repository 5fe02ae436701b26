"""The agent grid: each run is the live agent on the same records, to the bit; means rank settings, never luck."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.q_table import USUAL_WIDTH as AGENT_USUAL_WIDTH
from ml_workbench_service.agents.q_table import StateBins
from ml_workbench_service.contracts.agents import QLearningHyperparameters
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.recordings import SAMPLES, Recording
from ml_workbench_service.market.performance import daily_returns
from ml_workbench_service.reinforcement import agent_sweep as agent_grid
from ml_workbench_service.reinforcement.agent_simulator import (
    EXPLORATION,
    GROSS,
    NET,
    NUM_HELD,
    NUM_SETTLED,
    TURNOVER,
    walk_runs,
)
from ml_workbench_service.reinforcement.agent_sweep import (
    Q_LEARNING_GRID,
    GridOutcome,
    GridRow,
    grid_settings,
    market_bins,
    records_of,
    run_grid,
)
from ml_workbench_service.reinforcement.tabular_q import QSettings
from ml_workbench_service.testing.synthetic import Recorder
from tests.market.series_for_tests import HOUR_MS, hours
from tests.prediction_records import prediction_record

pytestmark = pytest.mark.processor

COSTS = Costs(spread_pips=0.6, commission_bp=0.35, slippage_bp=0.1, swap_long_pips=0.7, swap_short_pips=-0.2)
LEVELS = {"EUR/USD": 1.1, "USD/JPY": 145.0}
SETTINGS = [
    QLearningHyperparameters(),
    QLearningHyperparameters(learning_rate=0.01, exploration_rate=0.8, discount_factor=0.99, seed=1),
    QLearningHyperparameters(learning_rate=1.0, exploration_rate=0.05, discount_factor=0.0, seed=2**31 - 1),
    QLearningHyperparameters(exploration_rate=0.01, exploration_minimum=0.3, exploration_decay=0.5, seed=9),
]


def records(num: int = 400, *, seed: int = 0, fill: str = "next_open", signal: float = 0.0) -> list[PredictionRecord]:
    """Hours of two symbols that miss other bars, weekends among them, with everything a record may lack.

    `signal` is the share of the next move that the prediction is.
    """
    chance = np.random.default_rng(seed)
    found: list[tuple[int, int, PredictionRecord]] = []
    for place, (symbol, level) in enumerate(LEVELS.items()):
        opened = np.delete(hours(num), chance.choice(num, num // 20, replace=False))
        moves = chance.normal(0, 2e-3, len(opened))
        price = level * np.exp(np.cumsum(moves))
        start = np.insert(price[:-1], 0, level) * np.exp(chance.normal(0, 1e-4, len(opened)))
        following = np.append(moves[1:], 0.0)
        predicted = signal * following + (1 - signal) * chance.normal(0, 4e-4, len(opened))
        for row, moment in enumerate((opened + HOUR_MS).tolist()):
            kind = chance.random() if signal == 0 else 1.0
            changes: dict[str, Any] = {
                "prediction": float(predicted[row]),
                "metadata": {"volatility": 0.002, "fill": fill, "filling_rule": "next_bar"},
                "bar_open": moment_of(moment - HOUR_MS),
                "open": float(start[row]),
                "spread_open": float(chance.uniform(1e-5, 3e-4)) * level,
            }
            if chance.random() < 0.05:
                changes |= {"bar_open": None, "open": None, "spread_open": None}
            if kind < 0.1:
                reason = "market_closed" if kind < 0.03 else "novel_input"
                changes |= {"status": "abstain", "prediction": None, "interval": None, "abstain_reasons": (reason,)}
            elif kind < 0.2:
                changes["metadata"]["volatility"] = None
            elif kind < 0.3:
                changes |= {"interval": None}
            elif kind < 0.35:
                changes |= {"interval": None} if kind < 0.32 else {}
                changes["metadata"]["volatility"] = 0.0
            elif kind < 0.5:
                changes["metadata"]["strength"] = float(chance.uniform(-1, 1))
            elif kind < 0.7:
                changes["interval"] = {"level": 0.9, "lower": -0.006, "upper": 0.006}
            changes["metadata"]["costs"] = COSTS.model_copy(update={"spread_pips": float(chance.uniform(0.1, 3.0))})
            each = prediction_record(row, symbol=symbol, as_of=moment_of(moment), price=float(price[row]), **changes)
            found.append((moment, place, each))
    return [each for _, _, each in sorted(found, key=lambda each: each[:2])]


def moment_of(ms: int) -> datetime:
    return datetime.fromisoformat("1970-01-01T00:00:00+00:00") + timedelta(milliseconds=ms)


def recording_of(spoken: Sequence[PredictionRecord], costs: Costs | None = None) -> Recording:
    """The records as arrays, with these costs in place of their own."""
    charged = [costs or each.metadata.costs or COSTS for each in spoken]

    def numbers(values: Sequence[float | None]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    return Recording(
        model_id="model",
        version="1.0.0",
        timeframe="1h",
        symbols=tuple(LEVELS),
        fill=spoken[0].metadata.fill,
        data_source="file",
        as_of_ms_M=np.array([to_ms(each.as_of) for each in spoken]),
        symbol_M=np.array([list(LEVELS).index(each.symbol) for each in spoken]),
        price_M=numbers([each.price for each in spoken]),
        opened_ms_M=np.array([-1 if each.bar_open is None else to_ms(each.bar_open) for each in spoken]),
        open_M=numbers([each.open for each in spoken]),
        spread_open_M=numbers([each.spread_open for each in spoken]),
        prediction_M=numbers([each.prediction for each in spoken]),
        volatility_M=numbers([each.metadata.volatility for each in spoken]),
        width_M=numbers([each.interval and each.interval.upper - each.interval.lower for each in spoken]),
        strength_M=numbers([each.metadata.strength for each in spoken]),
        abstained_M=np.array([each.status == "abstain" for each in spoken]),
        kept_M=np.array([each.abstain_reasons == ("market_closed",) for each in spoken]),
        sample_M=np.full(len(spoken), SAMPLES.index("test")),
        costs_M5=np.array([[getattr(each, name) for name in Costs.model_fields] for each in charged]),
    )


def applied(
    spoken: Sequence[PredictionRecord], setting: QLearningHyperparameters, costs: Costs | None = None
) -> QLearningAgent:
    """The live agent after all records, each with costs of its own unless the agent has some."""
    agent = QLearningAgent("a", hyperparameters=setting, costs=costs)
    for number, each in enumerate(spoken):
        agent.apply(f"{number + 1}-0", each)
    return agent


@pytest.mark.parametrize("fill", ["next_open", "next_close"])
def test_every_run_is_the_live_agent_to_the_bit(fill: str) -> None:
    spoken = records(fill=fill)
    track, _ = records_of(recording_of(spoken), bins=StateBins())
    walked = walk_runs(track, QSettings.of(SETTINGS))
    for run, setting in enumerate(SETTINGS):
        agent = applied(spoken, setting)
        assert agent.counters.num_actions == len(spoken)
        assert np.array_equal(walked.values_LSA[run], agent.table.values_SA), setting
        assert np.array_equal(walked.visits_LSA[run], agent.table.visits_SA)
        figures_K = walked.figures_LK[run]
        assert figures_K[NET] == agent.counters.cumulative_reward
        assert figures_K[NUM_SETTLED] == agent.counters.num_settled
        assert figures_K[EXPLORATION] == agent.table.exploration_rate
        assert agent.table.values_SA.any()


def test_pairs_with_another_triple_swap_are_charged_as_the_live_agent_charges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LEVELS", {"EUR/USD": 1.1, "USD/CAD": 1.36})
    spoken = records(250, seed=8)
    dear = COSTS.model_copy(update={"swap_long_pips": 90.0, "swap_short_pips": 70.0})
    swept = run_grid(recording_of(spoken), [({}, SETTINGS[0])], seeds=[0], bins=StateBins(), costs=dear)
    assert swept.best.net == applied(spoken, SETTINGS[0], dear).counters.cumulative_reward


def test_the_states_are_those_of_the_live_agent() -> None:
    assert agent_grid.USUAL_WIDTH == AGENT_USUAL_WIDTH
    spoken = records(200, seed=3)
    for bins in (StateBins(), StateBins((-0.1, 0.0, 0.4), (1.0, 2.0, 9.0))):
        agent = QLearningAgent("a", bins=bins)
        states = [agent._state(each, 0) // 3 for each in spoken]
        assert market_bins(recording_of(spoken), bins).tolist() == states
        assert len(set(states)) > 8
        track, _ = records_of(recording_of(spoken), bins=bins)
        assert len(track.idle_B) * 3 == bins.num_states
        assert track.idle_B.tolist() == [state * 3 >= bins.first_abstention for state in range(len(track.idle_B))]


def test_turnover_and_time_in_the_market_are_those_of_the_agents_decisions() -> None:
    spoken = records(150, seed=4)
    agent = QLearningAgent("a", hyperparameters=SETTINGS[0])
    positions: dict[str, list[int]] = {symbol: [] for symbol in LEVELS}
    prices: dict[str, list[float]] = {symbol: [] for symbol in LEVELS}
    closes = dict(LEVELS)
    for number, each in enumerate(spoken):
        decision = agent.apply(f"{number + 1}-0", each)
        assert decision is not None
        positions[each.symbol].append(decision.position)
        prices[each.symbol].append(closes[each.symbol] if each.open is None else each.open)
        closes[each.symbol] = decision.price
    turnover = held = gross = 0.0
    for symbol in LEVELS:
        realised = np.array(positions[symbol][:-2])
        turnover += np.abs(np.diff(realised, prepend=0)).sum()
        held += (realised != 0).sum()
        gross += np.log1p(realised * (np.divide(prices[symbol][2:], prices[symbol][1:-1]) - 1)).sum()
    track, _ = records_of(recording_of(spoken), bins=StateBins())
    figures_K = walk_runs(track, QSettings.of(SETTINGS[:1])).figures_LK[0]
    assert (figures_K[TURNOVER], figures_K[NUM_HELD]) == (turnover, held)
    assert figures_K[GROSS] == pytest.approx(gross, abs=1e-12)


def test_days_halves_and_means_add_up_to_what_the_agent_earned() -> None:
    spoken = records(300, seed=5)
    agent = QLearningAgent("a", hyperparameters=SETTINGS[0])
    rewards, moments, closes = [], [], dict.fromkeys(LEVELS, 0)
    late = 0.0
    for number, each in enumerate(spoken):
        decision = agent.apply(f"{number + 1}-0", each)
        assert decision is not None
        if decision.reward is not None:
            rewards.append(decision.reward)
            moments.append(to_ms(each.bar_open) if each.bar_open else closes[each.symbol])
            late += decision.reward * (number >= len(spoken) // 2)
        closes[each.symbol] = to_ms(each.as_of)
    outcome = run_grid(recording_of(spoken), [({}, SETTINGS[0])], seeds=[0], bins=StateBins())
    row = outcome.best
    days = daily_returns(np.array(rewards), np.array(moments))
    assert list(row.daily_returns) == list(days)
    assert np.array(list(row.daily_returns.values())) * 2 == pytest.approx(np.array(list(days.values())), abs=1e-14)
    assert (row.net, row.net_by_seed) == (agent.counters.cumulative_reward, (row.net,))
    assert row.late_net == pytest.approx(late, abs=1e-14)
    assert (row.spread, outcome.num_records, outcome.num_by_sample) == (0.0, len(spoken), {"test": len(spoken)})


def test_costs_of_the_request_replace_those_of_the_records_field_by_field() -> None:
    spoken = records(120, seed=6)
    other = Costs(spread_pips=9.0, commission_bp=2.0, slippage_bp=1.0, swap_long_pips=3.0, swap_short_pips=3.0)
    whole = run_grid(recording_of(spoken, other), [({}, SETTINGS[0])], seeds=[0], bins=StateBins(), costs=COSTS)
    assert whole.best.net == applied(spoken, SETTINGS[0], COSTS).counters.cumulative_reward
    partly = run_grid(
        recording_of(spoken, other), [({}, SETTINGS[0])], seeds=[0], bins=StateBins(), costs=Costs(spread_pips=0.6)
    )
    mixed = other.model_copy(update={"spread_pips": 0.6})
    as_costs_say = replace(recording_of(spoken, mixed), spread_open_M=np.full(len(spoken), np.nan))
    same = run_grid(as_costs_say, [({}, SETTINGS[0])], seeds=[0], bins=StateBins())
    assert partly.best.net == same.best.net < whole.best.net


def test_a_step_pays_what_trading_cost_where_it_began() -> None:
    """Always long: the entry pays the costs of its fill, and nothing is paid for holding but swap."""
    spoken = [
        prediction_record(number, symbol="EUR/USD", metadata={"filling_rule": "next_bar", "fill": "next_close"})
        for number in range(4)
    ]
    recording = replace(recording_of(spoken), price_M=1.1 + np.arange(4) / 1000)
    costs_M5 = np.zeros((4, 5))
    costs_M5[:, 0] = (2.0, 5.0, 7.0, 11.0)
    rewards_M33 = records_of(replace(recording, costs_M5=costs_M5), bins=StateBins())[0].rewards_M33
    for realised, pips in ((1, 2.0), (2, 5.0), (3, 7.0)):
        before, after = float(recording.price_M[realised - 1]), float(recording.price_M[realised])
        expected = np.log(1 + (after / before - 1) - pips * 1e-4 / 2 / before)
        assert rewards_M33[realised, 1, 2] == pytest.approx(expected, abs=1e-15)
        assert rewards_M33[realised, 2, 2] == pytest.approx(np.log(after / before), abs=1e-15)


def test_neither_threads_nor_the_size_of_a_block_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    recording, settings = recording_of(records(200, seed=7)), grid_settings()
    whole = run_grid(recording, settings, seeds=[3, 4], bins=StateBins(), num_threads=1)
    monkeypatch.setattr(agent_grid, "STEPS_AT_ONCE", 5 * len(recording))
    report = Recorder()
    split = run_grid(recording, settings, seeds=[3, 4], bins=StateBins(), num_threads=3, report=report)
    assert split == whole
    assert [step for step, _, _ in report.steps] == [*range(5, 54, 5), 54]
    with pytest.raises(JobCancelled):
        run_grid(recording, settings, seeds=[3], bins=StateBins(), report=Recorder(cancel_at_check=2))


def test_the_preset_is_the_first_seeds_grid() -> None:
    settings = grid_settings()
    assert len(settings) == 27 == len({tuple(params.items()) for params, _ in settings})
    assert {params["learning_rate"] for params, _ in settings} == {0.01, 0.1, 0.5}
    assert {params["exploration_rate"] for params, _ in settings} == {1.0, 0.8, 0.5}
    assert {params["discount_factor"] for params, _ in settings} == {0.9, 0.95, 0.99}
    for params, setting in grid_settings(Q_LEARNING_GRID, fixed={"exploration_decay": 0.99}):
        assert setting.model_dump() == QLearningHyperparameters(**params, exploration_decay=0.99).model_dump()


def test_settings_are_ranked_by_their_mean_and_never_by_their_luckiest_run() -> None:
    """Without a signal the lucky run of one setting beats the best setting's every run; it must not win."""
    recording = recording_of(records(600, seed=13))
    outcome = run_grid(recording, grid_settings(), seeds=range(5), bins=StateBins())
    means = [row.net for row in outcome.ranking]
    assert means == sorted(means, reverse=True)
    assert sorted(row.number for row in outcome.ranking) == list(range(27))
    for row in outcome.ranking:
        assert len(set(row.net_by_seed)) == 5
        assert (row.net, row.spread) == pytest.approx((np.mean(row.net_by_seed), np.std(row.net_by_seed, ddof=1)))
    luckiest = max(outcome.ranking, key=lambda row: max(row.net_by_seed))
    assert luckiest.number != outcome.best.number


def test_equals_are_ranked_by_spread_and_then_by_their_order() -> None:
    recording = recording_of(records(60, seed=9))
    same = [({"n": number}, SETTINGS[0]) for number in range(3)]
    assert [row.number for row in run_grid(recording, same, seeds=[0, 1], bins=StateBins()).ranking] == [0, 1, 2]


def test_a_grid_learns_where_the_predictions_are_right() -> None:
    right = recording_of(records(3000, seed=10, signal=0.9))
    choices = {"learning_rate": (0.02, 0.1), "exploration_rate": (1.0, 0.0)}
    outcome: GridOutcome = run_grid(
        right, grid_settings(choices, fixed={"exploration_decay": 0.998}), seeds=[0, 1, 2], bins=StateBins()
    )
    best: GridRow = outcome.best
    steps = np.abs(np.diff(np.log(right.price_M[right.symbol_M == 0]))).sum()
    assert best.net > 0.5 * 2 * steps
    assert best.gross > best.net > 0.0
    assert best.sharpe is not None
    assert best.sharpe > 1.0


def test_bad_grids_are_refused_with_the_next_step() -> None:
    recording = recording_of(records(60))
    for choices, fixed, path in (
        ({"learning_rat": (0.1,)}, {}, "body.search_space.learning_rat"),
        ({"learning_rate": (0.1, 2.0)}, {}, "body.search_space.learning_rate"),
        ({"learning_rate": (0.1,)}, {"discount_factor": 1.0}, "body.base.hyperparameters.discount_factor"),
        ({"seed": (1, 2)}, {}, "body.search_space.seed"),
        ({}, {}, "body.search_space"),
        ({"learning_rate": ()}, {}, "body.search_space"),
        ({name: np.linspace(0.1, 0.9, 30).tolist() for name in Q_LEARNING_GRID}, {}, "body.search_space"),
    ):
        with pytest.raises(DataValidationError) as caught:
            grid_settings(choices, fixed=fixed)
        assert caught.value.details["errors"][0]["path"] == path
    with pytest.raises(DataValidationError, match="a setting and a seed"):
        run_grid(recording, grid_settings(), seeds=[], bins=StateBins())
    alone = recording_of([records(60)[0]])
    with pytest.raises(DataValidationError, match="longer range"):
        run_grid(alone, grid_settings(), seeds=[0], bins=StateBins())
