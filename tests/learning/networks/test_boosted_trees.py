"""Boosted trees: the graph says what LightGBM says, resumed to the bit, in order, one-sided where asked for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from common_lib.exceptions import DataValidationError, JobCancelled
from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.families.lightgbm import LightGbm
from ml_workbench_service.families.lightgbm_classifier import LightGbmClassifier
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.fitting.ensemble import train_seeds
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import AnyFamily, Trained
from ml_workbench_service.learning.networks.boosted_trees import training
from ml_workbench_service.learning.networks.boosted_trees.graph import (
    WindowColumns,
    columns_graph,
    ensemble,
    parse,
    trees_graph,
)
from ml_workbench_service.learning.networks.graph_session import GraphSession
from ml_workbench_service.testing.probes import probe_of
from ml_workbench_service.testing.synthetic import OneThread, Recorder, cut, problem, skill, symbol_rows
from ml_workbench_service.training import tasks as tasks  # registers them

pytestmark = pytest.mark.processor

LOOKBACK = 8
QUICK: dict[str, Any] = {"lookback": LOOKBACK, "num_iterations": 60, "learning_rate": 0.1}
QUANTILES = (0.1, 0.5, 0.9)


@pytest.fixture(scope="module")
def windows() -> Windows:
    return cut(symbol_rows(num=2000))


@pytest.fixture(scope="module")
def classes() -> Windows:
    return probe_of(LightGbmClassifier).windows()


def grown(family: AnyFamily, windows: Windows, *targets: str, report: Recorder | None = None, **more: Any) -> Trained:
    return family.train(problem(windows, *targets, **more), accelerator=OneThread(), report=report or Recorder())


def opened(model: Trained, windows: Windows, folder: Path) -> OnnxNetwork:
    return export(model, folder, num_features=len(windows.features), lengths=(3, LOOKBACK), seed=0)


def random_windows(num_features: int = 3, num: int = 200) -> Floats32:
    return np.random.default_rng(5).standard_normal((num, LOOKBACK, num_features)).astype(np.float32)


def boosters(model: Trained) -> list[lightgbm.Booster]:
    """Of the bundle's weights, as a reader of `weights.safetensors` makes them."""
    texts = [value.tobytes().decode() for name, value in model.weights.items() if name.startswith("booster")]
    return [lightgbm.Booster(model_str=text) for text in texts]


def matrix_of(rows_NTF: Floats32, windows: Windows, columns: str = "window_and_summary") -> Floats32:
    """The columns by their definitions."""
    is_level_F = np.array(windows.scaler.is_level_F)
    x_NTF = rows_NTF - rows_NTF.mean(axis=1, keepdims=True) * is_level_F
    moments = np.arange(x_NTF.shape[1]) - (x_NTF.shape[1] - 1) / 2
    slopes_NF = np.einsum("t,ntf->nf", moments / (moments**2).sum(), x_NTF)
    missing = ((0, 0), (LOOKBACK - x_NTF.shape[1], 0), (0, 0))
    first = x_NTF[:, -1] if columns == "summary" else np.pad(x_NTF, missing).reshape(len(x_NTF), -1)
    summary = [] if columns == "window" else [x_NTF.mean(axis=1)[:, ~is_level_F], slopes_NF]
    return np.concatenate([first, *summary], axis=1).astype(np.float32)


@pytest.mark.parametrize("columns", ["window_and_summary", "window", "summary"])
@pytest.mark.parametrize("length", [3, LOOKBACK])
def test_columns_are_what_their_definitions_say(windows: Windows, columns: Any, length: int) -> None:
    layout = WindowColumns(windows.features, tuple(windows.scaler.is_level_F), LOOKBACK, columns)
    rows_NTF = random_windows()[:, -length:]
    found, _ = GraphSession(columns_graph(layout))(rows_NTF)
    np.testing.assert_allclose(found, matrix_of(rows_NTF, windows, columns), atol=1e-5)
    assert found.shape[1] == len(layout.names) == len(set(layout.names))


def test_names_are_such_that_lightgbm_takes_them() -> None:
    layout = WindowColumns(("zscore(close, 50)", "zscore[close: 50]", "\u03c3"), (False,) * 3, 2, "summary")
    lightgbm.Dataset(np.zeros((3, len(layout.names))), feature_name=list(layout.names)).construct()
    assert len(set(layout.names)) == len(layout.names)


