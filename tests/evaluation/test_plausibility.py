"""Bands of plausibility: what exceeds them is a mistake, what does not is never called one."""

import numpy as np
import pytest

from ml_workbench_service.contracts.evaluation import BacktestReport
from ml_workbench_service.evaluation import plausibility
from ml_workbench_service.evaluation.plausibility import band, excesses
from ml_workbench_service.learning.interfaces.differentials import Differentials
from tests.evaluation.test_verdict import earned


@pytest.mark.parametrize(
    ("figure", "timeframe", "horizon", "limit"),
    [
        ("r2", "1m", 1, 0.01), ("r2", "15m", 1, 0.01), ("r2", "30m", 1, 0.02), ("r2", "1h", 1, 0.02),
        ("r2", "4h", 3, 0.03), ("r2", "1d", 1, 0.04), ("information_coefficient", "1h", 1, 0.14),
        ("direction_accuracy", "4h", 1, 0.565), ("volatility_gain", "1h", 1, 0.15), ("volatility_gain", "1h", 4, 0.25),
        ("volatility_gain", "5m", 12, 0.15), ("net_sharpe", "1d", 1, 3.0), ("net_sharpe", "5m", 1, 4.0),
    ],
)  # fmt: skip
def test_each_figure_has_a_band_by_timeframe(
    figure: plausibility.Figure, timeframe: str, horizon: int, limit: float
) -> None:
    assert band(figure, timeframe, horizon=horizon) == limit


def bounds(r2: float, *, num: int = 20_000, seed: int = 0) -> dict[str, float]:
    """Of a forecast that explains this share."""
    known, rest = np.random.default_rng(seed).standard_normal((2, num))
    labels, forecasts, moments = np.sqrt(r2) * known + np.sqrt(1 - r2) * rest, np.sqrt(r2) * known, np.arange(num)
    walk = Differentials.of_squares(
        "random_walk", labels, model=forecasts, baseline=np.zeros(num), moments_N=moments, horizon=1, is_nested=True
    )
    return plausibility.of_prices(labels, forecasts, moments, [walk], horizon=1)


def test_the_lower_bound_lies_below_the_truth_in_39_of_40_series() -> None:
    found = [bounds(0.02, num=4000, seed=seed) for seed in range(80)]
    for name, truth in (("r2", 0.02), ("information_coefficient", 0.02**0.5)):
        below = sum(each[name] <= truth for each in found)
        assert below >= 80 - 6, name  # of 80 at 2.5 % six above: once in 70 times
        assert np.mean([each[name] for each in found]) > truth - 3.5 * np.std([each[name] for each in found])


def test_five_percent_of_an_hour_is_too_good_and_one_percent_is_not() -> None:
    found = excesses(bounds(0.05), None, timeframe="1h", horizon=1)
    assert {each.figure for each in found} == {"r2", "information_coefficient"}
    assert "exceeds 2.0%" in next(each for each in found if each.figure == "r2").sentence
    assert excesses(bounds(0.01), None, timeframe="1h", horizon=1) == []
    assert excesses(bounds(0.035), None, timeframe="1d", horizon=1) == []


@pytest.mark.parametrize(("sharpe", "num_days", "is_beyond"), [(6.0, 522, True), (5.0, 522, False), (6.0, 100, False)])
def test_a_net_sharpe_ratio_needs_years_to_be_too_good(sharpe: float, num_days: int, is_beyond: bool) -> None:
    """Two years take 1.39 off, under half a year 3.2."""
    backtest: BacktestReport = earned(sharpe=sharpe, num_days=num_days)
    assert bool(excesses({}, backtest, timeframe="1h", horizon=1)) == is_beyond


def test_sides_count_only_where_one_was_stated_and_one_came() -> None:
    stated, came = np.array([1, -1, 0, 1, 1] * 400), np.array([1, -1, 1, 0, -1] * 400)
    found = plausibility.of_sides(stated, came, np.arange(2000), horizon=1)["direction_accuracy"]
    assert found == pytest.approx(2 / 3 - 1.96 * np.sqrt(2 / 9 / 1200), abs=0.001)
    assert plausibility.of_sides(np.zeros(5, dtype=np.int64), came[:5], np.arange(5), horizon=1) == {}


def test_a_volatility_is_measured_beside_the_blend() -> None:
    chance = np.random.default_rng(1)
    truth = np.exp(0.8 * chance.standard_normal(8000))
    labels, moments = truth * np.abs(chance.standard_normal(8000)), np.arange(8000)
    blend = Differentials.of_volatilities(
        "seasonal_blend", labels, model=0.8 * truth, baseline=np.full(8000, labels.mean()), moments_N=moments, horizon=1
    )
    found = plausibility.of_volatilities([blend], blend="seasonal_blend")
    assert 0.15 < found["volatility_gain"] < 1 - blend.model_T.mean() / blend.baseline_T.mean()
    assert excesses(found, None, timeframe="1h", horizon=1)
    assert plausibility.of_volatilities([], blend="seasonal_blend") == {}
