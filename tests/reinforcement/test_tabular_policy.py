"""The table's bins, its size, and its graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service import families as families  # registers them
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.reinforcement.policy_network import table_graph
from ml_workbench_service.reinforcement.tabular_policy import TabularPolicy, bins_of, quantile_edges
from ml_workbench_service.testing.synthetic import OneThread, Recorder
from tests.reinforcement.policies import market_of, policy_family


def test_bins_have_equal_shares_and_no_edge_lies_on_a_value() -> None:
    values = np.random.default_rng(0).standard_normal((1000, 2)).astype(np.float32)
    edges = quantile_edges(values, 4)
    counts = np.bincount(bins_of(values, edges), minlength=16).reshape(4, 4)
    np.testing.assert_allclose(counts.sum(axis=0), 250, atol=1)
    np.testing.assert_allclose(counts.sum(axis=1), 250, atol=1)
    assert not np.isin(edges, values).any()


def test_values_that_stand_often_or_alone_make_fewer_bins() -> None:
    values = np.zeros((1000, 3), dtype=np.float32)
    values[:, 1] = np.arange(1000) % 3  # three values, four bins asked
    values[:, 2] = 0.25 + 1e-7 * np.arange(1000) / 1000  # a constant and its rounding
    bins = bins_of(values, quantile_edges(values, 4))
    assert len(np.unique(bins)) == 3


def test_a_table_that_nobody_could_fill_is_refused_with_what_to_send() -> None:
    family = policy_family("q_learning", bins=8)
    family.check_features(5)
    with pytest.raises(DataValidationError, match="send bins: 6, or train dqn or ppo") as caught:
        family.check_features(6)
    assert caught.value.details["errors"][0]["path"] == "body.hyperparameters.bins"
    with pytest.raises(DataValidationError, match="which need no table"):
        family.check_features(17)


def test_the_graph_reads_the_rounded_position_and_the_newest_row(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    last = chance.standard_normal((400, 3)).astype(np.float32)
    edges = quantile_edges(last, 3)
    values = chance.standard_normal((27 * 3, 3)).astype(np.float32)
    is_level = (False, True, False)
    onnx.save(table_graph(values, edges, is_level_F=is_level), str(tmp_path / "table.onnx"))
    graph, policy = OnnxNetwork(tmp_path / "table.onnx"), TabularPolicy(values, edges, is_level)
    rows = chance.standard_normal((60, 5, 3)).astype(np.float32)
    for held in (-1.0, -0.6, -0.4, 0.0, 0.4, 0.6, 1.0):
        positions = np.full(60, held, dtype=np.float32)
        found = graph.predict(rows, positions)
        assert found.outputs_NK.tobytes() == policy.answer(rows, positions).outputs_NK.tobytes()
        assert found.outputs_NK.tobytes() == graph.predict(rows, np.round(positions)).outputs_NK.tobytes()
    other = rows.copy()
    other[:, 0, [0, 2]] += 5.0  # an older row of a stationary feature
    assert graph.predict(other).outputs_NK.tobytes() == graph.predict(rows).outputs_NK.tobytes()


def test_what_the_table_has_never_seen_is_flat() -> None:
    policy = TabularPolicy(np.zeros((9, 3), np.float32), np.array([[-1.0, 1.0]], np.float32), (False,))
    rows = np.random.default_rng(0).standard_normal((20, 4, 1)).astype(np.float32)
    np.testing.assert_array_equal(policy.act(rows, np.ones(20, np.float32)), 1)


def test_the_card_hears_how_much_of_the_table_was_visited() -> None:
    model = policy_family("q_learning").train(market_of(), accelerator=OneThread(), report=Recorder())
    table = model.findings["table"]
    assert table["num_states"] == 4**3 * 3
    assert 0.5 * table["num_states"] < table["num_visited"] <= table["num_states"]
