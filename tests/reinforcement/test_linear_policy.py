"""The linear policy: what the baseline of policies holds, as a family; flat without a signal; judged by other bars."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_workbench_service.agents.definition import define
from ml_workbench_service.contracts.agents import AgentRequest
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.market import Ints
from ml_workbench_service.evaluation.baselines import LINEAR, linear_positions
from ml_workbench_service.evaluation.verdict import apply_verdict
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.fitting.ensemble import train_seeds
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.reinforcement.linear_policy import round_trip_of
from ml_workbench_service.reinforcement.policy_family import Market, decision_rows, series_of
from ml_workbench_service.testing.synthetic import OneThread, Recorder, symbol_rows
from ml_workbench_service.training.tasks.reinforcement_learning import Control
from tests.reinforcement.policies import market_of, policy_family

FULL: dict[str, Any] = {"epochs": 60, "learning_rate": 0.003, "patience": 20}


def learnt(problem: TrainingProblem, **changes: Any) -> Trained:
    family = policy_family("linear_policy", **{**FULL, **changes})
    return family.train(problem, accelerator=OneThread(), report=Recorder())


def held(model: Trained, problem: TrainingProblem, rows: Ints) -> Ints:
    return Control().positions(Predict(model, None), rows, problem)


def dear(problem: TrainingProblem, times: float) -> TrainingProblem:
    """The same market at so many times the costs."""
    costs = {
        symbol: each.model_copy(update={"commission_bp": times * each.commission_bp})
        for symbol, each in problem.costs.items()
    }
    return replace(problem, costs=costs)


@pytest.fixture(scope="module")
def market() -> TrainingProblem:
    return market_of(num=4000)


@pytest.fixture(scope="module")
def model(market: TrainingProblem) -> Trained:
    return learnt(market)


def test_it_holds_what_the_baseline_holds_where_costs_are_constant(market: TrainingProblem, model: Trained) -> None:
    series = series_of(market)
    rows = decision_rows(series, market, "test")
    baseline = linear_positions(series, rows, windows=market.windows)
    own = held(model, market, rows)
    assert set(own.tolist()) == {-1, 0, 1}
    assert float(np.mean(own == baseline)) > 0.9
    assert not ((own == 1) & (baseline == -1)).any(), "they differ at the threshold alone"
    assert not ((own == -1) & (baseline == 1)).any()


def test_its_outputs_are_the_forecast_on_either_side_net_of_the_round_trip(
    market: TrainingProblem, model: Trained
) -> None:
    round_trip = round_trip_of(Market.of(market))
    x_NTF = market.windows.gather(market.windows.parts["test"])
    net_NA = model.predict(x_NTF).outputs_NK
    np.testing.assert_allclose(net_NA[:, 0] + net_NA[:, 2], -2 * round_trip, atol=1e-6)
    assert not net_NA[:, 1].any()
    assert net_NA.tobytes() == model.predict(x_NTF, np.ones(len(x_NTF), np.float32)).outputs_NK.tobytes()
    assert model.network["round_trip"] == round_trip == pytest.approx(2 * 0.05, rel=0.5), "of a typical bar"


def test_the_dearer_a_trade_the_fewer_it_makes(market: TrainingProblem) -> None:
    shares = []
    for times in (1.0, 4.0, 40.0):
        problem = dear(market, times)
        rows = decision_rows(series_of(problem), problem, "test")
        shares.append(float(np.mean(held(learnt(problem, epochs=20), problem, rows) != 0)))
    assert shares[0] > shares[1] > shares[2] == 0.0


def test_without_a_signal_it_stays_flat() -> None:
    noise = dear(market_of(symbol_rows(num=4000, r2=0.0, seed=3)), 3.0)
    rows = decision_rows(series_of(noise), noise, "test")
    assert float(np.mean(held(learnt(noise), noise, rows) != 0)) < 0.02


def test_it_is_not_compared_with_itself_and_others_are_compared_with_linear(
    market: TrainingProblem, model: Trained, tmp_path: Path
) -> None:
    task = Control()
    task.sanity_seeds = 2
    product = task.package(
        model, tmp_path, market, family=policy_family("linear_policy", **FULL), is_simulated=False, report=Recorder()
    )
    assert set(product.evaluation.baselines) == {"flat", "buy_and_hold"}
    assert product.evaluation.oracle_passed
    judged = apply_verdict(product.evaluation, certificate=None, is_simulated=False, horizon=1, timeframe="1h")
    assert judged.adds_over_linear is not None
    assert judged.adds_over_linear.answer == "not_applicable"
    table = policy_family("q_learning").train(market, accelerator=OneThread(), report=Recorder())
    differentials = task.differentials(
        table, task.calibrate(table, np.zeros((0, 3)), np.zeros(0, np.int64), market), np.zeros((0, 3)),
        np.zeros(0, np.int64), market, predict=Predict(table, None),
    )  # fmt: skip
    assert LINEAR in {each.baseline for each in differentials}


def test_several_seeds_are_one_graph_that_is_not_compared_with_itself_either(
    market: TrainingProblem, tmp_path: Path
) -> None:
    family = policy_family("linear_policy", epochs=3)
    model = train_seeds(family, market, [1, 2], accelerator=OneThread(), report=Recorder())
    graph = export(model, tmp_path, num_features=len(market.windows.features), lengths=(3, 8), seed=0)
    x_NTF = market.windows.gather(market.windows.parts["test"][:50])
    np.testing.assert_allclose(graph.predict(x_NTF).outputs_NK, model.predict(x_NTF).outputs_NK, atol=1e-6)
    found = Control().differentials(
        model, Control().calibrate(model, np.zeros((0, 3)), np.zeros(0, np.int64), market), np.zeros((0, 3)),
        np.zeros(0, np.int64), market, predict=Predict(model, None),
    )  # fmt: skip
    assert {each.baseline for each in found} == {"flat", "buy_and_hold"}


def test_an_agent_executes_it_as_it_executes_other_policies() -> None:
    request = AgentRequest.model_validate({"family": "linear_policy", "model_id": "trader"})
    definition, beginning = define(request, agent_id="follows", created_at=utc_now(), copied=[])
    assert (definition.family, definition.mode, beginning) == ("linear_policy", "shadow", None)
