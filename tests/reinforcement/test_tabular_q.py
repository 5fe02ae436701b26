"""Q runs: equal to the agent's own table, number by number; each run its own; saved and restored exactly."""

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.agents.q_table import FLAT, QTable
from ml_workbench_service.contracts.agents import QLearningHyperparameters
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.learning.decoders.action import greedy_actions
from ml_workbench_service.market.backtest import backtest
from ml_workbench_service.market.trading_series import TradingSeries, segment_starts, step_table
from ml_workbench_service.reinforcement.environment import generator_words, walk
from ml_workbench_service.reinforcement.tabular_q import QSettings, VectorTabularQ
from ml_workbench_service.reinforcement.tabular_q_kernels import random_action, random_share
from tests.market.series_for_tests import series_of, window_ends

pytestmark = pytest.mark.processor

NUM_BINS = 24
"""Those of `StateBins`: seven strengths and the abstention, three widths each."""
SETTINGS = [
    QLearningHyperparameters(learning_rate=rate, exploration_rate=exploration, discount_factor=discount, seed=seed)
    for rate, exploration, discount, seed in (
        (0.01, 1.0, 0.9, 0),
        (0.1, 0.8, 0.95, 1),
        (0.5, 0.5, 0.99, 2**31 - 1),
        (1.0, 0.0, 0.0, 3),
    )
] + [QLearningHyperparameters(exploration_rate=0.01, exploration_minimum=0.3, exploration_decay=0.5, seed=9)]


def market(seed: int = 0) -> tuple[TradingSeries, Ints, Ints]:
    """A series with gaps, its payable rows, and a bin for each."""
    series = series_of(seed=seed)
    rows = series.payable(window_ends(series))
    return series, rows, np.random.default_rng(seed).integers(0, NUM_BINS, len(rows))


def learn(
    series: TradingSeries, rows: Ints, bins: Ints, settings: list[QLearningHyperparameters],
    *, epochs: int, num_bins: int = NUM_BINS,
) -> tuple[VectorTabularQ, Floats]:  # fmt: skip
    """The runs after all epochs, and what each earned (L, E)."""
    runs = VectorTabularQ(
        step_table(series, rows), bins, segment_starts(rows), num_bins=num_bins, settings=QSettings.of(settings)
    )
    return runs, np.stack([runs.epoch() for _ in range(epochs)], axis=1)


def plain(table: QTable, rewards_N33: Floats, bins_N: Ints, starts_N: Bools) -> float:
    """One pass of the agent's own table, in Python."""
    total, held = 0.0, FLAT
    for number, (market_bin, starts) in enumerate(zip(bins_N.tolist(), starts_N.tolist(), strict=True)):
        held = FLAT if starts else held
        state = market_bin * 3 + held
        action = table.choose(state)[0]
        reward = float(rewards_N33[number, held, action])
        total += reward
        if number + 1 < len(bins_N) and not starts_N[number + 1]:
            table.learn(state, action, reward=reward, next_state=int(bins_N[number + 1]) * 3 + action)
        else:  # nothing follows
            old = float(table.values_SA[state, action])
            table.values_SA[state, action] = old + table.hyperparameters.learning_rate * (reward - old)
            table.visits_SA[state, action] += 1
        held = action
    return total


def test_every_run_learns_the_table_of_the_agent_to_the_bit() -> None:
    series, rows, bins = market()
    bins = bins % 21  # no abstention: a policy knows none
    learnt, rewards_LE = learn(series, rows, bins, SETTINGS, epochs=3)
    for run, each in enumerate(SETTINGS):
        table = QTable(each)
        totals = [plain(table, step_table(series, rows), bins, segment_starts(rows)) for _ in range(3)]
        assert np.array_equal(learnt.values_LSA[run], table.values_SA), each
        assert np.array_equal(learnt.visits_LSA[run], table.visits_SA)
        assert rewards_LE[run].tolist() == totals
        assert learnt.exploration_rate_L[run] == table.exploration_rate
        assert greedy_actions(learnt.values_LSA[run]).tolist() == [table.greedy(state) for state in range(72)]


