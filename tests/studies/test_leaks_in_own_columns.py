"""Leaking columns are drawn, of many kinds; a handful of them goes through the whole training and none passes."""

import numpy as np
import pytest

from studies.leaking_columns import SOURCES
from studies.leaks_in_own_columns import NUM_COLUMNS, Case, column_of, judged

pytestmark = pytest.mark.more

NUM_BARS = 2_400
SEED = 1


def test_forty_kinds_are_drawn_of_every_source_and_some_claim_to_be_known_in_time() -> None:
    columns = [column_of(Case(number, SEED, num_bars=400))[1] for number in range(NUM_COLUMNS)]
    names = {column.name for column in columns}
    assert len(names) == NUM_COLUMNS >= 40
    assert {name.rpartition(", ")[0].split(", ")[0] for name in names} <= set(SOURCES)
    assert len({name.split(", ")[0] for name in names}) == len(SOURCES)
    assert 4 <= sum(column.is_declared for column in columns) <= 24
    assert all(np.isfinite(column.values).all() and column.values.std() > 0 for column in columns)


def test_another_seed_draws_other_kinds_and_the_same_seed_the_same() -> None:
    one, again, other = (column_of(Case(3, seed, num_bars=400))[1] for seed in (SEED, SEED, SEED + 1))
    np.testing.assert_array_equal(one.values, again.values)
    assert one.name == again.name != other.name


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_leak_passes_no_gate_whatever_its_file_claims(is_declared: bool) -> None:
    number = next(
        number
        for number in range(NUM_COLUMNS)
        if column_of(Case(number, SEED, num_bars=400))[1].is_declared == is_declared
    )
    found = judged(Case(number, SEED, num_bars=NUM_BARS))
    assert not found.passes
    assert found.proof in (None, "declared")
