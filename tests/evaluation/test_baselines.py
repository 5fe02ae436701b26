"""Plain forecasts against scikit-learn and written-out arithmetic, and that none of them knows what comes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.contracts.market import Floats, Ints
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
from ml_workbench_service.market.calendar import HOUR_MS, is_open
from ml_workbench_service.market.costs import round_trip_cost
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile, deseasonalised, seasonal_volatility
from ml_workbench_service.market.significance import qlike
from ml_workbench_service.market.targets import ewma_volatility
from ml_workbench_service.reinforcement.policy_family import decision_rows, series_of
from ml_workbench_service.testing.synthetic import DEVIATION, START_MS, cut, problem, symbol_rows
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


def season_of(work: TrainingProblem, symbol: int = 0) -> tuple[Ints, SeasonalProfile, Floats, Floats]:
    """One symbol's rows: openings, its profile, its returns, and its labels."""
    windows = work.windows
    own = np.flatnonzero(windows.symbol_R == symbol)
    opened = windows.available_at_ms_R[own] - HOUR_MS
    returns = np.concatenate([[np.nan], np.diff(np.log(windows.close_R[own]))])
    known = windows.available_at_ms_R[own] <= windows.borders_ms["validation"]
    return opened, SeasonalProfile.fit(opened[known], returns[known], HOUR_MS), returns, windows.own_labels_RK[own, 0]


def alone(seed: int = 0, num: int = 6000) -> TrainingProblem:
    """One symbol in the FX week whose hours differ: in the first half of the day it moves four times as much."""
    hours = START_MS // HOUR_MS * HOUR_MS + HOUR_MS * np.arange(2 * num)
    opened = hours[is_open(hours)][:num]
    rows = stormy_rows(num=num, seed=seed)
    moves = np.concatenate([[0.0], np.diff(np.log(rows.close_N))]) * np.where(opened // HOUR_MS % 24 < 12, 2.0, 0.5)
    close, labels, label_known = 1.1 * np.exp(np.cumsum(moves)), np.full(num, np.nan), opened + HOUR_MS
    ahead = np.flatnonzero(opened[HORIZON:] - opened[:-HORIZON] == HORIZON * HOUR_MS)
    labels[ahead] = np.sqrt(moves[ahead + 1] ** 2 + moves[ahead + 2] ** 2)
    label_known[ahead] += HORIZON * HOUR_MS
    changed = replace(
        rows, close_N=close, labels_NK=labels[:, None], bar_volatility_N=ewma_volatility(close),
        available_at_ms_N=opened + HOUR_MS, label_available_at_ms_N=label_known,
    )  # fmt: skip
    return problem(cut(changed), f"volatility_{HORIZON}")


def losses(work: TrainingProblem, found: Mapping[str, Floats]) -> dict[str, float]:
    """Mean QLIKE over the test part."""
    labels = work.windows.own_labels_RK[work.windows.parts["test"], 0]
    return {name: float(np.mean(qlike(labels, each, floor=1e-9))) for name, each in found.items()}


def test_an_ewma_of_deseasonalised_returns_is_scaled_to_what_the_training_part_saw() -> None:
    work = alone()
    train, test = work.windows.parts["train"], work.windows.parts["test"]
    opened, profile, returns, labels = season_of(work)
    plain = seasonal_volatility(profile, opened, returns, horizon=HORIZON) * np.sqrt(HORIZON)
    known = train[np.isfinite(plain[train])]
    factor = np.mean(labels[known] / plain[known])
    np.testing.assert_allclose(forecasts(work, test)["seasonal_ewma"], factor * plain[test], rtol=1e-5)
    assert factor < 0.95


def test_an_hour_table_does_not_beat_the_seasonal_baselines() -> None:
    work = alone()
    windows, test, train = work.windows, work.windows.parts["test"], work.windows.parts["train"]
    hours = (windows.available_at_ms_R - HOUR_MS) // HOUR_MS % 24
    table = np.array([windows.own_labels_RK[train[hours[train] == hour], 0].mean() for hour in range(24)])
    plain = windows.bar_volatility_R * np.sqrt(HORIZON)
    factor = np.nanmean(windows.own_labels_RK[train, 0] / plain[train])
    found = losses(work, {**forecasts(work, test), "table": table[hours[test]], "ewma": factor * plain[test]})
    for name in ("seasonal_ewma", "seasonal_har", "seasonal_blend"):
        assert found[name] < min(found["table"], found["ewma"]), name
    assert found["seasonal_blend"] < 1.01 * min(found["seasonal_ewma"], found["seasonal_har"])


def test_where_no_volatility_is_known_the_training_mean_stands_in(stormy: TrainingProblem) -> None:
    windows = stormy.windows
    first = windows.symbol_R == 1
    close = windows.close_R.copy()
    close[first] = np.nan
    blind = replace(stormy, windows=replace(windows, close_R=close))
    train, test = windows.parts["train"], windows.parts["test"]
    own = test[windows.symbol_R[test] == 1]
    mean = windows.own_labels_RK[train[windows.symbol_R[train] == 1], 0].mean()
    np.testing.assert_allclose(forecasts(blind, own)["seasonal_ewma"], mean, rtol=1e-5)


def test_har_regresses_on_the_deseasonalised_bar_day_week_and_month() -> None:
    work = alone(seed=3)
    windows, test, train = work.windows, work.windows.parts["test"], work.windows.parts["train"]
    assert bars_per_day(windows) == 24
    opened, profile, returns, labels = season_of(work)
    moves = deseasonalised(profile, opened, returns)
    size = profile.coming_factor(opened, HORIZON) * np.sqrt(HORIZON)
    spans = [1, HORIZON, 24, 120, 528]
    x = np.column_stack([trailing(moves, bars) for bars in spans])
    x = np.column_stack([np.ones(len(x)), np.where(np.isfinite(x), x, np.nanmean(x[train], axis=0))])
    own = labels[train] / size[train]
    weights = np.linalg.lstsq(x[train], own, rcond=None)[0]
    plain = np.clip(x @ weights, np.quantile(own, 0.001), own.max()) * size
    wanted = plain * np.mean(labels[train] / plain[train])
    np.testing.assert_allclose(forecasts(work, test)["seasonal_har"], wanted[test], rtol=1e-4)


def test_the_blend_is_the_mean_of_both(stormy: TrainingProblem) -> None:
    test = stormy.windows.parts["test"]
    found = forecasts(stormy, test)
    assert list(found) == ["seasonal_ewma", "seasonal_har", "seasonal_blend", "linear"]
    np.testing.assert_allclose(found["seasonal_blend"], (found["seasonal_ewma"] + found["seasonal_har"]) / 2)
    only = forecasts(stormy, test, without=("seasonal_ewma", "seasonal_har", "linear"))
    np.testing.assert_array_equal(only["seasonal_blend"], found["seasonal_blend"])


def trailing(moves: Floats, bars: int) -> Floats:
    """Root mean square of the last `bars` values that are there."""
    return np.array([
        np.sqrt(np.nanmean(part**2)) if np.isfinite(part := moves[max(0, row + 1 - bars) : row + 1]).any() else np.nan
        for row in range(len(moves))
    ])  # fmt: skip


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
