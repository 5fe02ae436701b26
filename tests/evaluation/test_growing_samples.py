"""Growing samples: fixed sizes, levels that sum to 2.5 %, and no more found by luck than once."""

import numpy as np
import pytest

from ml_workbench_service.evaluation.growing_samples import (
    FIRST_LEVEL,
    FIRST_LIVE_MOMENTS,
    LEVEL,
    growing_test,
    last_stage,
    level,
)
from ml_workbench_service.market.significance import hac_mean


def test_all_tests_together_spend_the_level() -> None:
    assert level(0) == FIRST_LEVEL
    assert sum(level(doublings) for doublings in range(60)) == pytest.approx(LEVEL, abs=1e-12)


@pytest.mark.parametrize(
    ("num_moments", "doublings", "tested"),
    [
        (399, None, 0),
        (400, 0, 400),
        (799, 0, 400),
        (800, 1, 800),
        (1599, 1, 800),
        (1600, 2, 1600),
        (1 << 20, 11, 819200),
    ],
)
def test_a_sample_is_tested_whole_and_then_when_it_has_doubled(
    num_moments: int, doublings: int | None, tested: int
) -> None:
    stage = last_stage(num_moments, first=FIRST_LIVE_MOMENTS)
    if doublings is None:
        assert stage is None
        return
    assert stage is not None
    assert (stage.doublings, stage.num_moments, stage.level) == (doublings, tested, level(doublings))


def test_between_tests_the_last_answer_stands() -> None:
    gains = np.random.default_rng(3).normal(0.2, 1.0, 1500)
    at_first, later = growing_test(gains[:500], first=500), growing_test(gains[:999], first=500)
    assert at_first == later
    assert at_first.test == hac_mean(gains[:500])
    assert (at_first.next_at, growing_test(gains, first=500).next_at) == (1000, 2000)
    assert at_first.is_passed


def test_a_later_test_can_take_the_answer_back() -> None:
    rng = np.random.default_rng(4)
    gains = np.concatenate([rng.normal(0.3, 1.0, 400), rng.normal(-0.4, 1.0, 400)])
    assert growing_test(gains[:400], first=400).is_passed
    assert not growing_test(gains, first=400).is_passed


def test_a_p_value_is_in_units_of_what_its_test_spends() -> None:
    gains = np.random.default_rng(5).normal(0.1, 1.0, 1000)
    answer = growing_test(gains, first=500)
    assert answer.test is not None
    assert answer.test.p_value is not None
    assert answer.p_value == pytest.approx(min(1.0, answer.test.p_value * LEVEL / level(1)))
    assert growing_test(gains[:10], first=500).p_value is None


def test_luck_finds_no_more_over_many_doublings_than_in_one_test() -> None:
    """Ever passing, over six doublings of each of 600 series without any gain: at most 2.5 %, by its 99.9 % limit."""
    rng = np.random.default_rng(6)
    ever = 0
    for _ in range(600):
        gains = rng.standard_t(4, 64 * 64)
        ever += any(growing_test(gains[: 64 << k], first=64).is_passed for k in range(7))
    assert ever / 600 <= LEVEL + 3.1 * (LEVEL * (1 - LEVEL) / 600) ** 0.5
