"""One graph says what scikit-learn's forest says, to the last bit in any batch, and which feature it is about."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession
from safetensors.numpy import load_file
from sklearn.ensemble import IsolationForest

from common_lib.exceptions import JobCancelled
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.evaluation.injected_anomalies import KINDS, inject
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.bundle.manifest import WEIGHTS_FILE
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.interfaces.family import Trained
from ml_workbench_service.learning.networks.autoencoder_graph import ACTIVITY_FLOOR, ACTIVITY_ROOTS
from ml_workbench_service.learning.networks.isolation_forest import (
    AXES,
    PATH_STEP,
    derive_graph,
    forest_graph,
    train_forest,
    tree_weights,
    whitening,
)
from ml_workbench_service.testing.synthetic import FEATURES, IS_LEVEL, Recorder, cut, problem, symbol_rows

pytestmark = pytest.mark.processor

LOOKBACK = 12
NUM_TREES = 60


def related_windows(num: int = 1600) -> Windows:
    """Two features that move slowly and nearly together, and a price."""
    table = symbol_rows(num=num)
    chance = np.random.default_rng(8)
    slow = np.zeros(num)
    for row in range(1, num):
        slow[row] = 0.9 * slow[row - 1] + 0.4 * chance.standard_normal()
    x_NF = np.column_stack([slow, slow + 0.1 * chance.standard_normal(num), table.close_N])
    return cut(replace(table, x_NF=x_NF), lookback=LOOKBACK)


def grown(windows: Windows, *, seed: int = 0, trees: int = NUM_TREES, report: Recorder | None = None) -> Trained:
    return train_forest(problem(windows, seed=seed), num_trees=trees, max_samples=512, report=report or Recorder())


@pytest.fixture(scope="module")
def windows() -> Windows:
    return related_windows()


@pytest.fixture(scope="module")
def model(windows: Windows) -> Trained:
    return grown(windows)


@pytest.fixture(scope="module")
def folder(model: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forest")
    export(model, folder, num_features=3, lengths=range(3, LOOKBACK + 1), seed=0)
    return folder


@pytest.fixture(scope="module")
def graph(folder: Path) -> OnnxNetwork:
    return OnnxNetwork(folder / "model.onnx")


def test_its_graph_answers_like_scikit_learn(windows: Windows, model: Trained, graph: OnnxNetwork) -> None:
    assert model.outputs == ("isolation_score", *(f"error_{name}" for name in FEATURES))
    for batch in (1, 5, 64):
        for length in range(3, LOOKBACK + 1):
            rows = windows.gather(windows.parts["test"][:batch], length)
            found, wanted = graph.predict(rows), model.predict(rows)
            assert found.outputs_NK.shape == (batch, 4)
            np.testing.assert_allclose(found.outputs_NK, wanted.outputs_NK, atol=1e-4)
            np.testing.assert_allclose(found.last_rows_NF, wanted.last_rows_NF, atol=1e-4)


def test_float32_answers_do_not_depend_on_the_batch(windows: Windows, graph: OnnxNetwork) -> None:
    for length in (3, LOOKBACK):
        rows = windows.gather(windows.parts["test"][:200], length)
        whole = graph.predict(rows)
        for batch in (1, 2, 7, 33, 64):
            for begin in range(0, 200, batch):
                part = graph.predict(rows[begin : begin + batch])
                assert part.outputs_NK.tobytes() == whole.outputs_NK[begin : begin + batch].tobytes()
                assert part.last_rows_NF.tobytes() == whole.last_rows_NF[begin : begin + batch].tobytes()


def scored(forest: IsolationForest, num_features: int) -> Callable[[Floats32], np.ndarray]:
    """The exported trees over plain columns, as the graph's own node runs them."""
    attributes = tree_weights(forest)
    leaves = attributes["is_leaf"]
    node = onnx.helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["paths"], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=attributes["treeids"].tolist(), nodes_nodeids=attributes["nodeids"].tolist(),
        nodes_featureids=attributes["featureids"].tolist(), nodes_values=attributes["threshold"].tolist(),
        nodes_modes=np.where(leaves, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_truenodeids=attributes["truenodeids"].tolist(), nodes_falsenodeids=attributes["falsenodeids"].tolist(),
        target_treeids=attributes["treeids"][leaves].tolist(), target_nodeids=attributes["nodeids"][leaves].tolist(),
        target_ids=[0] * int(leaves.sum()), target_weights=attributes["path_length"][leaves].tolist(),
    )  # fmt: skip
    numbers = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", num_features])
    paths = onnx.helper.make_tensor_value_info("paths", onnx.TensorProto.FLOAT, ["N", 1])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "trees", [numbers], [paths]),
        opset_imports=[onnx.helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=10,
    )
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: 2 ** (-session.run(None, {"x": x})[0][:, 0] / attributes["ordinary_path"][0])


