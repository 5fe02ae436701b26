"""One graph in onnxruntime: on the provider that was asked for, or an error; never quietly on another one."""

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from common_lib.exceptions import PredictionError
from ml_workbench_service.accelerators import inference_providers
from ml_workbench_service.learning.bundle.onnx_runtime import OnnxNetwork

pytestmark = pytest.mark.processor


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A graph whose output is the mean of the window's first column, with the interface of every bundle."""
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", "T", 2])
    outputs = helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["N", 1])
    last_rows = helper.make_tensor_value_info("last_rows", TensorProto.FLOAT, ["N", 2])
    constants = {"last": [-1], "first": [0], "axes": [1]}
    nodes = [
        helper.make_node("Gather", ["rows", "minus_one"], ["last_rows"], axis=1),
        helper.make_node("ReduceMean", ["rows", "axes"], ["means"], keepdims=0),
        helper.make_node("Gather", ["means", "first"], ["outputs"], axis=1),
    ]
    initializers = [helper.make_tensor(name, TensorProto.INT64, [1], value) for name, value in constants.items()]
    initializers.append(helper.make_tensor("minus_one", TensorProto.INT64, [], [-1]))
    graph = helper.make_graph(nodes, "mean", [rows], [outputs, last_rows], initializers)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


X_NTF = np.arange(12, dtype=np.float32).reshape(2, 3, 2)


def test_the_processor_answers_unless_something_else_is_asked_for(file: Path) -> None:
    network = OnnxNetwork(file)
    answer = network.predict(X_NTF)
    assert network.provider == "CPUExecutionProvider"
    assert answer.outputs_NK.tolist() == [[2.0], [8.0]]
    assert answer.last_rows_NF.tolist() == X_NTF[:, -1].tolist()


def test_what_the_accelerators_offer_here_answers_alike(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    offered = OnnxNetwork(file, providers=inference_providers())
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    np.testing.assert_allclose(offered.predict(X_NTF).outputs_NK, OnnxNetwork(file).predict(X_NTF).outputs_NK)


def test_the_providers_are_tried_in_their_order(file: Path) -> None:
    for name in onnxruntime.get_available_providers():
        if name in ("AzureExecutionProvider", "CPUExecutionProvider"):  # these run wherever they are listed
            network = OnnxNetwork(file, providers=(name, "CPUExecutionProvider")[: 1 + (name[0] == "A")])
            assert network.provider == name
            assert network.predict(X_NTF).outputs_NK.tolist() == [[2.0], [8.0]]


def test_a_provider_that_onnxruntime_lacks_is_an_error_and_no_quiet_fallback(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for missing in ("NoSuchExecutionProvider", ("NoSuchExecutionProvider", {"device_id": "0"})):
        with pytest.raises(PredictionError, match=r"has no NoSuchExecutionProvider here, only .*CPU.* ACCELERATOR"):
            OnnxNetwork(file, providers=(missing, "CPUExecutionProvider"))
    assert capsys.readouterr().out == ""


def test_an_input_that_does_not_fit_is_refused_clearly(file: Path) -> None:
    with pytest.raises(PredictionError, match="could not be run on this input"):
        OnnxNetwork(file).predict(np.zeros((1, 3, 5), dtype=np.float32)[:, :, :3])
