"""The graph behind its row stage answers what serving's own scaling and network answer."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from common_lib.exceptions import PredictionError
from ml_workbench_service.learning.bundle.feature_graph import feature_graph
from ml_workbench_service.learning.data.scaling import LARGEST_ROW
from tests.learning.bundle.small_network import SYMBOLS, scaler_of, served, windows, write_network


def ask(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(["outputs", "last_rows"], inputs))


@pytest.mark.processor
def test_without_levels_the_answer_is_the_same_to_the_bit(tmp_path: Path) -> None:
    scaler, rows_NTF = scaler_of(SYMBOLS[:1], is_level=False), windows(500)
    rows_NTF[0, -1, 1] = 1e300  # cut as serving cuts it
    write_network(tmp_path / "model.onnx", is_level=False)
    found = ask(feature_graph(tmp_path / "model.onnx", scaler), features=rows_NTF)
    wanted = served(tmp_path / "model.onnx", scaler, SYMBOLS[:1] * 500, rows_NTF)
    assert found[1][0, 1] == LARGEST_ROW
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.processor
def test_each_window_is_scaled_by_its_own_symbol_and_its_levels_logarithms(tmp_path: Path) -> None:
    scaler, rows_NTF = scaler_of(SYMBOLS), windows(300)
    write_network(tmp_path / "model.onnx")
    symbols = [SYMBOLS[number % 3] for number in range(300)]
    found = ask(feature_graph(tmp_path / "model.onnx", scaler), features=rows_NTF, symbol=np.array(symbols))
    wanted = served(tmp_path / "model.onnx", scaler, symbols, rows_NTF)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert len({float(each) for each in found[0][:3, 0]}) == 3


def test_a_symbol_that_it_does_not_know_is_refused(tmp_path: Path) -> None:
    write_network(tmp_path / "model.onnx")
    model = feature_graph(tmp_path / "model.onnx", scaler_of(SYMBOLS))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"):
        ask(model, features=windows(1), symbol=np.array(["NZD/USD"]))


def test_a_policys_positions_stay_an_input(tmp_path: Path) -> None:
    write_network(tmp_path / "model.onnx", has_positions=True)
    scaler, rows_NTF = scaler_of(SYMBOLS[:1]), windows(3)
    held_N = np.array([-1.0, 0.0, 1.0], np.float32)
    found = ask(feature_graph(tmp_path / "model.onnx", scaler), features=rows_NTF, positions=held_N[:, None])
    wanted = served(tmp_path / "model.onnx", scaler, SYMBOLS[:1] * 3, rows_NTF, positions_N=held_N)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6, atol=1e-6)


def test_what_is_no_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x01" * 50)
    with pytest.raises(PredictionError, match=r"model\.onnx is no graph"):
        feature_graph(tmp_path / "model.onnx", scaler_of(SYMBOLS))
