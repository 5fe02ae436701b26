"""The regime rule finds injected regimes, knows no future, and measures every symbol by its own past."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.market.regimes import FEWEST_BARS, REGIMES, TREND_BARS, RegimeRule, regime_features
from ml_workbench_service.market.targets import EWMA_BARS, ewma_volatility

TREND_DOWN, CALM, VOLATILE, TREND_UP = (REGIMES.index(name) for name in ("trend_down", "calm", "volatile", "trend_up"))
NUM_TRAIN = 3000
SEGMENT = 200


def walk(num: int, seed: int = 0, deviation: float = 0.001) -> Floats:
    return np.asarray(1.1 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, deviation, num))))


def one_run(num: int) -> np.ndarray:
    return np.zeros(num, dtype=np.int64)


def classified(close: Floats, num_train: int = NUM_TRAIN) -> tuple[RegimeRule, Floats]:
    trend, volatility = regime_features(close, one_run(len(close)))
    rule = RegimeRule.fit(trend[:num_train], volatility[:num_train])
    return rule, rule.classify(trend, volatility)


@pytest.mark.parametrize(
    ("drift", "deviation", "regime"),
    [(0.001, 0.001, TREND_UP), (-0.001, 0.001, TREND_DOWN), (0.0, 0.004, VOLATILE), (0.0, 0.0003, CALM)],
)
def test_an_injected_regime_is_found(drift: float, deviation: float, regime: int) -> None:
    chance = np.random.default_rng(1)
    returns = np.concatenate([chance.normal(0, 0.001, NUM_TRAIN), chance.normal(drift, deviation, SEGMENT)])
    if drift == 0:  # back and forth: a random walk now and then trends by itself
        returns[-SEGMENT:] = deviation * (-1.0) ** np.arange(SEGMENT)
    _, classes = classified(np.asarray(1.1 * np.exp(np.cumsum(returns))))
    settled = classes[NUM_TRAIN + EWMA_BARS // 2 :]
    assert np.mean(settled == regime) > 0.9


def test_the_training_part_holds_the_shares_that_the_quantiles_say() -> None:
    _, classes = classified(walk(6000, seed=2), num_train=6000)
    shares = np.bincount(classes[np.isfinite(classes)].astype(int), minlength=4) / np.isfinite(classes).sum()
    assert shares[TREND_UP] + shares[TREND_DOWN] == pytest.approx(1 / 3, abs=1e-3)
    assert shares[VOLATILE] + shares[CALM] == pytest.approx(2 / 3, abs=1e-3)
    assert shares[VOLATILE] == pytest.approx(2 / 9, abs=0.05)


def test_features_and_classes_equal_a_plain_loop() -> None:
    close = walk(400, seed=3)
    trend, volatility = regime_features(close, one_run(400))
    rule, classes = classified(close, num_train=250)
    assert rule.trend == np.quantile(np.abs(trend[30:250]), 2 / 3)
    assert rule.volatility == np.quantile(volatility[30:250], 2 / 3)
    assert np.isnan(classes[:30]).all()
    np.testing.assert_array_equal(volatility, ewma_volatility(close))
    for t in range(30, 400):
        strength = math.log(close[t] / close[t - TREND_BARS]) / (volatility[t] * math.sqrt(TREND_BARS))
        assert trend[t] == pytest.approx(strength, rel=1e-12)
        wanted = VOLATILE if volatility[t] > rule.volatility else CALM
        if abs(strength) > rule.trend:
            wanted = TREND_UP if strength > 0 else TREND_DOWN
        assert classes[t] == wanted


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(min_value=1, max_value=299), st.integers(min_value=0, max_value=2**31))
def test_the_future_moves_no_regime_before_it(cut: int, seed: int) -> None:
    close, rule = walk(300, seed=4), RegimeRule(trend=1.0, volatility=0.001)
    changed = close.copy()
    changed[cut:] *= np.exp(np.random.default_rng(seed).normal(0, 0.5, 300 - cut))
    before, after, alone = (regime_features(each, one_run(len(each))) for each in (close, changed, close[:cut]))
    for number in (0, 1):
        assert before[number][:cut].tobytes() == after[number][:cut].tobytes() == alone[number].tobytes()
    assert rule.classify(*before)[:cut].tobytes() == rule.classify(*after)[:cut].tobytes()


def test_no_trend_is_taken_over_a_missing_bar() -> None:
    runs = np.repeat([0, 1], [100, 100])
    trend, volatility = regime_features(walk(200), runs)
    assert np.isnan(trend[100 : 100 + TREND_BARS]).all()
    assert np.isfinite(trend[30:100]).all()
    assert np.isfinite(trend[100 + TREND_BARS :]).all()
    classes = RegimeRule(trend=1.0, volatility=0.001).classify(trend, volatility)
    assert np.isnan(classes[100 : 100 + TREND_BARS]).all()


def test_a_missing_bar_costs_the_rule_only_the_bars_after_it() -> None:
    runs = np.repeat([0, 1], [100, 100])
    trend, volatility = regime_features(walk(200), runs)
    rule = RegimeRule.fit(trend, volatility)
    known = np.r_[30:100, 100 + TREND_BARS : 200]
    assert (rule.trend, rule.volatility) == (
        np.quantile(np.abs(trend[known]), 2 / 3),
        np.quantile(volatility[known], 2 / 3),
    )


def test_every_symbol_is_measured_by_its_own_past() -> None:
    quiet, close = walk(2000, seed=5, deviation=0.0002), walk(2000, seed=5, deviation=0.005)
    _, classes_quiet = classified(quiet, num_train=1000)
    _, classes = classified(close, num_train=1000)
    np.testing.assert_array_equal(classes_quiet, classes)


def test_thresholds_are_the_training_parts_alone() -> None:
    close = walk(2000, seed=6)
    burst = close.copy()
    burst[1000:] *= np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.02, 1000)))
    assert classified(close, num_train=1000)[0] == classified(burst, num_train=1000)[0]


def test_the_present_regime_is_usually_the_next_one_even_where_nothing_can_be_known() -> None:
    _, classes = classified(walk(5000, seed=7))
    known = classes[np.isfinite(classes)]
    assert np.mean(known[1:] == known[:-1]) > 0.8


@pytest.mark.parametrize("num", [0, 1, TREND_BARS, TREND_BARS + 1, 30])
def test_too_few_bars_have_no_regime(num: int) -> None:
    trend, volatility = regime_features(walk(num), one_run(num))
    assert len(trend) == len(volatility) == num
    assert np.isnan(trend).all()
    assert np.isnan(RegimeRule(1.0, 0.001).classify(trend, volatility)).all()


def test_a_rule_needs_enough_bars_and_says_so() -> None:
    trend, volatility = regime_features(walk(30 + FEWEST_BARS - 1), one_run(30 + FEWEST_BARS - 1))
    with pytest.raises(
        DataValidationError, match=f"needs {FEWEST_BARS} bars .* one has {FEWEST_BARS - 1}; start earlier"
    ):
        RegimeRule.fit(trend, volatility)


def test_a_price_that_never_moves_has_no_rule() -> None:
    trend, volatility = regime_features(np.full(500, 1.25), one_run(500))
    with pytest.raises(DataValidationError, match="one has 0"):
        RegimeRule.fit(trend, volatility)


def test_a_rule_survives_its_own_json() -> None:
    rule, _ = classified(walk(4000))
    assert RegimeRule.from_json(rule.to_json()) == rule
