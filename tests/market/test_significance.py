"""The tests of skill against written-out loops, published critical values, and series without any skill."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.market.significance import (
    FEWEST_MOMENTS,
    clark_west_gains,
    crps,
    hac_mean,
    lags,
    long_run_variance,
    mean_by_moment,
    pinball,
    power,
    scaled_errors,
    terciles,
    trailing_move,
    wilson,
)
from tests.market.paired_tests import clark_west, diebold_mariano

pytestmark = pytest.mark.processor

ALPHA = 0.025


def storms(num: int, num_series: int, *, num_symbols: int = 1, seed: int = 0) -> Floats:
    """(num, series, symbols) GARCH(1,1) returns with t(5) shocks, correlated 0.6 between symbols."""
    chance = np.random.default_rng(seed)
    shape = (num + 200, num_series)
    shocks = chance.standard_t(5, (*shape, num_symbols)) * math.sqrt(0.6)
    if num_symbols > 1:
        shared = chance.standard_t(5, (*shape, 1)) * math.sqrt(0.6)
        shocks = math.sqrt(0.6) * shared + math.sqrt(0.4) * shocks
    returns, variance = np.empty_like(shocks), np.ones((num_series, num_symbols))
    for row in range(len(shocks)):
        returns[row] = np.sqrt(variance) * shocks[row]
        variance = 0.03 + 0.07 * returns[row] ** 2 + 0.9 * variance
    return returns[200:]


def test_the_variance_is_newey_and_wests_by_a_written_out_double_loop() -> None:
    values = np.cumsum(np.random.default_rng(0).standard_normal(60))
    centred, lag = values - values.mean(), 7
    total = 0.0
    for first in range(60):
        for second in range(60):
            weight = max(0.0, 1 - abs(first - second) / (lag + 1))
            total += weight * centred[first] * centred[second]
    assert long_run_variance(values, lag) == pytest.approx(total / 60, rel=1e-12)
    assert long_run_variance(values, 0) == pytest.approx(values.var(), rel=1e-12)


def test_without_autocorrelation_the_test_is_nearly_students() -> None:
    values = np.random.default_rng(1).standard_normal(4000) + 0.02
    found, plain = hac_mean(values), stats.ttest_1samp(values, 0, alternative="greater")
    assert found.p_value == pytest.approx(plain.pvalue, abs=0.03)
    assert found.num_moments == 4000


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2])
def test_the_reference_has_the_tails_of_fixed_b(share: float) -> None:
    """Kiefer and Vogelsang (2005), table 1: Bartlett's 97.5 % quantile as a polynomial in b = lags / T."""
    published = 1.96 + 2.9694 * share + 0.416 * share**2 - 0.5324 * share**3
    ours = stats.t.ppf(0.975, 1.5 / share) / math.sqrt(1 - share)
    assert ours == pytest.approx(published, rel=0.03)
    num = 1000
    values = np.random.default_rng(3).standard_normal(num)
    lag = lags(num, 1)
    found = hac_mean(values)
    b = (lag + 1) / num
    statistic = values.mean() / math.sqrt(long_run_variance(values, lag) / (1 - b) / num)
    assert found.statistic == pytest.approx(statistic)
    assert found.p_value == pytest.approx(stats.t.sf(statistic, 1.5 / b))


def test_lags_cover_the_overlap_and_leave_moments_over() -> None:
    assert lags(2000, 1) == math.ceil(1.3 * math.sqrt(2000)) == 59
    assert lags(2000, 100) == 300
    assert lags(100, 60) == 59  # half the moments would be 50, the horizon needs 59
    assert lags(5, 1) == 2
    assert lags(3, 24) == 2
    assert lags(1, 1) == 0


@pytest.mark.parametrize("horizon", [1, 5])
def test_a_skill_less_forecast_in_storms_passes_about_as_often_as_it_may(horizon: int) -> None:
    num, num_series = 500, 400
    returns = storms(num + horizon, num_series)[:, :, 0]
    chance, passed = np.random.default_rng(9), 0
    for series in range(num_series):
        labels = np.convolve(returns[:, series], np.ones(horizon), "valid")[1 : num + 1]
        forecasts = np.convolve(chance.standard_normal(num + 9), np.ones(10), "valid") * 0.02  # slow, as most are
        found = clark_west(labels, baseline=np.zeros(num), model=forecasts, moments_N=np.arange(num), horizon=horizon)
        assert found.p_value is not None
        passed += found.p_value <= ALPHA
    assert 0.01 <= passed / num_series <= 0.04


