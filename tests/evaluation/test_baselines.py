"""Plain forecasts against scikit-learn and written-out arithmetic, and that none of them knows what comes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.evaluation import baselines
from ml_workbench_service.evaluation.baselines import (
    bars_per_day,
    forecasts,
    left_out,
    linear_positions,
    naive_errors,
    realised_volatility,
)
from ml_workbench_service.evaluation.ridge import Ridge
from ml_workbench_service.learning.data.windows import SymbolRows, Windows
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.costs import round_trip_cost
from ml_workbench_service.market.targets import ewma_volatility
from ml_workbench_service.reinforcement.policy_family import decision_rows, series_of
from ml_workbench_service.testing.synthetic import DEVIATION, cut, problem, symbol_rows
from tests.reinforcement.policies import market_of

pytestmark = pytest.mark.processor

HORIZON = 2


def stormy_rows(symbol: str = "EUR/USD", *, num: int = 3000, seed: int = 0) -> SymbolRows:
    """Rows whose volatility over the next two bars is to be forecast: a GARCH(1,1)."""
    chance = np.random.default_rng(seed)
    returns, variance = np.zeros(num), 1.0
    for row in range(1, num):
        returns[row] = np.sqrt(variance) * chance.standard_normal()
        variance = 0.02 + 0.1 * returns[row] ** 2 + 0.88 * variance
    rows = symbol_rows(symbol, num=num, seed=seed, horizon=HORIZON)
    close = 1.1 * np.exp(DEVIATION * np.cumsum(returns))
    labels = np.full(num, np.nan)
    squares = np.diff(np.log(close)) ** 2
    labels[:-HORIZON] = np.sqrt(squares[:-1] + squares[1:])
    return replace(
        rows, close_N=close, labels_NK=labels[:, None], bar_volatility_N=ewma_volatility(close),
        x_NF=np.column_stack([rows.x_NF[:, :2], close]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def stormy() -> TrainingProblem:
    return problem(cut(stormy_rows(), stormy_rows("USD/JPY", seed=1)), f"volatility_{HORIZON}")


def without_the_future(windows: Windows, after: str) -> Windows:
    """The same with everything after a border made up."""
    later = windows.available_at_ms_R > windows.borders_ms[after]
    chance = np.random.default_rng(99)

    def altered(values: Any) -> Any:
        changed = values.copy()
        changed[later] = np.abs(chance.standard_normal(changed[later].shape)) * 3
        return changed

    names = ("rows_RF", "labels_RK", "own_labels_RK", "close_R", "bar_volatility_R")
    return replace(windows, **{name: altered(getattr(windows, name)) for name in names})


def test_a_price_has_no_change_each_symbols_mean_and_a_regression() -> None:
    windows = cut(symbol_rows(num=900), symbol_rows("USD/JPY", num=900, seed=1, deviation=0.01))
    work, test = problem(windows), windows.parts["test"]
    found = forecasts(work, test)
    assert list(found) == ["random_walk", "drift", "linear"]
    assert not found["random_walk"].any()
    train = windows.parts["train"]
    for number in (0, 1):
        mean = windows.own_labels_RK[train[windows.symbol_R[train] == number], 0].mean()
        np.testing.assert_allclose(found["drift"][windows.symbol_R[test] == number], mean, rtol=1e-5)
    np.testing.assert_allclose(
        found["linear"],
        Ridge.fit(windows, windows.labels_RK[:, 0].astype(float)).forecasts(test) * windows.label_scale_RK[test, 0],
    )
    assert list(forecasts(work, test, without=("drift", "linear"))) == ["random_walk"]


def test_an_ewma_is_rescaled_to_what_the_training_part_saw(stormy: TrainingProblem) -> None:
    windows, test = stormy.windows, stormy.windows.parts["test"]
    train = windows.parts["train"]
    raw = windows.bar_volatility_R * np.sqrt(HORIZON) / windows.label_scale_RK[:, 0]
    labels = windows.labels_RK[:, 0].astype(float)
    known = train[np.isfinite(raw[train])]
    ours = float(np.linalg.lstsq(raw[known, None], labels[known], rcond=None)[0][0])
    found = forecasts(stormy, test)["ewma"]
    np.testing.assert_allclose(found, ours * raw[test] * windows.label_scale_RK[test, 0])
    assert ours < 0.95
    own = windows.own_labels_RK[test, 0]
    assert np.mean((own - found) ** 2) < np.mean((own - windows.bar_volatility_R[test] * np.sqrt(HORIZON)) ** 2)


def test_where_no_volatility_is_known_the_training_mean_stands_in(stormy: TrainingProblem) -> None:
    windows = replace(stormy.windows, bar_volatility_R=np.full_like(stormy.windows.bar_volatility_R, np.nan))
    train, test = windows.parts["train"], windows.parts["test"]
    own = test[windows.symbol_R[test] == 1]
    mean = windows.own_labels_RK[train[windows.symbol_R[train] == 1], 0].mean()
    np.testing.assert_allclose(forecasts(replace(stormy, windows=windows), own)["ewma"], mean, rtol=1e-5)


def test_har_regresses_on_the_last_bar_day_week_and_month(stormy: TrainingProblem) -> None:
    windows, test = stormy.windows, stormy.windows.parts["test"]
    assert bars_per_day(windows) == 24
    found = forecasts(stormy, test)["har"]
    own, train = windows.own_labels_RK[:, 0], windows.parts["train"]
    spans = [1, HORIZON, 24, 120, 528]
    x = np.column_stack([realised_volatility(windows, bars) for bars in spans]) / windows.label_scale_RK[:, :1]
    labels = windows.labels_RK[:, 0].astype(float)
    full = train[np.isfinite(x[train]).all(axis=1)]
    weights = np.linalg.lstsq(np.column_stack([np.ones(len(full)), x[full]]), labels[full], rcond=None)[0]
    wanted = np.column_stack([np.ones(len(test)), x[test]]) @ weights * windows.label_scale_RK[test, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    mse = {name: float(np.mean((own[test] - each) ** 2)) for name, each in forecasts(stormy, test).items()}
    constant = float(np.mean((own[test] - own[train].mean()) ** 2))
    assert mse["har"] < 0.97 * constant


def test_ewma_and_har_together_are_one_regression(stormy: TrainingProblem) -> None:
    windows, test, train = stormy.windows, stormy.windows.parts["test"], stormy.windows.parts["train"]
    spans = [realised_volatility(windows, bars) for bars in (1, HORIZON, 24, 120, 528)]
    x = np.column_stack([*spans, windows.bar_volatility_R]) / windows.label_scale_RK[:, :1]
    x = np.where(np.isfinite(x), x, np.nanmean(x[train], axis=0))
    labels = windows.labels_RK[train, 0].astype(float)
    weights = np.linalg.lstsq(np.column_stack([np.ones(len(train)), x[train]]), labels, rcond=None)[0]
    wanted = np.column_stack([np.ones(len(test)), x[test]]) @ weights * windows.label_scale_RK[test, 0]
    found = forecasts(stormy, test)
    np.testing.assert_allclose(found["ewma_har"], wanted, rtol=1e-6)
    own = windows.own_labels_RK[test, 0]
    mse = {name: float(np.mean((own - each) ** 2)) for name, each in found.items()}
    assert mse["ewma_har"] < 1.01 * min(mse["ewma"], mse["har"])


def test_realised_volatility_is_each_symbols_own_and_causal(stormy: TrainingProblem) -> None:
    windows = stormy.windows
    found = realised_volatility(windows, 5)
    second = np.flatnonzero(windows.symbol_R == 1)
    assert np.isnan(found[second[0]])
    moves = np.diff(np.log(windows.close_R[second]))
    assert found[second[50]] == pytest.approx(np.sqrt(np.mean(moves[45:50] ** 2)))
    np.testing.assert_array_equal(
        found[windows.available_at_ms_R <= windows.borders_ms["test"]],
        realised_volatility(without_the_future(windows, "test"), 5)[
            windows.available_at_ms_R <= windows.borders_ms["test"]
        ],
    )


@pytest.mark.parametrize("kind", ["price", "volatility"])
def test_what_comes_after_the_validation_part_changes_no_forecast_of_it(kind: str, stormy: TrainingProblem) -> None:
    work = stormy if kind == "volatility" else problem(cut(symbol_rows(num=900)))
    windows = work.windows
    blind = replace(work, windows=without_the_future(windows, "calibration"))
    stop = windows.parts["validation"]
    before, after = forecasts(work, stop), forecasts(blind, stop)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert any((before[name] != 0).any() for name in before)


def test_naive_errors_come_from_the_training_part_of_each_rows_symbol(stormy: TrainingProblem) -> None:
    windows = cut(symbol_rows(num=900), symbol_rows("USD/JPY", num=900, seed=1, deviation=0.01))
    test, train = windows.parts["test"], windows.parts["train"]
    mae, rmse = naive_errors(problem(windows), test)
    for number in (0, 1):
        own = windows.own_labels_RK[train[windows.symbol_R[train] == number], 0]
        assert set(mae[windows.symbol_R[test] == number]) == {np.abs(own).mean()}
        assert set(rmse[windows.symbol_R[test] == number]) == {np.sqrt(np.mean(own**2))}
    windows, train = stormy.windows, stormy.windows.parts["train"]
    first = train[windows.symbol_R[train] == 0]
    changes = windows.own_labels_RK[first, 0] - windows.own_labels_RK[first - HORIZON, 0]
    assert naive_errors(stormy, windows.parts["test"])[0][0] == pytest.approx(np.abs(changes).mean())


def test_a_linear_policy_moves_where_a_forecast_is_worth_the_round_trip() -> None:
    work = market_of(symbol_rows(num=900, r2=0.3), symbol_rows("USD/JPY", num=900, seed=1, r2=0.3))
    series = series_of(work)
    rows = decision_rows(series, work, "test")
    held = linear_positions(series, rows, windows=work.windows)
    assert set(held.tolist()) == {-1, 0, 1}
    earned = held * series.move_R[rows + series.delay]
    assert earned.mean() > 5 * earned.std() / np.sqrt(len(rows))
    dear = {symbol: each.model_copy(update={"spread_pips": 1000.0}) for symbol, each in work.costs.items()}
    expensive = series_of(replace(work, costs=dear))
    assert not linear_positions(expensive, rows, windows=work.windows).any()
    zone = 2 * series.unit_cost_R[rows + series.delay]
    assert zone[0] == pytest.approx(
        round_trip_cost(work.costs["EUR/USD"], "EUR/USD", float(series.price_R[rows[0] + 1]))
    )


def test_a_linear_policy_learns_nothing_from_later_parts() -> None:
    work = market_of(symbol_rows(num=900, r2=0.3))
    series, stop = series_of(work), decision_rows(series_of(work), work, "validation")
    blind = replace(work, windows=without_the_future(work.windows, "calibration"))
    np.testing.assert_array_equal(
        linear_positions(series, stop, windows=work.windows),
        linear_positions(series_of(blind), stop, windows=blind.windows),
    )


def test_a_linear_policy_learns_from_moves_that_are_settled_inside_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = symbol_rows(num=900, r2=0.3)
    unlabelled = replace(
        rows, labels_NK=np.empty((900, 0)), label_available_at_ms_N=rows.available_at_ms_N
    )  # as policies' are
    work = market_of(unlabelled)
    series, windows, seen = series_of(work), work.windows, []
    fit = Ridge.fit

    def watched(windows: Windows, labels_R: Floats) -> Ridge:
        seen.append(labels_R)
        return fit(windows, labels_R)

    monkeypatch.setattr(Ridge, "fit", watched)
    linear_positions(series, decision_rows(series, work, "test"), windows=windows)
    (learnt,) = (np.flatnonzero(np.isfinite(each)) for each in seen)
    wanted = np.concatenate([decision_rows(series, work, part) for part in ("train", "validation")])
    assert learnt.tolist() == wanted.tolist()
    assert (series.priced_at_ms_R[learnt[-1] + series.delay + 1]) <= windows.borders_ms["calibration"]


def test_the_family_linear_is_not_compared_with_itself_alone_or_as_an_ensemble() -> None:
    itself: dict[str, Any] = {"kind": "linear_forecaster"}
    assert left_out(itself) == left_out({"kind": "ensemble", "members": [itself, itself]}) == (baselines.LINEAR,)
    assert left_out({"kind": "recurrent_forecaster"}) == left_out({}) == ()
