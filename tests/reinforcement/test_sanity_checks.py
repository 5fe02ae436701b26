"""The sanity runs: the perfect policy is exact, cheating pays, chance does not, and a wrong reward is found."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import JobCancelled, TrainingError
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.market.backtest import backtest
from ml_workbench_service.reinforcement import sanity_checks as rl_sanity
from ml_workbench_service.reinforcement.environment import VectorTradingEnvironment
from ml_workbench_service.reinforcement.policy_family import Budget, decision_rows, series_of
from ml_workbench_service.reinforcement.sanity_checks import (
    Sanity,
    flipped,
    perfect_net,
    reward_difference,
    with_oracle,
)
from ml_workbench_service.testing.synthetic import Recorder, symbol_rows
from tests.market.series_for_tests import series_of as week_of
from tests.market.series_for_tests import window_ends
from tests.reinforcement.policies import market_of, policy_family


@pytest.mark.parametrize("fill", ["next_open", "next_close"])
def test_no_policy_earns_more_than_the_perfect_one(fill: Any) -> None:
    series = week_of(fill=fill, num_bars=80)
    rows = series.payable(window_ends(series))
    some = rows[np.isin(rows, np.r_[rows[:4], rows[10:13]])]  # two segments
    best = max(
        float(backtest(series, some, np.array(each), bars_per_year=1.0).net_N.sum())
        for each in product((-1, 0, 1), repeat=len(some))
    )
    assert perfect_net(series, some) == pytest.approx(best, abs=1e-12)


def test_whoever_knows_tomorrow_earns_and_who_trades_chance_does_not() -> None:
    family = policy_family("q_learning", bins=2)
    found = rl_sanity.run(family, market_of(num=1500), report=Recorder())
    assert len(found.oracle_shares) == len(found.flipped_gross) == rl_sanity.NUM_SEEDS
    assert min(found.oracle_shares) > 0.6
    assert len(set(found.flipped_gross)) > 10
    standard_error = found.metrics["sanity_flipped_standard_error"]
    assert abs(found.metrics["sanity_flipped_gross"]) < 4 * standard_error < 4e-4
    assert found.largest_difference < 1e-12
    plain = found.to_json()
    assert plain["oracle"]["passed"]
    assert plain["oracle"]["mean"] == pytest.approx(found.metrics["sanity_oracle_share"])
    assert plain["num_seeds"] == 20


def test_returns_that_a_feature_tells_do_not_pass_as_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl_sanity, "flipped", lambda problem, seed: problem)
    found = rl_sanity.run(policy_family("q_learning", bins=2), market_of(num=1500), report=Recorder(), num_seeds=5)
    assert found.warnings == ("sanity_flipped_failed",)


def test_nothing_of_the_test_part_is_looked_at() -> None:
    """Other prices, features and spreads after its border change no figure."""
    problem = market_of(num=700)
    windows = problem.windows
    late_R = windows.available_at_ms_R > windows.borders_ms["test"]
    to_open_R = windows.opened_ms_R > windows.borders_ms["test"]
    chance = np.random.default_rng(1)
    wild = replace(
        windows,
        open_R=np.where(to_open_R, windows.open_R * np.exp(0.1 * chance.standard_normal(len(late_R))), windows.open_R),
        close_R=np.where(late_R, windows.close_R * np.exp(0.1 * chance.standard_normal(len(late_R))), windows.close_R),
        rows_RF=np.where(late_R[:, None], np.float32(9.0), windows.rows_RF),
        spread_R=np.where(late_R, 0.01, windows.spread_R),
        spread_open_R=np.where(to_open_R, 0.01, windows.spread_open_R),
    )
    family = policy_family("q_learning", bins=2)
    found, again = (
        rl_sanity.run(family, replace(problem, windows=each), report=Recorder(), num_seeds=2)
        for each in (windows, wild)
    )
    assert found == again
    assert found.oracle_shares[0] != found.oracle_shares[1] or found.flipped_gross[0] != found.flipped_gross[1]


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_networks_pass_too(name: str) -> None:
    found = rl_sanity.run(policy_family(name), market_of(num=900), report=Recorder(), num_seeds=2)
    assert min(found.oracle_shares) > 0.5


def test_the_oracle_is_the_move_that_the_decision_earns() -> None:
    for fill in ("next_open", "next_close"):
        problem = replace(market_of(), fill=fill)  # type: ignore[arg-type]
        told = with_oracle(problem, policy_family("dqn"))
        series = series_of(told)
        rows = decision_rows(series, told, "test")
        moves = series.price_R[rows + 2] / series.price_R[rows + 1] - 1
        column = told.windows.rows_RF[rows, -1]
        assert np.corrcoef(column, moves)[0, 1] > 1 - 1e-9
        assert 0.7 < float(np.std(column)) < 1.4
        assert told.windows.features[-1] == "tomorrow"


def test_a_full_table_gives_its_last_feature_for_the_oracle() -> None:
    told = with_oracle(market_of(), policy_family("q_learning", bins=40))
    assert told.windows.features == ("signal", "noise", "tomorrow")


def test_flipped_signs_keep_features_gaps_and_every_moves_size_and_take_drift() -> None:
    table = symbol_rows(num=600, r2=0.3, gaps=[200])
    table.open_N[:] *= np.exp(0.01 * np.arange(600))
    problem = market_of(table)
    blind = flipped(problem, seed=1).windows
    before, after = problem.windows, blind
    np.testing.assert_array_equal(after.rows_RF, before.rows_RF)
    for run_number in np.unique(before.runs_R):
        own = (before.runs_R == run_number) & (before.opened_ms_R <= before.borders_ms["test"])
        old, new = (each.open_R[own][1:] / each.open_R[own][:-1] - 1 for each in (before, after))
        np.testing.assert_allclose(np.abs(new), np.abs(old), rtol=1e-9)
        assert 0.35 < np.mean(np.sign(new) == np.sign(old)) < 0.65
        assert abs(new.mean()) < 4 * new.std() / len(new) ** 0.5 < 2 * old.mean()
    late = before.opened_ms_R > before.borders_ms["test"]
    np.testing.assert_array_equal(after.open_R[late], before.open_R[late])
    np.testing.assert_array_equal(after.close_R, before.close_R)
    assert not np.array_equal(flipped(problem, seed=2).windows.open_R, blind.open_R)


@pytest.mark.parametrize("fill", ["next_open", "next_close"])
def test_no_decision_out_of_sample_is_paid_a_jump_from_flipped_to_true_prices(fill: Any) -> None:
    problem = replace(market_of(), fill=fill)
    blind = flipped(problem, seed=3)
    series, true = series_of(blind), series_of(problem)
    for part in ("train", "calibration"):
        entry = decision_rows(series, blind, part) + series.delay
        np.testing.assert_allclose(np.abs(series.move_R[entry]), np.abs(true.move_R[entry]), rtol=1e-9, atol=1e-15)


@pytest.fixture
def _generous(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that pays a ten-thousandth of every gain on top."""
    honest = VectorTradingEnvironment.step

    def step(self: VectorTradingEnvironment, actions_N: Any) -> Any:
        answer = honest(self, actions_N)
        return replace(answer, rewards_N=answer.rewards_N * np.where(answer.rewards_N > 0, 1.0001, 1.0))

    monkeypatch.setattr(VectorTradingEnvironment, "step", step)


