"""The study of verdict rules in its short form: every table is made, and each noise has its rows."""

import pytest

from studies import verdict_rules
from studies.tables import Run

pytestmark = pytest.mark.more


def test_both_tables_are_made_of_every_noise() -> None:
    power, retrained = verdict_rules.tables(Run(is_quick=True, num_workers=1))
    assert len(power.rows) == len(verdict_rules.NOISES) * len(verdict_rules.R2)
    assert [row[0] for row in retrained.rows] == list(verdict_rules.NOISES)
    assert all(goal.reached <= 1 for goal in retrained.goals)


def test_a_large_effect_is_found_and_its_absence_is_not() -> None:
    found, power = verdict_rules.find(verdict_rules.Drawn("t3", 0.02, 0, 0))
    assert found
    assert 0.5 < power < 1
    assert not verdict_rules.retrain(verdict_rules.Drawn("t3", 0.0, 1, 0))