def test_symbols_that_move_together_are_one_observation() -> None:
    values = np.random.default_rng(2).standard_normal(300) + 0.1
    moments = np.arange(300)
    alone = hac_mean(values)
    twins = diebold_mariano(np.tile(values, 5), np.zeros(1500), moments_N=np.tile(moments, 5), horizon=1)
    assert twins.num_moments == 300
    assert twins.p_value == pytest.approx(alone.p_value)
    counted_apart = hac_mean(np.repeat(values, 5))
    assert counted_apart.num_moments == 1500


def test_moments_are_averaged_in_their_order_however_rows_lie() -> None:
    assert mean_by_moment(np.array([1.0, 5.0, 3.0, 7.0]), np.array([20, 10, 20, 30])).tolist() == [5.0, 2.0, 7.0]


def test_clark_west_finds_what_diebold_mariano_drowns_in_noise() -> None:
    chance = np.random.default_rng(4)
    known, moments = 0.1 * chance.standard_normal(3000), np.arange(3000)
    labels = known + chance.standard_normal(3000)
    loud = known + 0.2 * chance.standard_normal(3000)
    nested = clark_west(labels, baseline=np.zeros(3000), model=loud, moments_N=moments, horizon=1)
    plain = diebold_mariano(labels**2, (labels - loud) ** 2, moments_N=moments, horizon=1)
    assert nested.p_value is not None
    assert plain.p_value is not None
    assert nested.p_value < ALPHA < 0.5 < plain.p_value


def test_the_gain_is_the_difference_of_squares_freed_of_noise() -> None:
    chance = np.random.default_rng(5)
    labels, baseline, model = chance.standard_normal((3, 50, 4))
    wanted = [
        sum(
            (y - b) ** 2 - ((y - m) ** 2 - (b - m) ** 2)
            for y, b, m in zip(labels[row], baseline[row], model[row], strict=True)
        )
        for row in range(50)
    ]
    np.testing.assert_allclose(clark_west_gains(labels, baseline=baseline, model=model), wanted)
    np.testing.assert_allclose(
        clark_west_gains(labels[:, 0], baseline=baseline[:, 0], model=model[:, 0]),
        2 * (labels[:, 0] - baseline[:, 0]) * (model[:, 0] - baseline[:, 0]),
    )


def test_nothing_that_varies_and_too_few_moments_have_no_p_value() -> None:
    assert hac_mean(np.zeros(100)).p_value is None
    assert hac_mean(np.full(100, 0.3)).p_value is None
    assert hac_mean(np.arange(FEWEST_MOMENTS - 1.0)).p_value is None
    assert hac_mean(np.arange(float(FEWEST_MOMENTS))).p_value is not None
    empty = hac_mean(np.zeros(0), horizon=5)
    assert (empty.num_moments, empty.lag, empty.p_value) == (0, 0, None)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(10, 400), st.integers(1, 48), st.integers(0, 10_000))
