"""The ONNX graph of a recurrent network, written node by node.

torch's exporter was measured and left: it takes 4 to 13 seconds, fixes the window's length for more than one layer,
and leaves the weights behind slices so that quantisation skips the LSTM. This graph has no node too many, any batch
and length, and answers faster. `export.check` compares it with the trained network.

Legend: N windows, T rows, F features, H units, K outputs. Gate order: torch i f g o and r z n, ONNX i o f c and z r h.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

OPSET = 20
IR_VERSION = 10
GATES_IN_ONNX_ORDER: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


class _Graph:
    """Nodes and constants in the order they are added."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))


def recurrent_graph(
    weights: Mapping[str, np.ndarray], *, cell: str, num_layers: int, is_level_F: Sequence[bool]
) -> ModelProto:
    """`rows` (N, T, F) → `outputs` (N, K) and `last_rows` (N, F), the last row after the window stage.

    Args:
        weights: `rnn.weight_ih_l0` …, `head.weight`, `head.bias`, named as torch names them.
        cell: "LSTM" or "GRU".
        num_layers: recurrent layers.
        is_level_F: the columns from which the window's mean is subtracted.
    """
    graph = _Graph()
    num_features = len(is_level_F)
    num_units, num_outputs = weights["head.weight"].shape[1], weights["head.weight"].shape[0]
    windows = _window_stage(graph, is_level_F)
    graph.add("Gather", [windows, graph.constant("last", np.int64(-1))], ["last_rows"], axis=1)
    graph.add("Transpose", [windows], ["sequence_0"], perm=[1, 0, 2])
    for layer in range(num_layers):
        _recurrent_layer(graph, weights, cell=cell, layer=layer, is_last=layer == num_layers - 1, num_units=num_units)
    graph.add("Squeeze", ["final_state", graph.constant("direction", np.array([0], np.int64))], ["hidden"])
    head = [graph.constant("head_weight", weights["head.weight"]), graph.constant("head_bias", weights["head.bias"])]
    graph.add("Gemm", ["hidden", *head], ["outputs"], transB=1)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            f"{cell.lower()}_forecaster",
            [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", "T", num_features])],
            [
                helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["N", num_outputs]),
                helper.make_tensor_value_info("last_rows", TensorProto.FLOAT, ["N", num_features]),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ml-workbench",
    )
    checker.check_model(model, full_check=True)
    return model


def _window_stage(graph: _Graph, is_level_F: Sequence[bool]) -> str:
    """Level columns lose their mean over the window; without any, the rows pass as they are.

    The mean is a pooling over each feature's own T values: onnxruntime's ReduceMean adds them up in an order that
    depends on the batch, so that the last bits of an answer would depend on its neighbours.
    """
    if not any(is_level_F):
        return "rows"
    graph.add("Transpose", ["rows"], ["features_first"], perm=[0, 2, 1])
    graph.add("GlobalAveragePool", ["features_first"], ["feature_means"])
    graph.add("Transpose", ["feature_means"], ["mean"], perm=[0, 2, 1])
    graph.add("Mul", ["mean", graph.constant("is_level", np.array(is_level_F, np.float32))], ["shift"])
    graph.add("Sub", ["rows", "shift"], ["windows"])
    return "windows"


def _recurrent_layer(
    graph: _Graph, weights: Mapping[str, np.ndarray], *, cell: str, layer: int, is_last: bool, num_units: int
) -> None:
    """One layer; the last one leaves its final state, the others their whole sequence."""
    order = GATES_IN_ONNX_ORDER[cell]

    def reordered(name: str) -> np.ndarray:
        gates = np.split(weights[f"rnn.{name}_l{layer}"], len(order))
        return np.concatenate([gates[gate] for gate in order])

    inputs = [
        f"sequence_{layer}",
        graph.constant(f"input_weight_{layer}", reordered("weight_ih")[None]),
        graph.constant(f"recurrent_weight_{layer}", reordered("weight_hh")[None]),
        graph.constant(f"bias_{layer}", np.concatenate([reordered("bias_ih"), reordered("bias_hh")])[None]),
    ]
    attributes = {"hidden_size": num_units} | ({"linear_before_reset": 1} if cell == "GRU" else {})
    if is_last:
        graph.add(cell, inputs, ["", "final_state"], **attributes)
        return
    graph.add(cell, inputs, [f"states_{layer}"], **attributes)
    one = graph.constant(f"directions_{layer}", np.array([1], np.int64))
    graph.add("Squeeze", [f"states_{layer}", one], [f"sequence_{layer + 1}"])