def test_the_states_are_those_of_the_live_agent() -> None:
    bins = QTable(QLearningHyperparameters()).bins
    for strength, width, position in ((-0.5, 1.0, -1), (0.0, 3.0, 0), (0.4, 9.0, 1), (None, None, 1)):
        state = bins.state_of(strength, width, position)
        assert state % 3 == position + 1
        assert state // 3 < NUM_BINS
    assert bins.num_states == NUM_BINS * 3


def test_its_random_numbers_are_numpys() -> None:
    theirs = np.random.Generator(np.random.PCG64(20))
    words = generator_words(theirs)
    mixture = np.random.default_rng(0).random(20_000) < 0.5
    ours = [random_share(words) if share else random_action(words) for share in mixture]
    assert ours == [theirs.random() if share else theirs.integers(3) for share in mixture]
    np.testing.assert_array_equal(words, generator_words(theirs))


def test_a_run_does_not_depend_on_its_neighbours() -> None:
    series, rows, bins = market()
    together, _ = learn(series, rows, bins, SETTINGS, epochs=2)
    for run, each in enumerate(SETTINGS):
        alone, _ = learn(series, rows, bins, [each], epochs=2)
        assert np.array_equal(alone.values_LSA[0], together.values_LSA[run])


def test_runs_saved_between_epochs_go_on_exactly() -> None:
    series, rows, bins = market()

    straight, broken, resumed = (learn(series, rows, bins, SETTINGS, epochs=1)[0] for _ in range(3))
    resumed.restore(broken.state())
    assert resumed.epoch().tolist() == straight.epoch().tolist()
    assert np.array_equal(resumed.values_LSA, straight.values_LSA)
    assert np.array_equal(resumed.visits_LSA, straight.visits_LSA)
    other, _ = learn(series, rows, bins, SETTINGS, epochs=1, num_bins=30)
    with pytest.raises(DataValidationError, match="start afresh"):
        other.restore(broken.state())


def test_tables_learn_a_market_that_its_bins_foretell_and_stay_flat_in_one_they_do_not() -> None:
    series, rows, _ = market()
    settings = [QLearningHyperparameters(learning_rate=0.02, discount_factor=0.9, seed=seed) for seed in range(3)]
    move = series.move_R[rows + series.delay]
    told = np.digitize(move, (-0.002, 0.0, 0.002))
    net, perfect = [], []
    for values in learn(series, rows, told, settings, epochs=40, num_bins=4)[0].values_LSA:
        actions = greedy_actions(values)
        place = {int(row): number for number, row in enumerate(rows)}
        positions = np.zeros(len(rows), dtype=np.int64)
        held = 0
        for row, starts in zip(rows, segment_starts(rows), strict=True):
            number = place[int(row)]
            held = 0 if starts else held
            positions[number] = held = int(actions[told[number] * 3 + held + 1]) - 1
        net.append(backtest(series, rows, positions, bars_per_year=6240).net_N.sum())
        perfect.append(backtest(series, rows, np.sign(move).astype(np.int64), bars_per_year=6240).net_N.sum())
    assert min(np.array(net) / np.array(perfect)) > 0.9
    nothing, _ = learn(series, rows, np.zeros_like(told), settings, epochs=40, num_bins=1)
    blind = walk(
        lambda windows, positions: greedy_actions(nothing.values_LSA[0])[positions.astype(np.int64) + 1],
        series,
        rows,
        lookback=1,
    )
    assert np.abs(np.diff(blind.positions_N)).sum() < 0.05 * len(rows), "it does not pay for trades that bring nothing"


def test_bins_that_do_not_fit_are_refused() -> None:
    series, rows, bins = market()
    for wrong in (bins[:-1], bins - 1, bins + 1):
        with pytest.raises(DataValidationError, match=r"one entry for each row|lies outside"):
            learn(series, rows, wrong, SETTINGS, epochs=1)