def test_a_p_value_is_a_probability_and_turns_with_the_sign(num: int, horizon: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_t(3, num)
    one, other = hac_mean(values, horizon=horizon), hac_mean(-values, horizon=horizon)
    assert one.lag >= min(horizon - 1, num - 1)
    assert one.p_value is not None
    assert other.p_value is not None
    assert 0 <= one.p_value <= 1
    assert one.p_value + other.p_value == pytest.approx(1)
    scaled = hac_mean(values * 1e-9, horizon=horizon)
    assert scaled.p_value == pytest.approx(one.p_value)


def test_power_is_what_a_simulation_finds() -> None:
    num, r2, found = 800, 0.01, 0
    chance = np.random.default_rng(6)
    for _ in range(400):
        forecast = chance.standard_normal(num) * math.sqrt(r2)
        labels = forecast + chance.standard_normal(num) * math.sqrt(1 - r2)
        test = clark_west(labels, baseline=np.zeros(num), model=forecast, moments_N=np.arange(num), horizon=1)
        found += test.p_value is not None and test.p_value <= ALPHA
    assert found / 400 == pytest.approx(power(num, alpha=ALPHA, r2=r2), abs=0.05)


def test_power_needs_some_1600_moments_and_positions_need_more() -> None:
    assert power(1550, alpha=ALPHA, r2=0.005) < 0.8 < power(1575, alpha=ALPHA, r2=0.005)
    assert power(1600, alpha=ALPHA / 5, r2=0.005) < 0.8
    assert power(1600, alpha=ALPHA, r2=0.005, by_sign=True) < 0.65
    assert power(0, alpha=ALPHA, r2=0.005) == 0.0


@pytest.mark.parametrize(("hits", "num"), [(0, 10), (7, 10), (10, 10), (520, 1000)])
def test_wilsons_interval_is_scipys(hits: int, num: int) -> None:
    wanted = stats.binomtest(hits, num).proportion_ci(method="wilson")
    assert wilson(hits / num, num) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert wilson(0.5, 0) == (0.0, 1.0)


def test_crps_is_the_integral_of_the_squared_distance_of_distributions() -> None:
    chance = np.random.default_rng(7)
    grid = np.sort(chance.standard_t(4, 41))
    labels, centers, scales = chance.standard_normal(6), chance.standard_normal(6), chance.uniform(0.2, 3, 6)
    axis = np.linspace(-60, 60, 600_001)
    found = crps(labels, centers, scales_N=scales, grid_Q=grid)
    for row in range(6):
        distribution = np.searchsorted(centers[row] + scales[row] * grid, axis, side="right") / 41
        integral = np.trapezoid((distribution - (axis >= labels[row])) ** 2, axis)
        assert found[row] == pytest.approx(integral, abs=1e-3)


def test_crps_of_a_point_is_the_absolute_error_and_a_true_distribution_scores_best() -> None:
    labels = np.random.default_rng(8).standard_normal(4000)
    zeros, ones = np.zeros(4000), np.ones(4000)
    np.testing.assert_allclose(crps(labels, zeros, scales_N=ones, grid_Q=np.zeros(1)), np.abs(labels))
    grid = stats.norm.ppf((np.arange(500) + 0.5) / 500)
    scores = {scale: crps(labels, zeros, scales_N=scale * ones, grid_Q=grid).mean() for scale in (0.5, 1.0, 2.0)}
    assert min(scores, key=lambda scale: scores[scale]) == 1.0
    assert scores[1.0] == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)


def test_pinball_is_the_written_out_loss() -> None:
    labels, forecasts, quantiles = np.array([1.0, -2.0]), np.array([[0.0, 2.0], [-1.0, 0.0]]), (0.1, 0.9)
    assert pinball(labels, forecasts, quantiles=quantiles).tolist() == pytest.approx(
        [(0.1 * 1 + 0.1 * 1) / 2, (0.9 * 1 + 0.1 * 2) / 2]
    )


def test_scaled_errors_are_in_units_of_each_rows_own_naive_forecast() -> None:
    found = scaled_errors(np.array([1.0, -4.0]), naive_mae_N=np.array([2.0, 4.0]), naive_rmse_N=np.array([1.0, 2.0]))
    assert found == {"mase": pytest.approx(0.75), "rmsse": pytest.approx(math.sqrt((1 + 4) / 2))}
    nothing = scaled_errors(np.ones(2), naive_mae_N=np.array([1.0, 0.0]), naive_rmse_N=np.ones(2))
    assert nothing == {"mase": None, "rmsse": None}


def test_the_trailing_move_uses_nothing_later_and_waits_for_half_of_its_bars() -> None:
    close = np.exp(np.cumsum(np.random.default_rng(10).standard_normal(300) * 0.01))
    found = trailing_move(close)
    assert np.isnan(found[:24]).all()
    assert np.isfinite(found[24:]).all()
    moves = np.abs(np.diff(np.log(close)))
    assert found[200] == pytest.approx(moves[152:200].mean())
    other = close.copy()
    other[150:] *= np.exp(np.linspace(0, 3, 150))
    np.testing.assert_array_equal(trailing_move(other)[:150], found[:150])
    assert (trailing_move(other)[160:] > found[160:]).all()


def test_terciles_hold_a_third_each_and_leave_out_what_is_unknown() -> None:
    values = np.random.default_rng(11).permutation(np.arange(99.0))
    values = np.append(values, np.nan)
    found = terciles(values)
    assert [int((found == number).sum()) for number in (-1, 0, 1, 2)] == [1, 33, 33, 33]
    assert values[found == 0].max() < values[found == 1].min()
    assert terciles(np.full(3, np.nan)).tolist() == [-1, -1, -1]
