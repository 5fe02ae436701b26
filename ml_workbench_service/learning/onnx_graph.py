"""The ONNX graph of a recurrent network.

Legend: N windows, T rows, F features, H units, K outputs. Gate order: torch i f g o and r z n, ONNX i o f c and z r h.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto

from ml_workbench_service.learning.heads import Head
from ml_workbench_service.learning.onnx_parts import Graph

GATES_IN_ONNX_ORDER: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def recurrent_graph(
    weights: Mapping[str, np.ndarray], *, cell: str, num_layers: int, is_level_F: Sequence[bool], head: Head
) -> ModelProto:
    """`rows` (N, T, F) → `outputs` (N, K) and `last_rows` (N, F), the last row after the window stage.

    Args:
        weights: `rnn.weight_ih_l0` …, `head.weight`, `head.bias`, named as torch names them.
        cell: "LSTM" or "GRU".
        num_layers: recurrent layers.
        is_level_F: the columns from which the window's mean is subtracted.
        head: what becomes of the last layer's values.
    """
    graph = Graph(is_level_F)
    num_units = weights["head.weight"].shape[1]
    graph.add("Transpose", [graph.windows], ["sequence_0"], perm=[1, 0, 2])
    for number in range(num_layers):
        _recurrent_layer(graph, weights, cell=cell, layer=number, is_last=number == num_layers - 1, num_units=num_units)
    graph.add("Squeeze", ["final_state", graph.constant("direction", np.array([0], np.int64))], ["hidden"])
    layer = [graph.constant("head_weight", weights["head.weight"]), graph.constant("head_bias", weights["head.bias"])]
    graph.add("Gemm", ["hidden", *layer], ["raw"], transB=1)
    head.add_to(graph, "raw")
    return graph.model(f"{cell.lower()}_forecaster", num_outputs=head.num_outputs)


def _recurrent_layer(
    graph: Graph, weights: Mapping[str, np.ndarray], *, cell: str, layer: int, is_last: bool, num_units: int
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