@pytest.mark.usefixtures("_generous")
def test_a_training_that_pays_too_much_is_an_error() -> None:
    assert reward_difference(market_of()) > 1e-8
    with pytest.raises(TrainingError, match="backtest"):
        rl_sanity.run(policy_family("q_learning"), market_of(), report=Recorder(), num_seeds=1)


def test_failures_are_named() -> None:
    fine = Sanity((0.6, 0.9), (-1.0, 1.1), 0.0, 100, 5)
    assert fine.warnings == ()
    assert replace(fine, oracle_shares=(0.2, 0.7)).warnings == ("sanity_oracle_failed",)
    assert replace(fine, flipped_gross=(1.0, 1.1)).warnings == ("sanity_flipped_failed",)
    assert replace(fine, flipped_gross=(0.0, 0.0)).warnings == ()


@pytest.mark.parametrize(("standard_errors", "warnings"), [(2.9, ()), (3.1, ("sanity_flipped_failed",))])
def test_three_standard_errors_are_allowed(standard_errors: float, warnings: tuple[str, ...]) -> None:
    chance = np.random.default_rng(0).standard_normal(20)
    standard = (chance - chance.mean()) / chance.std(ddof=1) * 20**0.5  # mean 0, standard error 1
    given = Sanity((0.9,) * 20, tuple((standard + standard_errors).tolist()), 0.0, 100, 5)
    assert given.warnings == warnings


def test_a_cancellation_is_seen_within_a_run() -> None:
    report = Recorder(cancel_at_check=30)
    with pytest.raises(JobCancelled):
        rl_sanity.run(policy_family("ppo"), market_of(), report=report, num_seeds=1)
    assert report.num_checks == 30


def test_the_budget_bounds_rows_and_epochs() -> None:
    family = policy_family("q_learning", epochs=7)
    type(family).budget, before = Budget(rows=150, epochs=3), type(family).budget
    try:
        found = rl_sanity.run(family, market_of(num=900), report=Recorder(), num_seeds=2)
    finally:
        type(family).budget = before
    assert (found.num_rows, found.epochs) == (150, 3)
