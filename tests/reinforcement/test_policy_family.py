"""What policies share: the bars' own spread, parts that never look over a border, budgets, short windows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from common_lib.exceptions import DataValidationError
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.reinforcement.policy_family import Market, decision_rows, series_of
from ml_workbench_service.reinforcement.policy_network import PolicyNetwork, WindowStage, layers_graph
from ml_workbench_service.testing.synthetic import symbol_rows
from tests.reinforcement.policies import market_of, policy_family


@pytest.mark.parametrize("fill", ["next_open", "next_close"])
def test_every_decision_is_settled_inside_its_part(fill: str) -> None:
    problem = replace(market_of(), fill=fill)  # type: ignore[arg-type]
    market, windows = Market.of(problem), problem.windows
    for rows, border in ((market.train, "validation"), (market.validation, "calibration")):
        settled = rows + market.series.delay + 1
        assert (market.series.priced_at_ms_R[settled] <= windows.borders_ms[border]).all()
        beyond = market.series.priced_at_ms_R[settled.max() + 1]
        assert beyond > windows.borders_ms[border], "as many decisions as there can be"


def test_a_part_without_a_decision_says_what_to_do() -> None:
    problem = market_of()
    decisions = {**problem.windows.decisions, "validation": problem.windows.decisions["validation"][-1:]}
    alone = replace(problem, windows=replace(problem.windows, decisions=decisions), fill="next_close")
    with pytest.raises(DataValidationError, match="ask for a longer range"):
        decision_rows(series_of(alone), alone, "validation")


def test_the_bars_own_spread_is_paid_in_price_units() -> None:
    table = symbol_rows("USD/JPY", num=500)
    table.close_N[:] *= 100
    table.x_NF[:, 2] *= 100
    table.open_N[:] *= 100
    table.spread_open_N[:250] = 0.02  # two pips of a yen pair
    series = series_of(market_of(table))
    np.testing.assert_allclose(series.spread_R[:250], 2.0)
    assert np.isnan(series.spread_R[250:]).all()
    price, commission = series.price_R[:250], series.costs["USD/JPY"].commission_bp
    own = series.unit_cost_R[:250] * price - 1e-4 * commission * price
    np.testing.assert_allclose(own, 0.01, rtol=1e-9)


def test_a_smaller_budget_changes_the_epochs_alone() -> None:
    family = policy_family("dqn", epochs=12)
    small = family.with_budget(epochs=3)
    changed = {**family.hyperparameters.model_dump(), "epochs": 3}
    assert small.hyperparameters.model_dump() == changed
    assert family.with_budget(epochs=40).hyperparameters == family.hyperparameters


def test_rows_that_a_short_window_lacks_count_as_average(tmp_path: Path) -> None:
    torch.manual_seed(0)
    is_level = (False, True)
    layers = [torch.nn.Linear(13, 5), torch.nn.Linear(5, 3)]
    network = PolicyNetwork(WindowStage(is_level, 6), layers, activation="relu", gives_probabilities=True)
    onnx.save(
        layers_graph(
            network.weights(), lookback=6, is_level_F=is_level, activation="relu", gives_probabilities=True
        ),
        str(tmp_path / "policy.onnx"),
    )  # fmt: skip
    graph = OnnxNetwork(tmp_path / "policy.onnx")
    rows = np.random.default_rng(0).standard_normal((7, 4, 2)).astype(np.float32)
    staged = rows - rows.mean(axis=1, keepdims=True) * np.array(is_level, dtype=np.float32)
    whole = np.concatenate([np.zeros((7, 2, 2), np.float32), staged], axis=1)  # its level column has mean 0 already
    positions = np.array([-1, 0, 1, 0.5, -0.5, 0, 1], dtype=np.float32)
    short = graph.predict(rows, positions).outputs_NK
    np.testing.assert_allclose(short, graph.predict(whole, positions).outputs_NK, atol=1e-6)
    np.testing.assert_allclose(short, network.answer(rows, positions).outputs_NK, atol=1e-6)
    np.testing.assert_allclose(short.sum(axis=1), 1, atol=1e-6)
