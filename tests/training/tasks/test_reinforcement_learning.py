"""The task of reinforcement learning: what it refuses, what its decoder says, and what the test part pays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, TrainingError
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.contracts.training import ModelType, TrainRequest
from ml_workbench_service.evaluation import signal_backtest
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.decoders.action import ActionDecoder, greedy_actions
from ml_workbench_service.learning.decoders.decoder import DecodingContext
from ml_workbench_service.learning.interfaces.family import Trained
from ml_workbench_service.learning.interfaces.task import Predict, task_for
from ml_workbench_service.market.trading_series import TradingSeries
from ml_workbench_service.reinforcement.policy_family import decision_rows, series_of
from ml_workbench_service.testing.synthetic import OneThread, Recorder, symbol_rows
from ml_workbench_service.training.tasks import reinforcement_learning as control
from ml_workbench_service.training.tasks.reinforcement_learning import Control, bars_per_year
from tests.reinforcement.policies import market_of, policy_family

NAMES = ("q_short", "q_flat", "q_long")


def request(**changes: Any) -> TrainRequest:
    body = {
        "name": "Trader",
        "model_type": "reinforcement_learning",
        "features": ["rsi_14"],
        "symbols": ["EUR/USD"],
        "start_date": "2020-01-01T00:00:00Z",
        "end_date": "2024-01-01T00:00:00Z",
    }
    return TrainRequest.model_validate(body | changes)


def test_a_request_needs_features_and_nothing_to_forecast() -> None:
    task = task_for(ModelType.REINFORCEMENT_LEARNING)
    assert isinstance(task, Control)
    assert task.check(request()) == ()


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"target": "price_change_1h"}, "body.target", "paid by the market; leave `target` out"),
        ({"quantiles": [0.5]}, "body.quantiles", "quantiles belong to time_series"),
        ({"label": {"k": 2.0}}, "body.label", "leave it out"),
        ({"features": []}, "body.features", "needs features"),
    ],
)
def test_what_does_not_belong_is_refused(changes: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(DataValidationError) as caught:
        Control().check(request(**changes))
    error = caught.value.details["errors"][0]
    assert error["path"] == path
    assert words in error["message"]


@pytest.mark.parametrize(
    ("outputs", "label", "direction"),
    [
        ((3.0, 1.0, 2.0), "short", "sell"),
        ((1.0, 3.0, 2.0), "flat", "hold"),
        ((1.0, 2.0, 3.0), "long", "buy"),
        ((2.0, 2.0, 1.0), "flat", "hold"),
        ((0.0, 0.0, 0.0), "flat", "hold"),
    ],
)
def test_the_judge_names_the_greedy_action(outputs: tuple[float, ...], label: str, direction: str) -> None:
    decoder = ActionDecoder(NAMES)
    context = DecodingContext(label_scale_K=np.ones(0), bar_volatility=None, dead_zone=0.0)
    said = decoder.decode(np.array(outputs, dtype=np.float32), context)
    assert (said.label, said.direction) == (label, direction)
    assert said.prediction == said.strength == {"short": -1, "flat": 0, "long": 1}[label]
    assert said.outputs == dict(zip(NAMES, outputs, strict=True))
    assert said.confidence is None
    assert said.interval is None
    assert decoder.to_json() == {"kind": "action"}


def test_ties_of_short_and_long_are_broken_the_same_way_everywhere() -> None:
    assert greedy_actions(np.array([[1.0, 0.0, 1.0], [0.0, 0.0, -1.0]])).tolist() == [0, 1]


def trained(**changes: Any) -> tuple[Trained, Any]:
    tables = [symbol_rows("EUR/USD", num=800, r2=0.3), symbol_rows("GBP/USD", num=800, seed=2, r2=0.3)]
    problem = market_of(*tables)
    family = policy_family("q_learning", **changes)
    return family.train(problem, accelerator=OneThread(), report=Recorder()), problem


def evaluated(model: Trained, problem: Any, folder: Path) -> Any:
    network = export(model, folder, num_features=3, lengths=[3, 8], seed=0)
    task, ends = Control(), problem.windows.parts["test"]
    decoder = task.calibrate(model, np.zeros((1, 3)), ends, problem)
    return task.evaluate(
        model, decoder, np.zeros((1, 3)), ends, problem, is_simulated=False, predict=Predict(network, None)
    )


def test_the_test_part_is_walked_beside_its_baselines(tmp_path: Path) -> None:
    model, problem = trained()
    found = evaluated(model, problem, tmp_path)
    test = found.test
    assert test["net_log_return"] > 0
    assert test["gross_log_return"] > test["net_log_return"]
    assert test["turnover"] >= test["num_trades"] > 10
    assert test["sharpe"] > 1
    assert 0 <= test["max_drawdown"] < 0.5
    assert 0.5 < test["hit_rate"] <= 1
    assert 0 < test["share_in_market"] <= 1
    assert {"EUR/USD_net_log_return", "GBP/USD_sharpe"} <= set(test)
    flat, holding = found.baselines["flat"], found.baselines["buy_and_hold"]
    assert flat["net_log_return"] == flat["turnover"] == 0
    assert (flat["sharpe"], flat["hit_rate"]) == (None, None)
    assert holding["share_in_market"] == 1
    assert holding["turnover"] == 2 * len(problem.windows.symbols)
    assert found.skill["net_over_flat"] == test["net_log_return"]
    assert found.skill["net_over_buy_and_hold"] == pytest.approx(test["net_log_return"] - holding["net_log_return"])
    assert found.verdict == "not_judged"


def test_the_walk_is_compared_with_every_plain_policy_by_its_net_returns(tmp_path: Path) -> None:
    model, problem = trained()
    found = evaluated(model, problem, tmp_path)
    assert [each.baseline for each in found.comparisons] == ["flat", "buy_and_hold", "linear"] == list(found.baselines)
    flat, _, linear = found.comparisons
    num_moments = flat.decisive.num_moments
    for each in found.comparisons:
        assert (each.loss, each.clark_west) == ("net_return", None)
        assert each.skill is not None
        gained = found.skill[f"net_over_{each.baseline}"]
        assert each.skill * num_moments == pytest.approx(gained, abs=1e-9)
    assert flat.decisive.p_value is not None
    assert flat.decisive.p_value < 0.025
    assert linear.decisive.p_value is not None
    assert linear.decisive.p_value > flat.decisive.p_value, "an injected signal is linear"
    assert found.backtest is not None
    assert found.backtest.net_log_return == pytest.approx(found.test["net_log_return"])
    assert found.seeds is None


def test_the_signal_is_the_walks_and_a_trial_is_ranked_by_what_it_earned() -> None:
    model, problem = trained()
    task, stop, windows = Control(), problem.windows.parts["validation"], problem.windows
    shuffled = np.random.default_rng(0).permutation(stop)
    found = task.positions(Predict(model, None), shuffled, problem)
    ascending = task.positions(Predict(model, None), np.sort(stop), problem)
    np.testing.assert_array_equal(found[np.argsort(shuffled)], ascending)
    rows = decision_rows(series_of(problem), problem, "validation")
    left_out = ~np.isin(np.sort(stop), rows)
    assert not ascending[left_out].any()
    assert ascending.any()
    earned = signal_backtest.realise(ascending, np.sort(stop), problem).net_M
    assert task.score(model, stop, problem) == pytest.approx(earned.mean())
    worse, _ = trained(epochs=1, learning_rate=1e-6)
    assert task.score(worse, stop, problem) < task.score(model, stop, problem)
    assert windows.available_at_ms_R[rows].max() < windows.borders_ms["calibration"]


def test_several_seeds_are_each_walked_alone() -> None:
    model, problem = trained()
    idle = replace(model, predict=lambda rows, positions: flat_answers(rows))
    both = replace(model, members=(model, idle))
    ends = problem.windows.parts["test"]
    found = Control().evaluate(
        both, ActionDecoder(NAMES), np.zeros((1, 3)), ends, problem, is_simulated=False, predict=Predict(model, None)
    )
    assert found.seeds is not None
    assert found.seeds["net_log_return"].maximum == pytest.approx(found.test["net_log_return"])
    assert found.seeds["net_log_return"].minimum == 0.0
    pooled = Control().differentials(
        both, ActionDecoder(NAMES), np.zeros((1, 3)), ends, problem, predict=Predict(model, None)
    )
    assert tuple(each.comparison() for each in pooled) == found.comparisons


def flat_answers(rows: Any) -> RawPrediction:
    return RawPrediction(np.tile(np.array([0.0, 1.0, 0.0], dtype=np.float32), (len(rows), 1)), rows[:, -1])


def test_a_walk_that_is_paid_something_else_than_the_backtest_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, problem = trained(epochs=1)
    honest = control.series_of(problem)

    def generous(_: Any) -> TradingSeries:
        changed = dict(honest.__dict__)
        return TradingSeries(**changed | {"unit_cost_R": honest.unit_cost_R * 0.99})

    monkeypatch.setattr(control, "series_of", generous)
    with pytest.raises(TrainingError, match="than the backtest says"):
        evaluated(model, problem, tmp_path)


def test_a_package_holds_the_sanity_runs_and_warns_where_they_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ml_workbench_service.reinforcement import sanity_checks as rl_sanity

    monkeypatch.setattr(rl_sanity, "LEAST_SHARE", 1.5)
    model, problem = trained(epochs=2)
    report = Recorder()
    product = Control().package(
        model, tmp_path, problem, family=policy_family("q_learning", epochs=2), is_simulated=False, report=report
    )
    assert product.recipe["uncertainty"]["kind"] == "action"
    assert product.findings["sanity"]["num_seeds"] == 20
    assert report.warnings == ["sanity_oracle_failed"]
    assert product.evaluation.test["sanity_oracle_share"] == product.findings["sanity"]["oracle"]["mean"]
    assert not product.quantization.accepted


def test_a_year_has_as_many_bars_as_the_moments_say() -> None:
    day = 86_400_000
    assert bars_per_year(np.arange(0, 366 * day, day)) == pytest.approx(365.25)
    assert bars_per_year(np.repeat(np.arange(0, 366 * day, day), 2)) == pytest.approx(365.25)
    assert bars_per_year(np.zeros(1, dtype=np.int64)) == 1.0