def test_the_exported_trees_give_the_published_score_even_on_a_threshold() -> None:
    """Thresholds are float64 in scikit-learn; rounded to the wrong side, the very values they lie on would cross."""
    chance = np.random.default_rng(0)
    x = np.round(chance.standard_normal((2000, 2)), 1).astype(np.float32)
    forest = IsolationForest(n_estimators=50, max_samples=256, random_state=0).fit(x)
    edges = np.concatenate([tree.tree_.threshold[tree.tree_.feature == 0] for tree in forest.estimators_])
    near = np.nextafter(edges.astype(np.float32), np.float32(9), dtype=np.float32)
    on = np.concatenate([edges.astype(np.float32), near])
    probes = np.column_stack([on, np.zeros_like(on)])
    for values in (x, probes):
        np.testing.assert_allclose(scored(forest, 2)(values), -forest.score_samples(values), atol=2e-5)


def test_the_exported_trees_agree_with_the_standard_converter() -> None:
    from skl2onnx import to_onnx

    chance = np.random.default_rng(1)
    x = chance.standard_normal((600, 3)).astype(np.float32)
    forest = IsolationForest(n_estimators=5, max_samples=128, random_state=0).fit(x)
    standard = to_onnx(
        forest, x[:1], target_opset={"": 18, "ai.onnx.ml": 3}, options={id(forest): {"score_samples": True}}
    )
    session = InferenceSession(standard.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = -session.run(["score_samples"], {"X": x})[0][:, 0]
    np.testing.assert_allclose(scored(forest, 3)(x), wanted, atol=1e-4)


def test_sums_of_path_lengths_are_exact_in_float32_whatever_their_order(model: Trained) -> None:
    paths = model.weights["path_length"][model.weights["is_leaf"]].astype(np.float64)
    assert (paths / PATH_STEP == np.round(paths / PATH_STEP)).all()
    assert 1000 * 28 / PATH_STEP < 2**24
    deepest = 12 + 16  # 4,096 samples at most: 12 splits, and what 4,096 equal rows would take
    assert paths.max() <= deepest


def test_the_bundle_rebuilds_the_same_graph_without_any_pickle(model: Trained, folder: Path) -> None:
    again = forest_graph(load_file(str(folder / WEIGHTS_FILE)), is_level_F=IS_LEVEL)
    assert again.SerializeToString() == model.graph().SerializeToString()
    assert {each.dtype.kind for each in model.weights.values()} <= {"f", "i", "b"}


def test_what_the_forest_reads_is_what_its_docstring_says(windows: Windows, model: Trained, tmp_path: Path) -> None:
    onnx.save(derive_graph(model.weights, is_level_F=IS_LEVEL), str(tmp_path / "derive.onnx"))
    rows = windows.gather(windows.parts["test"])
    found = OnnxNetwork(tmp_path / "derive.onnx").predict(rows)
    stage = rows.astype(np.float64)
    stage -= stage.mean(axis=1, keepdims=True) * np.array(IS_LEVEL)
    apart = (stage[:, -1] - model.weights["apart_mean"]) @ model.weights["apart_matrix"]
    move = (stage[:, -1] - stage[:, -2] - model.weights["move_mean"]) @ model.weights["move_matrix"]
    activity = ((np.diff(rows.astype(np.float64), axis=1)[:, -4:] ** 2).mean(axis=1) + ACTIVITY_FLOOR) ** (
        1 / 2**ACTIVITY_ROOTS
    )
    assert AXES == ("apart", "move", "activity")
    np.testing.assert_allclose(found.outputs_NK, np.concatenate([apart, move, activity], axis=1), atol=2e-4)
    np.testing.assert_allclose(found.last_rows_NF, stage[:, -1], atol=1e-4)


def test_whitened_values_are_residuals_of_a_regression_on_the_others_in_their_deviations() -> None:
    chance = np.random.default_rng(0)
    values = chance.standard_normal((4000, 3)) @ np.array([[1.0, 0.9, 0.0], [0.0, 0.3, 0.0], [0.0, 0.5, 1.0]]) + 7
    mean, matrix = whitening(values)
    found = (values - mean) @ matrix
    others = np.column_stack([np.ones(4000), values[:, 1:]])
    residual = values[:, 0] - others @ np.linalg.lstsq(others, values[:, 0], rcond=None)[0]
    np.testing.assert_allclose(np.corrcoef(found[:, 0], residual)[0, 1], 1.0, atol=0.01)
    np.testing.assert_allclose(found.std(axis=0), 1.0, atol=0.15)


def test_injected_anomalies_stand_out(windows: Windows, graph: OnnxNetwork) -> None:
    ends = windows.parts["test"]
    limit = float(np.quantile(graph.predict(windows.gather(ends)).outputs_NK[:, 0], 0.99))
    injected = inject(windows.rows_RF, ends, lookback=LOOKBACK, is_level_F=IS_LEVEL, seed=0, num_per_kind=60)
    scores = graph.predict(injected.windows_NTF).outputs_NK[:, 0]
    found = {kind: float(np.mean(scores[injected.of(kind)] > limit)) for kind in KINDS}
    assert found["spike"] > 0.6
    assert found["stale_price"] > 0.9
    assert found["volatility_burst"] > 0.5
    assert found["broken_correlation"] > 0.2


@pytest.mark.parametrize("feature", range(3))
def test_the_feature_that_is_wrong_is_the_one_without_which_the_score_falls(
    feature: int, windows: Windows, graph: OnnxNetwork
) -> None:
    """Of two that nearly are one and part, the forest cannot always tell which is wrong, only that it is these two."""
    rows = windows.gather(windows.parts["test"][::10])
    rows[:, -1, feature] += 6
    outputs = graph.predict(rows).outputs_NK
    ranks = np.argsort(-outputs[:, 1:], axis=1)
    assert np.mean(ranks[:, 0] == feature) > (0.9 if feature == 2 else 0.5)
    assert (ranks[:, :2] == feature).any(axis=1).all()
    assert (outputs[:, 1:] >= 0).all()
    assert (outputs[:, :1] >= outputs[:, 1:]).all()


def test_a_seed_decides_every_tree_and_ten_at_a_time_are_as_good_as_all_at_once(windows: Windows) -> None:
    first, again, other = (grown(windows, seed=seed, trees=20).weights for seed in (3, 3, 4))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert first["threshold"].tobytes() != other["threshold"].tobytes()
    trees = first["treeids"]
    assert first["threshold"][trees == 0].tobytes() != first["threshold"][trees == 10].tobytes()


def test_nothing_after_the_training_part_reaches_the_trees(windows: Windows) -> None:
    rows = windows.rows_RF.copy()
    rows[windows.available_at_ms_R > windows.borders_ms["validation"]] = 7.0
    first, second = (grown(each, trees=5).weights for each in (windows, replace(windows, rows_RF=rows)))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_it_reports_ten_trees_at_a_time_and_a_cancellation_ends_it(windows: Windows) -> None:
    report = Recorder()
    grown(windows, trees=25, report=report)
    assert [(step, total) for step, total, _ in report.steps] == [(10, 25), (20, 25), (25, 25)]
    report = Recorder(cancel_at_check=3)  # one look at what is derived, one before each ten trees
    with pytest.raises(JobCancelled):
        grown(windows, report=report)
    assert [step for step, _, _ in report.steps] == [10]


def test_features_that_never_move_or_are_one_or_many_are_no_trouble(tmp_path: Path) -> None:
    constant = symbol_rows(num=600)
    constant.x_NF[:, :2] = (0.0, 1e7)
    twin = symbol_rows(num=600)
    twin.x_NF[:, 1] = twin.x_NF[:, 0]
    for table in (constant, twin):
        unusual = cut(table, lookback=LOOKBACK)
        graph = export(grown(unusual, trees=10), tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
        rows = unusual.gather(unusual.parts["test"][:50])
        assert np.isfinite(graph.predict(rows).outputs_NK).all()
        rows[:, -1] = np.float32(1e9)
        rows[::2, -2] = np.float32(-1e9)
        assert np.isfinite(graph.predict(rows).outputs_NK).all()
