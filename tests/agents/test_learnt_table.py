"""The Q table that is shown: in the words of its bins, and of several processes the mean by visits."""

import pytest

from common_lib.exceptions import ConflictError
from ml_workbench_service.agents.learnt_table import learnt_table, table_rows
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.q_table import POSITIONS, QTable, StateBins
from ml_workbench_service.contracts.agents import QLearningHyperparameters


def test_a_row_has_the_words_of_the_state_that_the_bins_make() -> None:
    agent = QLearningAgent("a")
    rows = table_rows(learnt_table("a", [agent.checkpoint()]))
    bins = StateBins()
    for strength, width, position, words in (
        (-1.0, 1.0, -1, ("≤-0.3", "≤2.5", "short")),
        (-0.3, 2.5, 0, ("≤-0.3", "≤2.5", "flat")),  # an edge belongs to the bin below
        (0.0, 3.0, 1, ("-0.05…0.05", "2.5…4", "long")),
        (0.31, 5.0, 0, (">0.3", ">4", "flat")),
        (None, None, 1, ("abstained", "2.5…4", "long")),
    ):
        row = rows[bins.state_of(strength, width, position)]
        assert (row["forecast"], row["width"], row["held"]) == words
    assert len(rows) == bins.num_states


def test_the_best_action_is_the_one_that_the_agent_would_choose() -> None:
    table = QTable(QLearningHyperparameters())
    values = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0), (-1.0, -2.0, -3.0)]
    agent = QLearningAgent("a")
    for state, each in enumerate(values):
        table.values_SA[state] = agent.table.values_SA[state] = each
    rows = table_rows(learnt_table("a", [agent.checkpoint()]))
    names = dict(zip(POSITIONS, ("short", "flat", "long"), strict=True))
    for state in range(len(values)):
        assert rows[state]["best"] == names[POSITIONS[table.greedy(state)]], values[state]


def test_several_processes_are_one_table_by_visits() -> None:
    one, other = QLearningAgent("a"), QLearningAgent("a")
    one.table.values_SA[5] = (0.1, 0.2, 0.3)
    one.table.visits_SA[5] = (3, 0, 1)
    other.table.values_SA[5] = (0.5, 0.6, 0.7)
    other.table.visits_SA[5] = (1, 0, 0)
    row = table_rows(learnt_table("a", [one.checkpoint(), other.checkpoint()]))[5]
    assert row["value_short"] == pytest.approx((3 * 0.1 + 0.5) / 4)
    assert row["value_flat"] == 0.0
    assert row["value_long"] == pytest.approx(0.3)
    assert (row["visits"], row["visits_short"], row["visits_long"]) == (5, 4, 1)


def test_tables_of_different_bins_have_no_mean() -> None:
    other = QLearningAgent("a", bins=StateBins(strength_edges=(0.0,)))
    with pytest.raises(ConflictError, match="different bins"):
        learnt_table("a", [QLearningAgent("a").checkpoint(), other.checkpoint()])