@pytest.mark.parametrize("columns", ["window_and_summary", "window", "summary"])
def test_a_forecast_is_lightgbms_on_two_hundred_random_windows(windows: Windows, columns: str, tmp_path: Path) -> None:
    model = grown(LightGbm({**QUICK, "columns": columns}), windows)
    graph, rows_NTF = opened(model, windows, tmp_path), random_windows()
    layout = WindowColumns(windows.features, tuple(windows.scaler.is_level_F), LOOKBACK, columns)  # type: ignore[arg-type]
    matrix_ND, _ = GraphSession(columns_graph(layout))(rows_NTF)
    (booster,) = boosters(model)
    assert booster.num_trees() == model.best_epoch > 5
    found = graph.predict(rows_NTF).outputs_NK[:, 0]
    np.testing.assert_allclose(found, booster.predict(matrix_ND), atol=1e-6)
    alone = [graph.predict(window[None]).outputs_NK for window in rows_NTF]
    assert np.concatenate(alone)[:, 0].tobytes() == found.tobytes()


@pytest.mark.parametrize("weighting", ["none", "balanced"])
def test_class_probabilities_are_lightgbms_without_the_weights(
    classes: Windows, weighting: str, tmp_path: Path
) -> None:
    model = grown(LightGbmClassifier({**QUICK, "class_weights": weighting}), classes, "direction_1h")
    graph, rows_NTF = opened(model, classes, tmp_path), random_windows()
    layout = WindowColumns(classes.features, tuple(classes.scaler.is_level_F), LOOKBACK, "window_and_summary")
    matrix_ND, _ = GraphSession(columns_graph(layout))(rows_NTF)
    (booster,) = boosters(model)
    logits_NC = graph.predict(rows_NTF).outputs_NK.astype(np.float64)
    labels_N = classes.own_labels_RK[classes.parts["train"], 0].astype(int)
    counts_C = np.bincount(labels_N)
    weights_C = counts_C.sum() / (3 * counts_C) if weighting == "balanced" else np.ones(3)
    np.testing.assert_allclose(
        softmax(logits_NC + np.log(weights_C)), np.asarray(booster.predict(matrix_ND)), atol=1e-6
    )
    assert graph.predict(rows_NTF[:1]).outputs_NK.tobytes() == graph.predict(rows_NTF).outputs_NK[:1].tobytes()
    found_C = softmax(graph.predict(classes.gather(classes.parts["test"])).outputs_NK.astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(found_C, counts_C / counts_C.sum(), atol=0.08)


def softmax(logits_NC: Floats) -> Floats:
    powers_NC = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return np.asarray(powers_NC / powers_NC.sum(axis=1, keepdims=True))


def test_a_class_that_never_came_has_its_frequency_and_no_infinity(classes: Windows, tmp_path: Path) -> None:
    labels_RK = np.where(classes.own_labels_RK == 1, 2.0, classes.own_labels_RK)
    rare = replace(classes, own_labels_RK=labels_RK, labels_RK=labels_RK.astype(np.float32))
    model = grown(LightGbmClassifier(QUICK), rare, "direction_1h")
    logits_NC = opened(model, rare, tmp_path).predict(random_windows()).outputs_NK
    num_train = len(rare.parts["train"])
    np.testing.assert_allclose(logits_NC[:, 1], np.log(1 / (num_train + 3)), rtol=1e-6)


def test_quantiles_are_sorted_boosters_and_cover(windows: Windows, tmp_path: Path) -> None:
    model = grown(LightGbm(QUICK), windows, quantiles=QUANTILES)
    assert model.outputs == tuple(f"price_change_1h_q{number}" for number in (10, 50, 90))
    graph, rows_NTF = opened(model, windows, tmp_path), random_windows()
    layout = WindowColumns(windows.features, tuple(windows.scaler.is_level_F), LOOKBACK, "window_and_summary")
    matrix_ND, _ = GraphSession(columns_graph(layout))(rows_NTF)
    each = np.column_stack([booster.predict(matrix_ND) for booster in boosters(model)])
    np.testing.assert_allclose(graph.predict(rows_NTF).outputs_NK, np.sort(each, axis=1), atol=1e-6)
    ends = windows.parts["test"]
    outputs_NK, labels_N = graph.predict(windows.gather(ends)).outputs_NK, windows.labels_RK[ends, 0]
    assert (np.diff(outputs_NK, axis=1) >= 0).all()
    inside = (outputs_NK[:, 0] <= labels_N) & (labels_N <= outputs_NK[:, 2])
    assert 0.65 < inside.mean() < 0.9  # before the conformal step, which makes it 0.8


def test_several_targets_have_a_booster_each(windows: Windows, tmp_path: Path) -> None:
    twice = replace(
        windows,
        labels_RK=np.repeat(windows.labels_RK, 2, axis=1) * np.float32([1, -1]),
        own_labels_RK=np.repeat(windows.own_labels_RK, 2, axis=1),
    )
    report = Recorder()
    model = grown(LightGbm(QUICK), twice, "price_change_1h", "log_return_1h", report=report)
    found = opened(model, twice, tmp_path).predict(windows.gather(windows.parts["test"])).outputs_NK
    assert np.corrcoef(found[:, 0], found[:, 1])[0, 1] < -0.8
    assert all(total == 2 * QUICK["num_iterations"] for _, total, _ in report.steps)


@pytest.mark.parametrize(("kind", "more"), [("point", {}), ("quantiles", {"quantiles": QUANTILES})])
def test_a_killed_training_goes_on_to_the_same_bits(
    windows: Windows, kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    whole = Recorder()
    uninterrupted = grown(LightGbm(QUICK), windows, report=whole, **more)
    checkpoint = Checkpoint(tmp_path, fingerprint={}, period_s=0)
    for at_check in (25, 40, 70):
        if kind == "point" and at_check > 40:
            break
        with pytest.raises(JobCancelled):
            grown(LightGbm(QUICK), windows, report=Recorder(cancel_at_check=at_check), checkpoint=checkpoint, **more)
    last = Recorder()
    resumed = grown(LightGbm(QUICK), windows, report=last, checkpoint=checkpoint, **more)
    assert last.messages
    assert last.messages[0].startswith("going on after round")
    assert last.num_checks < whole.num_checks
    assert {name: value.tobytes() for name, value in resumed.weights.items()} == {
        name: value.tobytes() for name, value in uninterrupted.weights.items()
    }
    assert dict(resumed.network) == dict(uninterrupted.network)


@pytest.mark.parametrize(
    "more", [{}, {"num_iterations": 40, "early_stopping_rounds": 5, "learning_rate": 0.5}], ids=["all", "early"]
)
def test_a_training_killed_between_two_boosters_goes_on_to_the_same_bits(
    windows: Windows, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is due when: each look at the clock is the only one that finds a save due, and the kill comes next."""

    class DueOnce(Checkpoint):
        """Saves at its `place`-th chance alone."""

        def __init__(self, folder: Path, place: int) -> None:
            super().__init__(folder, fingerprint={})
            self.place, self.chances = place, 0

        def due(self) -> bool:
            self.chances += 1
            return self.chances == self.place

    class KilledAfter(Recorder):
        """Cancels at the first check after the save."""

        def check(self) -> None:
            super().check()
            if checkpoint.chances >= checkpoint.place:
                raise JobCancelled("killed by the test")

    monkeypatch.setattr(training, "ROUNDS_A_STEP", 1)
    family, quantiles = LightGbm({**QUICK, "num_iterations": 8, **more}), QUANTILES[::2]
    checkpoint = DueOnce(tmp_path / "none", 0)
    uninterrupted = grown(family, windows, checkpoint=checkpoint, quantiles=quantiles)
    num_chances = checkpoint.chances
    assert num_chances >= 4, "two boosters, and each has a place between two of its rounds"
    for place in range(1, num_chances + 1):
        checkpoint = DueOnce(tmp_path / str(place), place)
        if place < num_chances:
            with pytest.raises(JobCancelled):
                grown(family, windows, report=KilledAfter(), checkpoint=checkpoint, quantiles=quantiles)
        else:  # nobody looks for a kill after the last booster
            grown(family, windows, checkpoint=checkpoint, quantiles=quantiles)
        report = Recorder()
        resumed = grown(
            family, windows, report=report, checkpoint=DueOnce(tmp_path / str(place), 0), quantiles=quantiles
        )
        assert report.messages, place
        assert {name: value.tobytes() for name, value in resumed.weights.items()} == {
            name: value.tobytes() for name, value in uninterrupted.weights.items()
        }
        assert (resumed.epochs_run, dict(resumed.network)) == (uninterrupted.epochs_run, dict(uninterrupted.network))


def test_the_number_of_threads_changes_no_bit(windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = grown(LightGbm(QUICK), windows)

    class EveryOther:
        """Two threads in every other round, whatever the clock says."""

        def __init__(self, most_threads: int, *, use: Any) -> None:
            self._use, self._round = use, 0

        def next_batch(self) -> None:
            self._round += 1
            self._use(1 + self._round % 2)

    monkeypatch.setattr(training, "ThreadTuner", EveryOther)
    together = grown(LightGbm(QUICK), windows)
    assert together.weights["booster0"].tobytes() == alone.weights["booster0"].tobytes()


def test_where_nothing_is_to_be_found_it_says_a_constant(tmp_path: Path) -> None:
    noise = cut(symbol_rows(num=2000, r2=0.0, seed=3))
    rows_NTF = random_windows()
    model = grown(LightGbm({**QUICK, "early_stopping_rounds": 5, "learning_rate": 1.0}), noise)
    assert model.best_epoch == 0
    found = opened(model, noise, tmp_path).predict(rows_NTF).outputs_NK[:, 0]
    np.testing.assert_allclose(found, noise.labels_RK[noise.parts["train"], 0].mean(dtype=np.float64), atol=1e-6)


def test_a_monotone_feature_moves_the_forecast_one_way_only(windows: Windows, tmp_path: Path) -> None:
    rows_NTF = np.repeat(random_windows(num=50), 40, axis=0)
    rows_NTF[:, -1, 0] = np.tile(np.linspace(-3, 3, 40), 50)

    def steps(direction: str, folder: Path) -> Floats:
        folder.mkdir()
        model = grown(LightGbm({**QUICK, "monotone": {"signal": direction}}), windows)
        found = opened(model, windows, folder).predict(rows_NTF).outputs_NK
        return np.diff(found.reshape(50, 40).astype(np.float64), axis=1)

    rising, falling = steps("rising", tmp_path / "rising"), steps("falling", tmp_path / "falling")
    assert rising.min() >= 0
    assert rising.max() > 0
    assert falling.max() <= 0


def test_what_cannot_be_monotone_is_refused_before_the_job() -> None:
    family = LightGbm({"monotone": {"rsi_14": "falling"}})
    asked = {
        "name": "trees", "model_type": "time_series", "family": "lightgbm", "features": ["rsi_14"],
        "target": "price_change_1h", "symbols": ["EUR/USD"], "start_date": "2024-01-01T00:00:00Z",
        "end_date": "2025-01-01T00:00:00Z",
    }  # fmt: skip
    family.check_request(TrainRequest.model_validate(asked), ["rsi_14"])
    with pytest.raises(DataValidationError, match="does not read rsi_14"):
        family.check_request(TrainRequest.model_validate(asked), ["macd"])
    with pytest.raises(DataValidationError, match="quantiles cannot be monotone"):
        family.check_request(TrainRequest.model_validate(asked | {"quantiles": [0.1, 0.5, 0.9]}), ["rsi_14"])
    with pytest.raises(DataValidationError):
        LightGbm({"monotone": {"rsi_14": "sideways"}})


def test_several_seeds_answer_with_their_mean(windows: Windows, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint", fingerprint={}, period_s=0)
    asked = problem(windows, checkpoint=checkpoint)
    model = train_seeds(LightGbm(QUICK), asked, [3, 4], accelerator=OneThread(), report=Recorder())
    rows_NTF = windows.gather(windows.parts["test"])
    each = [member.predict(rows_NTF).outputs_NK for member in model.members]
    assert not np.array_equal(each[0], each[1])
    np.testing.assert_allclose(
        opened(model, windows, tmp_path).predict(rows_NTF).outputs_NK, np.mean(each, axis=0), atol=1e-6
    )
    again = Recorder()
    finished = train_seeds(LightGbm(QUICK), asked, [3, 4], accelerator=OneThread(), report=again)
    assert finished.weights["seed4.booster0"].tobytes() == model.weights["seed4.booster0"].tobytes()
    assert not again.steps, "finished members come back instead of being trained again"


def test_a_planted_interaction_is_found_that_a_linear_model_cannot_see() -> None:
    table = symbol_rows(num=4000, r2=0.0)
    product_N = np.sign(table.x_NF[:, 0]) * np.sign(table.x_NF[:, 1])
    labels_NK = table.labels_NK * 0.7 + (0.5 * table.bar_volatility_N * product_N)[:, None]
    windows = cut(replace(table, labels_NK=labels_NK))
    model = grown(LightGbm({"lookback": LOOKBACK, "columns": "summary"}), windows)
    ends = windows.parts["test"]
    forecasts_N = model.predict(windows.gather(ends)).outputs_NK[:, 0] * windows.label_scale_RK[ends, 0]
    assert skill(windows.own_labels_RK[ends, 0], forecasts_N) > 0.2  # of 0.34


def node_answers(texts: Sequence[str], x_ND: Floats32) -> Floats32:
    """The ensemble node alone."""
    nodes = [
        helper.make_node("Cast", ["x"], ["doubles"], to=TensorProto.DOUBLE),
        helper.make_node(
            "TreeEnsembleRegressor", ["doubles"], ["y"], domain="ai.onnx.ml", **ensemble(texts, num_raw=1)
        ),
    ]
    shape = ["N", x_ND.shape[1]]
    graph = helper.make_graph(
        nodes, "node", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    (found,) = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x_ND})
    return np.asarray(found[:, 0])


@pytest.mark.parametrize("has_holes", [False, True])
def test_every_float_goes_the_way_it_goes_in_lightgbm(has_holes: bool) -> None:
    """Values at thresholds, one float beside them, near zero, and missing: as LightGBM reads them, learnt or not."""
    chance = np.random.default_rng(2)
    x_ND = chance.standard_normal((3000, 5)).astype(np.float32).round(1)
    x_ND[:, 4] = 0
    x_ND[::3, 4] = 1e-36
    labels_N = x_ND[:, 0] * x_ND[:, 1] + np.abs(x_ND[:, 2]) + chance.standard_normal(3000)
    if has_holes:
        x_ND[chance.random(x_ND.shape) < 0.1] = np.nan
    params = {"num_leaves": 31, "verbosity": -1, "min_data_in_leaf": 5, "num_threads": 1}
    booster = lightgbm.train(params, lightgbm.Dataset(x_ND, labels_N), 40)
    text = booster.model_to_string()
    at = np.concatenate([tree.threshold for tree in parse(text)]).astype(np.float32)
    asked = np.concatenate(
        [at, np.nextafter(at, np.float32(9)), np.nextafter(at, np.float32(-9)), [0.0, 1e-36, np.nan]]
    )
    x_ND = chance.choice(asked.astype(np.float32), (5000, 5))
    np.testing.assert_allclose(node_answers([text], x_ND), booster.predict(x_ND), rtol=2e-7, atol=1e-7)


def test_trees_that_have_no_graph_are_refused() -> None:
    x_ND = np.random.default_rng(0).integers(0, 5, (500, 2)).astype(np.float64)
    booster = lightgbm.train(
        {"verbosity": -1, "min_data_in_leaf": 5}, lightgbm.Dataset(x_ND, x_ND[:, 0] % 2, categorical_feature=[0]), 2
    )
    with pytest.raises(ValueError, match="no graph here"):
        parse(booster.model_to_string())


def test_a_graph_is_made_of_the_texts_alone(windows: Windows) -> None:
    model = grown(LightGbm(QUICK), windows)
    layout = WindowColumns(windows.features, tuple(windows.scaler.is_level_F), LOOKBACK, "window_and_summary")
    text = model.weights["booster0"].tobytes().decode()
    again = trees_graph(layout, [text], finish=training.Outputs(model.outputs).add_to, num_raw=1, num_outputs=1)
    assert again.SerializeToString() == model.graph().SerializeToString()
