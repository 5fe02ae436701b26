"""Ratios, drawdown and luck: by hand, against scipy, by property, and on noise that holds no skill at all."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.multiple_testing import PartRead, Trial
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.market.performance import (
    DAYS_PER_YEAR,
    annual,
    break_even_cost_bp,
    calmar,
    daily_returns,
    deflated_sharpe,
    expected_maximum_sharpe,
    max_drawdown,
    probabilistic_sharpe,
    probability_of_overfitting,
    sharpe,
    sortino,
    validation_report,
)

pytestmark = pytest.mark.processor

FRIDAY_NOON_MS = 1_709_294_400_000  # 1 March 2024, 12:00 UTC
daily = arrays(np.float64, st.integers(3, 40), elements=st.integers(-500, 500).map(lambda each: each / 1e4))


def noise(num_days: int, num_trials: int = 1, *, seed: int = 0, mean: float = 0.0) -> Floats:
    return np.random.default_rng(seed).normal(mean, 0.01, (num_days, num_trials))


def trial(name: str, daily_D: Floats, *, first: str = "2024-01-01", of: dict[str, float] | None = None) -> Trial:
    days = np.busday_offset(first, np.arange(len(daily_D)), roll="forward")
    read = PartRead(id=name, subject="price", symbols=("EUR/USD",), start_ms=0, end_ms=1, at=utc_now())
    own = dict(zip(days.astype(str).tolist(), daily_D.tolist(), strict=True))
    return Trial(read=read, sharpe=sharpe(daily_D), daily_returns=own if of is None else of)


def test_a_day_goes_from_roll_to_roll_and_bears_the_date_of_its_end() -> None:
    at = FRIDAY_NOON_MS + HOUR_MS * np.array([0, 9, 10, 11, 12 + 48, 12 + 48 + 10])
    days = daily_returns(np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), at)
    # Friday 17:00 New York is 22:00 UTC: what is settled then is Friday's, what comes later is Monday's.
    assert days == {"2024-03-01": 7.0, "2024-03-04": 56.0}


def test_the_day_follows_new_york_into_summer() -> None:
    at = 1_718_280_000_000 + HOUR_MS * np.array([9, 10])  # 13 June 2024, 21:00 and 22:00 UTC
    assert daily_returns(np.array([1.0, 2.0]), at) == {"2024-06-13": 1.0, "2024-06-14": 2.0}


def test_weekdays_without_a_step_are_days_flat_and_weekends_are_none() -> None:
    days = daily_returns(np.array([0.1, 0.2]), np.array([FRIDAY_NOON_MS, FRIDAY_NOON_MS + 5 * DAY_MS]))
    assert days == {"2024-03-01": 0.1, "2024-03-04": 0.0, "2024-03-05": 0.0, "2024-03-06": 0.2}
    assert daily_returns(np.zeros(0), np.zeros(0, dtype=np.int64)) == {}


def test_the_ratios_by_hand() -> None:
    days = np.array([0.02, -0.01, 0.03, -0.02])
    assert sharpe(days) == pytest.approx(0.005 / math.sqrt((0.015**2 + 0.015**2 + 0.025**2 + 0.025**2) / 3))
    assert sortino(days) == pytest.approx(0.005 / math.sqrt((0.01**2 + 0.02**2) / 4))
    assert max_drawdown(days) == pytest.approx(1 - math.exp(-0.02))
    assert max_drawdown(np.array([-0.1, 0.05, -0.2, 0.5])) == pytest.approx(1 - math.exp(-0.25))
    assert calmar(days) == pytest.approx(0.005 * DAYS_PER_YEAR / (1 - math.exp(-0.02)))
    assert annual(1.0) == pytest.approx(16.15, abs=0.01)


def test_what_cannot_be_told_is_none() -> None:
    flat, one, up = np.zeros(20), np.array([0.1]), np.array([0.1, 0.2, 0.1])
    assert (sharpe(flat), sortino(flat), calmar(flat), probabilistic_sharpe(flat)) == (None,) * 4
    assert (sharpe(one), sharpe(np.full(9, 0.1)), probabilistic_sharpe(up[:2]), annual(None)) == (None,) * 4
    assert (sortino(up), calmar(up), sortino(np.zeros(0)), calmar(np.zeros(0))) == (None,) * 4
    assert deflated_sharpe(up[:2], num_trials=1) is None
    assert max_drawdown(up) == 0.0


def test_the_probabilistic_ratio_is_the_papers_formula() -> None:
    days = np.random.default_rng(3).standard_t(4, 500) * 0.01 + 0.0008
    ratio, skewness, kurtosis = days.mean() / days.std(ddof=1), stats.skew(days), stats.kurtosis(days, fisher=False)
    spread = 1 - skewness * ratio + (kurtosis - 1) / 4 * ratio**2
    for benchmark in (0.0, 0.05):
        wanted = stats.norm.cdf((ratio - benchmark) * math.sqrt(499) / math.sqrt(spread))
        assert probabilistic_sharpe(days, benchmark=benchmark) == pytest.approx(wanted, rel=1e-12)


def test_losing_rarely_but_much_is_trusted_less_than_the_mirror_image() -> None:
    days = np.where(np.arange(40) % 20 == 0, -0.03, 0.0025)
    mirrored = 2 * days.mean() - days
    assert sharpe(days) == pytest.approx(sharpe(mirrored))
    for_days, for_mirrored = probabilistic_sharpe(days), probabilistic_sharpe(mirrored)
    assert for_days is not None
    assert for_mirrored is not None
    assert for_mirrored - for_days > 0.02


def test_the_best_of_many_trials_without_skill_is_as_good_as_expected() -> None:
    chance = np.random.default_rng(5)
    for num, tolerance in ((10, 0.03), (100, 0.03), (1000, 0.03)):
        found = chance.normal(0, 0.05, (2000, num)).max(axis=1).mean()
        assert expected_maximum_sharpe(num, variance=0.05**2) == pytest.approx(found, rel=tolerance)
    assert expected_maximum_sharpe(1, variance=9.0) == 0.0


def test_the_papers_own_example() -> None:
    """Bailey and López de Prado (2014): five years, annual ratio 2.5, skewness -3, kurtosis 10; 100 trials."""
    best = expected_maximum_sharpe(100, variance=0.5 / 250)
    assert best == pytest.approx(0.1132, abs=5e-5)
    ratio = 2.5 / math.sqrt(250)
    spread = math.sqrt(1 + 3 * ratio + 9 / 4 * ratio**2)
    assert stats.norm.cdf((ratio - best) * math.sqrt(1249) / spread) == pytest.approx(0.9004, abs=5e-5)


def test_more_looks_deflate_more_and_one_look_not_at_all() -> None:
    days = noise(400, mean=0.001, seed=2)[:, 0]
    found = [deflated_sharpe(days, num_trials=num) for num in (1, 2, 10, 100)]
    assert found[0] == probabilistic_sharpe(days)
    assert all(a is not None and b is not None and a > b + 0.01 for a, b in pairwise(found))
    best = expected_maximum_sharpe(10, variance=1 / 399)
    assert found[2] == pytest.approx(probabilistic_sharpe(days, benchmark=best))


@settings(max_examples=60, deadline=None)
@given(daily)
def test_scale_changes_no_ratio_and_probabilities_stay_probabilities(days: Floats) -> None:
    ratio, larger = sharpe(days), sharpe(days * 4.0)
    assert (ratio is None) == (larger is None)
    if ratio is not None:
        assert larger == pytest.approx(ratio)
        assert sharpe(-days) == pytest.approx(-ratio)
    downside, larger = sortino(days), sortino(days * 4.0)
    assert downside == pytest.approx(larger) if downside is not None else larger is None
    assert 0.0 <= max_drawdown(days) < 1.0
    for benchmark in (0.0, 0.3):
        probability = probabilistic_sharpe(days, benchmark=benchmark)
        assert probability is None or 0.0 <= probability <= 1.0


def written_out_overfitting(daily_DN: Floats, num_blocks: int) -> float:
    blocks, worse, num = np.array_split(np.arange(len(daily_DN)), num_blocks), 0.0, 0
    for chosen in combinations(range(num_blocks), num_blocks // 2):
        inside = daily_DN[np.concatenate([blocks[k] for k in chosen])]
        outside = daily_DN[np.concatenate([blocks[k] for k in range(num_blocks) if k not in chosen])]
        best = int((inside.mean(axis=0) / inside.std(axis=0)).argmax())
        ratios = outside.mean(axis=0) / outside.std(axis=0)
        share = stats.rankdata(ratios)[best] / (len(ratios) + 1)
        logit = math.log(share / (1 - share))
        worse, num = worse + (logit < -1e-9) + 0.5 * (abs(logit) <= 1e-9), num + 1
    return worse / num


@pytest.mark.parametrize(("num_days", "num_blocks"), [(53, 10), (63, 12)])
def test_overfitting_by_sums_equals_the_splits_written_out(num_days: int, num_blocks: int) -> None:
    for num_trials in (10, 11):
        days = noise(num_days, num_trials, seed=num_trials)
        assert probability_of_overfitting(days) == pytest.approx(written_out_overfitting(days, num_blocks), abs=1e-12)


def test_overfitting_is_half_on_noise_and_nothing_where_one_trial_has_skill() -> None:
    found = [probability_of_overfitting(noise(160, 20, seed=seed)) for seed in range(40)]
    assert np.mean([each for each in found if each is not None]) == pytest.approx(0.5, abs=0.12)
    days = noise(160, 20)
    days[:, 7] += 0.006
    skilled = probability_of_overfitting(days)
    assert skilled is not None
    assert skilled < 0.02
    trending = noise(160, 20) * 0.01  # what was best in one half is worst in the other
    trending += np.linspace(-1, 1, 20) * np.where(np.arange(160) < 80, 1, -1)[:, None] * 0.01
    overfitted = probability_of_overfitting(trending)
    assert overfitted is not None
    assert overfitted > 0.8


def test_under_ten_trials_or_fifty_days_there_is_no_probability_of_overfitting() -> None:
    assert probability_of_overfitting(noise(160, 9)) is None
    assert probability_of_overfitting(noise(49, 20)) is None
    assert probability_of_overfitting(noise(50, 10)) is not None


def test_trials_that_never_trade_are_no_skill() -> None:
    assert probability_of_overfitting(np.zeros((100, 12))) == 0.5
    days = np.zeros((100, 12))
    days[:, 3] = noise(100, mean=0.01)[:, 0]
    assert probability_of_overfitting(days) == pytest.approx(0.0, abs=0.01)


def test_the_break_even_cost_by_hand() -> None:
    gain, turnover = np.array([0.002, 0.0, -0.001, 0.003]), np.array([1.0, 0.0, 2.0, 1.0])
    cost = break_even_cost_bp(gain, turnover)
    assert cost is not None
    assert cost == pytest.approx(10, rel=0.01), "0.004 over 4"
    assert np.log1p(gain - cost * 1e-4 * turnover).sum() == pytest.approx(0, abs=1e-15)
    assert break_even_cost_bp(gain, np.zeros(4)) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_at_the_break_even_cost_the_account_ends_where_it_began(data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 30))
    gain = data.draw(arrays(np.float64, num, elements=st.floats(-0.02, 0.02)))
    turnover = data.draw(arrays(np.float64, num, elements=st.sampled_from([0.5, 1.0, 2.0])))
    cost = break_even_cost_bp(gain, turnover)
    assert cost is not None
    assert np.log1p(gain - cost * 1e-4 * turnover).sum() == pytest.approx(0, abs=1e-13)


def test_a_validation_report_counts_every_trial_and_deflates_by_their_variance() -> None:
    days = noise(120, 12, seed=9)
    trials = [trial(f"job/{number}", days[:, number]) for number in range(12)]
    best = int(np.argmax([each.sharpe for each in trials]))
    found = validation_report(trials, f"job/{best}")
    variance = float(np.var([each.sharpe for each in trials], ddof=1))
    assert found.num_trials == 12
    assert found.sharpe == pytest.approx(annual(sharpe(days[:, best])))
    assert found.deflated_sharpe == pytest.approx(
        probabilistic_sharpe(days[:, best], benchmark=expected_maximum_sharpe(12, variance=variance))
    )
    assert found.probability_of_backtest_overfitting == pytest.approx(probability_of_overfitting(days))
    assert validation_report(trials + trials, f"job/{best}") == found, "a trial noted twice is one"
    assert validation_report(trials[:9], "job/0").probability_of_backtest_overfitting is None


def test_trials_are_compared_on_the_days_that_they_share() -> None:
    days = noise(120, 12, seed=9)
    late = [trial(str(number), days[10:, number], first="2024-01-15") for number in range(6)]
    early = [trial(str(number), days[:110, number]) for number in range(6, 12)]
    elsewhere = [trial("old", days[:, 0], first="2019-01-01"), trial("volatility", np.zeros(0))]
    found = validation_report([*late, *early, *elsewhere], "3")
    assert found.num_trials == 14
    assert found.probability_of_backtest_overfitting == pytest.approx(probability_of_overfitting(days[10:110]))


def test_a_trial_without_a_signal_has_no_figures_and_one_alone_is_not_deflated() -> None:
    nothing = validation_report([trial("a", np.zeros(0))], "a")
    assert (nothing.num_trials, nothing.sharpe, nothing.deflated_sharpe) == (1, None, None)
    days = noise(80, mean=0.001)[:, 0]
    assert validation_report([trial("a", days)], "a").deflated_sharpe == probabilistic_sharpe(days)
    with pytest.raises(DataValidationError, match="not among the trials"):
        validation_report([trial("a", days)], "b")
