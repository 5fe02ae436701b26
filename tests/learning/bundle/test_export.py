"""The ONNX graph against the network at every size, the window stage in its three places, and what int8 changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from common_lib.exceptions import PredictionError, TrainingError
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.bundle.export import (
    INT8_FILE,
    MODEL_FILE,
    TOLERANCE,
    WEIGHTS_FILE,
    export,
    quantize,
)
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork
from ml_workbench_service.learning.data.windows import evenly
from ml_workbench_service.learning.interfaces import task
from ml_workbench_service.learning.interfaces.family import Trained
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.learning.networks.heads import forecast_head
from ml_workbench_service.learning.networks.recurrent import RecurrentForecaster, recurrent_graph
from ml_workbench_service.testing.synthetic import IS_LEVEL, cut, symbol_rows
from ml_workbench_service.training.assessment import last_rows
from tests.learning.bundle.formula import Formula

pytestmark = pytest.mark.processor

UNITS = 6
HEAD = forecast_head([parse_target("price_change_1h")], ())
LOOKBACK = 12
LENGTHS = (3, 4, 7, LOOKBACK)


def network_of(cell: str, *, layers: int = 1, is_level: tuple[bool, ...] = IS_LEVEL, units: int = UNITS) -> Trained:
    """An untrained network with lively weights, as a family would hand it over."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    network = RecurrentForecaster(cell, is_level_F=is_level, units=units, layers=layers, head=HEAD, dropout=0.0).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    weights = {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}

    @torch.inference_mode()
    def predict(rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        rows_TNF = torch.from_numpy(np.ascontiguousarray(rows_NTF.transpose(1, 0, 2)))
        return RawPrediction(network(rows_TNF).numpy(), network.window_stage(rows_TNF)[-1].numpy())

    return Trained(
        outputs=("price_change_1h",),
        weights=weights,
        network={},
        graph=lambda: recurrent_graph(weights, cell=cell, num_layers=layers, is_level_F=is_level, head=HEAD),
        predict=predict,
        epochs_run=1,
        best_epoch=1,
    )


def rows(batch: int, length: int, *, num_features: int = 3, seed: int = 0) -> Floats32:
    return np.random.default_rng(seed).standard_normal((batch, length, num_features)).astype(np.float32)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("is_level", [IS_LEVEL, (False, False, False), (True, True, True)])
def test_the_graph_answers_like_the_network(cell: str, layers: int, is_level: tuple[bool, ...], tmp_path: Path) -> None:
    trained = network_of(cell, layers=layers, is_level=is_level)
    graph = export(trained, tmp_path, num_features=3, lengths=LENGTHS, seed=0)
    for batch in (1, 5, 64):
        for length in LENGTHS:
            x_NTF = 3 * rows(batch, length, seed=length)
            found, wanted = graph.predict(x_NTF), trained.predict(x_NTF)
            assert found.outputs_NK.shape == (batch, 1)
            np.testing.assert_allclose(found.outputs_NK, wanted.outputs_NK, atol=TOLERANCE)
            np.testing.assert_allclose(found.last_rows_NF, wanted.last_rows_NF, atol=TOLERANCE)
            assert np.ptp(wanted.outputs_NK) > 0.01 or batch == 1
    assert (tmp_path / WEIGHTS_FILE).stat().st_size > 0


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("num_features", [1, 4, 8, 17])
@pytest.mark.parametrize("units", [5, 64])
def test_float32_answers_do_not_depend_on_the_batch(cell: str, num_features: int, units: int, tmp_path: Path) -> None:
    """To the last bit, at any place in any batch: the reason why a replay tells what a live request would."""
    is_level = tuple(number % 3 == 0 for number in range(num_features))
    trained = network_of(cell, is_level=is_level, units=units, layers=2)
    graph = export(trained, tmp_path, num_features=num_features, lengths=[LOOKBACK], seed=0)
    for length in (3, LOOKBACK):
        x_NTF = 5 + rows(64, length, num_features=num_features)
        whole = graph.predict(x_NTF)
        for batch in (1, 2, 5, 7, 33):
            for begin in range(0, 64, batch):
                part = graph.predict(x_NTF[begin : begin + batch])
                assert part.outputs_NK.tobytes() == whole.outputs_NK[begin : begin + batch].tobytes()
                assert part.last_rows_NF.tobytes() == whole.last_rows_NF[begin : begin + batch].tobytes()


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_constant_factor_on_a_level_changes_no_answer(cell: str, tmp_path: Path) -> None:
    windows = cut(symbol_rows(num=600), lookback=LOOKBACK)
    graph = export(network_of(cell), tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    table = symbol_rows(num=LOOKBACK, seed=5)
    plain = graph.predict(windows.scaler.rows("EUR/USD", table.x_NF)[None])
    table.x_NF[:, 2] *= 1.7
    factored = graph.predict(windows.scaler.rows("EUR/USD", table.x_NF)[None])
    np.testing.assert_allclose(factored.outputs_NK, plain.outputs_NK, atol=1e-4)
    np.testing.assert_allclose(factored.last_rows_NF, plain.last_rows_NF, atol=1e-3)
    table.x_NF[-1, 2] *= 1.01
    moved = graph.predict(windows.scaler.rows("EUR/USD", table.x_NF)[None])
    assert abs(float(moved.outputs_NK[0, 0] - plain.outputs_NK[0, 0])) > 1e-3


def test_the_window_stage_is_one_operation_in_three_places(tmp_path: Path) -> None:
    """Torch in training, ONNX in serving, numpy where the novelty detector learns."""
    windows = cut(symbol_rows(num=700), symbol_rows("GBP/USD", num=700, seed=1), lookback=LOOKBACK)
    ends = windows.parts["train"]
    trained = network_of("GRU")
    graph = export(trained, tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    numpy_rows = last_rows(windows, ends)
    x_NTF = windows.gather(ends)
    np.testing.assert_allclose(graph.predict(x_NTF).last_rows_NF, numpy_rows, atol=2e-5)
    np.testing.assert_allclose(trained.predict(x_NTF).last_rows_NF, numpy_rows, atol=2e-5)
    assert np.abs(numpy_rows - windows.rows_RF[ends]).max() > 1  # the stage does something


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("size", [1e9, -1e9])
def test_the_largest_rows_there_can_be_have_a_finite_answer(cell: str, size: float, tmp_path: Path) -> None:
    graph = export(network_of(cell), tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    x_NTF = rows(2, LOOKBACK)
    x_NTF[:, -1] = np.float32(size)
    x_NTF[1, 3, 2] = np.float32(-size)
    found = graph.predict(x_NTF)
    assert np.isfinite(found.outputs_NK).all()
    assert np.isfinite(found.last_rows_NF).all()


def test_a_graph_that_answers_otherwise_is_never_published(tmp_path: Path) -> None:
    trained = network_of("LSTM")
    weights = dict(trained.weights)
    weights["head.bias"] = weights["head.bias"] + np.float32(0.001)
    wrong = replace(
        trained, graph=lambda: recurrent_graph(weights, cell="LSTM", num_layers=1, is_level_F=IS_LEVEL, head=HEAD)
    )
    with pytest.raises(TrainingError, match=r"differs from the network by 0\.001 at batch 1, length 3"):
        export(wrong, tmp_path, num_features=3, lengths=LENGTHS, seed=0)


def test_input_of_another_shape_is_a_prediction_error(tmp_path: Path) -> None:
    graph = export(network_of("LSTM"), tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    with pytest.raises(PredictionError, match="could not be run"):
        graph.predict(rows(1, LOOKBACK, num_features=4))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_int8_graph_really_quantises_the_lstm(layers: int, tmp_path: Path) -> None:
    export(network_of("LSTM", layers=layers), tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    int8 = quantize(tmp_path)
    graph = onnx.load(tmp_path / INT8_FILE).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("DynamicQuantizeLSTM") == layers
    assert "LSTM" not in operators
    x_NTF = rows(60, LOOKBACK)
    exact, rough = (
        np.concatenate([each.predict(window[None]).outputs_NK for window in x_NTF])
        for each in (OnnxNetwork(tmp_path / MODEL_FILE), int8)
    )
    assert not np.array_equal(exact, rough)
    assert np.abs(rough - exact).mean() < 0.1 * exact.std()


def test_graphs_of_before_weights_had_7_bits_are_not_clipped_either(tmp_path: Path) -> None:
    """On processors without VNNI onnxruntime takes kernels for them that add up in 32 bits."""
    exact = export(network_of("LSTM", units=64), tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    quantize_dynamic(str(tmp_path / MODEL_FILE), str(tmp_path / INT8_FILE), weight_type=QuantType.QInt8)
    x_NTF = rows(60, LOOKBACK)
    wanted, found = (
        np.concatenate([each.predict(window[None]).outputs_NK for window in x_NTF])
        for each in (exact, OnnxNetwork(tmp_path / INT8_FILE))
    )
    assert np.abs(found - wanted).mean() < 0.05 * wanted.std()


def test_no_sum_of_two_int8_products_leaves_16_bits(tmp_path: Path) -> None:
    """The largest there can be, on processors without VNNI: activations of 8 bits, weights of 7."""
    export(network_of("LSTM", units=16), tmp_path, num_features=3, lengths=[LOOKBACK], seed=0)
    quantize(tmp_path)
    weights = [
        onnx.numpy_helper.to_array(each)
        for each in onnx.load(tmp_path / INT8_FILE).graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
    ]
    assert len(weights) == 3  # the layer's inputs, its recurrence, the head
    assert max(int(np.abs(each.astype(np.int64)).max()) for each in weights) * 255 * 2 < 2**15


def test_a_sample_of_windows_is_spread_evenly_and_has_no_window_twice() -> None:
    ends = np.arange(1000, 6000)
    sample = evenly(ends, 700)
    assert len(set(sample.tolist())) == 700
    assert (sample[0], sample[-1]) == (1000, 5999)
    assert np.ptp(np.diff(sample)) <= 1
    assert evenly(ends, 5000) is ends


@pytest.mark.parametrize("length", [1, 7, 24])
def test_a_batch_has_as_many_rows_however_long_the_windows_are(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a family estimates of its memory counts on it; int8 is asked one window at a time."""
    monkeypatch.setattr(task, "SCORING_ROWS", 48)
    sizes: list[int] = []

    class Counting(Formula):
        def predict(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
            sizes.append(len(rows_NTF))
            return super().predict(rows_NTF, positions_N)

    double, windows_NTF = Counting(lambda x: 2 * x), rows(101, length)
    found = Predict(double, None)(windows_NTF)
    np.testing.assert_array_equal(found[:, 0], (2 * windows_NTF[:, -1, 0]).astype(np.float64))
    assert max(sizes) == 48 // length
    assert sum(sizes) == 101
    sizes.clear()
    np.testing.assert_array_equal(Predict(Formula(lambda x: x), double)(windows_NTF), found)
    assert sizes == [1] * 101
