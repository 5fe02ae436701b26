"""Loss differentials: which test suits which baseline, and what the test could have found."""

from collections.abc import Callable

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.interfaces.differentials import EFFECTS, Differentials, power_before
from ml_workbench_service.market.significance import MeanError, power_of, qlike

HOUR_MS = 3_600_000
ALPHA = 0.02
NUM = 4000


def prices(labels: Floats, said: Floats, *, is_nested: bool = True) -> Differentials:
    """Beside no change."""
    return Differentials.of_squares(
        "random_walk", labels, model=said, baseline=np.zeros(len(labels)), moments_N=HOUR_MS * np.arange(len(labels)),
        horizon=1, is_nested=is_nested,
    )  # fmt: skip


def claimed(found: Differentials) -> float:
    """The power that the comparison claims."""
    comparison = found.comparison()
    assert comparison.expected_gain is not None
    assert comparison.gain_error is not None
    test = comparison.decisive
    error = MeanError(comparison.gain_error, 1.5 * test.num_moments / (test.lag + 1))
    return power_of(comparison.expected_gain, error, alpha=ALPHA)


def normal(chance: np.random.Generator, num: int) -> Floats:
    return chance.standard_normal(num)


def heavy(chance: np.random.Generator, num: int) -> Floats:
    """t3, whose fourth moment is infinite."""
    return chance.standard_t(3, num) / np.sqrt(3)


def storms(chance: np.random.Generator, num: int) -> Floats:
    """A GARCH(1,1) with t5 shocks."""
    shocks, values, variance = chance.standard_t(5, num) / np.sqrt(5 / 3), np.empty(num), 1.0
    for row in range(num):
        values[row] = np.sqrt(variance) * shocks[row]
        variance = 0.02 + 0.13 * values[row] ** 2 + 0.85 * variance
    return values


@pytest.mark.parametrize("noise", [normal, heavy, storms])
def test_claimed_power_is_how_often_the_effect_is_found(noise: Callable[[np.random.Generator, int], Floats]) -> None:
    """Models without skill claim it; models with an R² of 0.5 % of a known form have it. Within four errors."""
    r2, num_series, chance = EFFECTS["squared_error"][1], 100, np.random.default_rng(11)
    claims, num_found = [], 0
    for _ in range(num_series):
        rest, signal, other = noise(chance, NUM), chance.standard_normal(NUM), chance.standard_normal(NUM)
        size = float(np.sqrt(np.mean(rest**2)))
        claims.append(claimed(prices(rest, 0.1 * size * other)))
        labels = np.sqrt(1 - r2) * rest + np.sqrt(r2) * size * signal
        p_value = prices(labels, 0.1 * size * signal).comparison().decisive.p_value
        num_found += p_value is not None and p_value <= ALPHA
    rate, claim = num_found / num_series, float(np.mean(claims))
    assert abs(rate - claim) <= 4 * np.sqrt(0.25 / num_series)


def test_storms_that_the_forecast_shares_cost_power() -> None:
    chance = np.random.default_rng(3)
    size = np.exp(0.9 * chance.standard_normal(NUM))
    labels = size * chance.standard_normal(NUM)
    alike, apart = (claimed(prices(labels, each * chance.standard_normal(NUM))) for each in (size, np.ones(NUM)))
    assert alike < apart - 0.1


def test_how_loud_a_model_is_changes_no_claim() -> None:
    chance = np.random.default_rng(4)
    labels, said = chance.standard_normal((2, NUM))
    nested = [claimed(prices(labels, strength * said)) for strength in (1e-4, 1e-2, 1.0)]
    assert nested == pytest.approx([nested[0]] * 3, abs=0.02)
    quiet = [claimed(prices(labels, strength * said, is_nested=False)) for strength in (1e-4, 1e-2)]
    assert quiet == pytest.approx([quiet[0]] * 2, abs=0.02)
    assert claimed(prices(labels, said, is_nested=False)) < quiet[0] < nested[0]


