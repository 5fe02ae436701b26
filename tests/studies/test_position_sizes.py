"""The study of position sizes in its short form: every rule has its row, and what needs no forecast stands below."""

import pytest

from studies import position_portfolio, position_sizes
from studies.tables import Run

pytestmark = pytest.mark.more


def test_every_rule_has_a_row_with_and_without_a_true_signal() -> None:
    (table,) = position_sizes.tables(Run(is_quick=True, num_workers=1))
    assert [row[0] for row in table.rows] == [*position_sizes.RULES, *position_sizes.PLAIN]
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_costs_are_what_lies_between_a_rule_and_its_cost_free_twin() -> None:
    found = position_sizes.trade(position_sizes.InjectedForecast(0, 0, 4_000, max(position_sizes.R2)))
    assert found["flat"].net == found["flat"].turnover == 0.0
    assert all(each.free_sharpe >= each.sharpe for name, each in found.items() if name in position_sizes.RULES)


def test_a_portfolio_has_a_row_without_a_budget_and_one_with_it() -> None:
    (table,) = position_portfolio.tables(Run(is_quick=True, num_workers=1))
    assert len(table.rows) == 2
    assert all(len(row) == len(table.columns) for row in table.rows)
