"""The Q table: states, choices, updates, and a random state that can be put back."""

import json

import numpy as np
import pytest

from ml_workbench_service.agents.q_table import FLAT, NUM_ACTIONS, POSITIONS, QTable, StateBins
from ml_workbench_service.contracts.agents import QLearningHyperparameters


def test_every_combination_is_its_own_state_and_all_are_used() -> None:
    bins = StateBins()
    edges = (
        -9.0,
        *[(low + high) / 2 for low, high in zip(bins.strength_edges, bins.strength_edges[1:], strict=False)],
        9.0,
    )
    states = [
        bins.state_of(strength, width, position)
        for strength in edges
        for width in (1.0, 3.0, 9.0)
        for position in POSITIONS
    ]
    abstentions = [bins.state_of(None, None, position) for position in POSITIONS]
    assert len(set(states + abstentions)) == len(states) + 3
    assert max(states + abstentions) < bins.num_states
    assert all(state >= bins.first_abstention for state in abstentions)
    assert not any(state >= bins.first_abstention for state in states)


def test_the_bins_are_symmetric() -> None:
    bins = StateBins()
    assert bins.strength_edges == tuple(-edge for edge in reversed(bins.strength_edges))
    assert bins.state_of(0.01, None, 0) == bins.state_of(-0.01, 3.29, 0)


def test_an_update_moves_towards_reward_and_discounted_best_next_value() -> None:
    table = QTable(QLearningHyperparameters(learning_rate=0.5, discount_factor=0.9))
    table.values_SA[7] = (1.0, 2.0, 3.0)
    table.learn(4, 2, reward=0.1, next_state=7)
    assert table.values_SA[4, 2] == pytest.approx(0.5 * (0.1 + 0.9 * 3.0))
    assert table.visits_SA[4, 2] == table.visits_SA.sum() == 1


def test_after_an_abstention_only_flat_counts() -> None:
    table = QTable(QLearningHyperparameters(learning_rate=1.0, discount_factor=0.5))
    abstention = table.bins.state_of(None, None, 1)
    table.values_SA[abstention] = (5.0, -0.2, 5.0)
    table.learn(0, 0, reward=0.0, next_state=abstention)
    assert table.values_SA[0, 0] == pytest.approx(-0.1)


def test_greedy_prefers_flat_among_equals() -> None:
    table = QTable(QLearningHyperparameters(exploration_rate=0.0))
    assert table.greedy(0) == FLAT
    table.values_SA[0] = (0.1, 0.0, 0.2)
    assert table.choose(0) == (2, False)


def test_exploration_decays_to_its_minimum_and_never_rises() -> None:
    table = QTable(QLearningHyperparameters(exploration_rate=1.0, exploration_decay=0.5, exploration_minimum=0.2))
    rates = []
    for _ in range(4):
        table.choose(0)
        rates.append(table.exploration_rate)
    assert rates == [0.5, 0.25, 0.2, 0.2]
    greedy = QTable(QLearningHyperparameters(exploration_rate=0.0))
    assert not any(greedy.choose(0)[1] for _ in range(20))
    assert greedy.exploration_rate == 0.0


def test_random_actions_cover_all_and_follow_the_seed() -> None:
    def actions(seed: int) -> list[int]:
        table = QTable(QLearningHyperparameters(exploration_decay=1.0, seed=seed))
        return [table.choose(0)[0] for _ in range(300)]

    assert actions(1) == actions(1) != actions(2)
    assert min(np.bincount(actions(1), minlength=NUM_ACTIONS)) > 60


def test_the_random_state_survives_json() -> None:
    table = QTable(QLearningHyperparameters(exploration_decay=1.0))
    for _ in range(7):
        table.choose(0)
    saved = json.loads(json.dumps(table.random_state))
    expected = [table.choose(0) for _ in range(50)]
    other = QTable(QLearningHyperparameters(exploration_decay=1.0, seed=99))
    other.random_state = saved
    assert [other.choose(0) for _ in range(50)] == expected