def test_a_mean_of_two_baselines_is_no_skill_at_volatility() -> None:
    """GARCH: at 2.5 % no more than Diebold and Mariano's test allows, where Clark and West's find one in ten."""
    chance, num_found, num_encompassing = np.random.default_rng(5), 0, 0
    for _ in range(60):
        moves = storms(chance, 1500)
        squares = np.concatenate([[0.0], np.cumsum(moves**2)])
        labels, moments = np.abs(moves[100:]), HOUR_MS * np.arange(1400)
        short, long = (np.sqrt((squares[100:-1] - squares[100 - bars : -1 - bars]) / bars) for bars in (8, 60))
        ratios = [each * np.mean(labels / np.maximum(each, 0.05)) for each in (short, long)]
        blend = (ratios[0] + ratios[1]) / 2
        p_values = [
            Differentials.of_volatilities(
                "either", labels, model=blend, baseline=each, moments_N=moments, horizon=1
            ).comparison().decisive.p_value or 0.0
            for each in (*ratios, blend * (1 + 1e-3 * chance.standard_normal(1400)))
        ]  # fmt: skip
        num_found += max(p_values) <= 0.025
        num_encompassing += max(p_values[:2]) <= 0.025
    assert num_found <= 5
    assert num_encompassing >= num_found, "the blend itself must be among the baselines"


def test_a_volatility_is_compared_by_a_loss_that_noise_cannot_turn_around() -> None:
    """Of all constants the mean has the least QLIKE, and the test's gains are its differences."""
    labels = np.abs(np.random.default_rng(6).standard_normal(3000))
    losses = [float(qlike(labels, np.full(3000, each), floor=1e-9).mean()) for each in (0.6, labels.mean(), 1.0)]
    assert losses[1] < min(losses[0], losses[2])
    found = Differentials.of_volatilities(
        "har", labels, model=np.full(3000, labels.mean()), baseline=np.full(3000, 1.0), moments_N=np.arange(3000),
        horizon=1,
    )  # fmt: skip
    assert found.gain_T.mean() == pytest.approx(losses[2] - losses[1], rel=1e-6)
    assert found.comparison().clark_west is None
    assert (labels == 0).sum() == 0
    silent = Differentials.of_volatilities(
        "har", np.zeros(50), model=np.full(50, 0.0), baseline=np.full(50, 1.0), moments_N=np.arange(50), horizon=1
    )
    assert np.isfinite(silent.model_T).all()


@pytest.mark.parametrize("is_nested", [True, False])
def test_power_before_the_data_is_what_normal_data_claim(is_nested: bool) -> None:
    """With the few degrees of freedom of the test's own lags a little less."""
    chance = np.random.default_rng(7)
    labels, said = chance.standard_normal((2, NUM))
    found = claimed(prices(labels, 1e-3 * said, is_nested=is_nested))
    before = power_before("squared_error", num_moments=NUM, horizon=1, years=1.0, alpha=ALPHA, is_nested=is_nested)
    assert found == pytest.approx(before, abs=0.08)


def test_a_volatilitys_power_before_the_data_is_what_normal_data_claim() -> None:
    chance = np.random.default_rng(9)
    labels, said = np.abs(chance.standard_normal(NUM)), np.exp(1e-3 * chance.standard_normal(NUM)) * 0.8
    found = Differentials.of_volatilities(
        "blend", labels, model=said, baseline=np.full(NUM, 0.8), moments_N=np.arange(NUM), horizon=1
    )
    before = power_before("qlike", num_moments=NUM, horizon=1, years=1.0, alpha=ALPHA)
    assert claimed(found) == pytest.approx(before, abs=0.05)
    few = power_before("qlike", num_moments=NUM / 8, horizon=1, years=1.0, alpha=ALPHA)
    part = found.between(0, NUM // 8)
    assert claimed(part) == pytest.approx(few, abs=0.15)
    assert few < 0.8 < before
    assert power_before("net_return", num_moments=1, horizon=1, years=4.0, alpha=ALPHA) == pytest.approx(0.83, abs=0.01)
