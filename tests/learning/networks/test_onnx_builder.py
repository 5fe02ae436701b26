"""The graph builder takes operators of any domain, each imported once, under the one window stage."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.networks.onnx_builder import OPSETS, Graph

STUMPS = {
    "nodes_treeids": [0, 0, 0, 1, 1, 1],
    "nodes_nodeids": [0, 1, 2, 0, 1, 2],
    "nodes_featureids": [0, 0, 0, 1, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"] * 2,
    "nodes_values": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0, 1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0, 2, 0, 0],
    "target_treeids": [0, 0, 1, 1],
    "target_nodeids": [1, 2, 1, 2],
    "target_ids": [0, 0, 0, 0],
    "target_weights": [1.0, 2.0, 10.0, 20.0],
}
"""1 or 2 by whether the first feature is over a half, and 10 or 20 by whether the second is over its window's mean."""


def stumps() -> onnx.ModelProto:
    graph = Graph([False, True])
    graph.add("TreeEnsembleRegressor", ["last_rows"], ["paths"], domain="ai.onnx.ml", n_targets=1, **STUMPS)
    graph.add("Identity", ["paths"], ["outputs"])
    return graph.model("stumps", num_outputs=1)


def test_a_family_of_trees_stands_under_the_window_stage(tmp_path: Path) -> None:
    onnx.save(stumps(), str(tmp_path / "model.onnx"))
    rows_NTF = np.random.default_rng(0).normal(100.0, 1.0, (50, 6, 2)).astype(np.float32)
    rows_NTF[:, -1, 0] = np.linspace(0, 1, 50)
    found = OnnxNetwork(tmp_path / "model.onnx").predict(rows_NTF)
    is_over_N = rows_NTF[:, -1, 1] - rows_NTF[:, :, 1].mean(axis=1) > 0
    assert is_over_N.any()
    assert not is_over_N.all()
    wanted = np.where(rows_NTF[:, -1, 0] > 0.5, 2.0, 1.0) + np.where(is_over_N, 20.0, 10.0)
    assert found.outputs_NK[:, 0].tolist() == wanted.tolist()
    np.testing.assert_allclose(found.last_rows_NF[:, 0], rows_NTF[:, -1, 0])


def test_the_operators_of_each_domain_are_imported_once() -> None:
    assert [(each.domain, each.version) for each in stumps().opset_import] == list(OPSETS.items())
    plain = Graph([False])
    plain.add("Identity", ["last_rows"], ["outputs"])
    assert [each.domain for each in plain.model("plain", num_outputs=1).opset_import] == [""]


def test_an_operator_that_its_domain_lacks_fails_where_the_model_is_made() -> None:
    graph = Graph([False])
    graph.add("TreeEnsembleRegressor", ["last_rows"], ["outputs"], n_targets=1, **STUMPS)
    with pytest.raises(onnx.checker.ValidationError, match="TreeEnsembleRegressor"):
        graph.model("stumps", num_outputs=1)
