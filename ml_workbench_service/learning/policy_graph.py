"""The ONNX graphs of policies: fully connected layers, and a table. Both read windows and the positions held.

Rows that a short window lacks are zeros after the window stage. Products with a constant matrix (Gemm) gave the same
bits for a window alone and among 2 to 300 others, for 10 to 1,000 inputs and 8 to 128 units; sums of whole numbers are
exact in any order.

Legend: N windows, T rows, L the lookback, F features, O = L * F + 1, A = 3 actions, E edges of a feature, B bins.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper

from ml_workbench_service.learning.onnx_parts import IR_VERSION, OPSET, Graph

NUM_ACTIONS = 3
OPERATORS = {"tanh": "Tanh", "relu": "Relu"}


class PolicyGraph(Graph):
    """A graph with a second input `positions` (N, 1)."""

    def model(self, name: str, *, num_outputs: int = NUM_ACTIONS) -> ModelProto:
        """`rows` (N, T, F), `positions` (N, 1) → `outputs` (N, A) and `last_rows` (N, F); checked."""
        float32 = TensorProto.FLOAT
        model = helper.make_model(
            helper.make_graph(
                self._nodes,
                name,
                [
                    helper.make_tensor_value_info("rows", float32, ["N", "T", self._num_features]),
                    helper.make_tensor_value_info("positions", float32, ["N", 1]),
                ],
                [
                    helper.make_tensor_value_info("outputs", float32, ["N", num_outputs]),
                    helper.make_tensor_value_info("last_rows", float32, ["N", self._num_features]),
                ],
                self._constants,
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="ml-workbench",
        )
        checker.check_model(model, full_check=True)
        return model


def layers_graph(
    weights: Mapping[str, np.ndarray],
    *,
    lookback: int,
    is_level_F: Sequence[bool],
    activation: str,
    gives_probabilities: bool,
) -> ModelProto:
    """The graph of a `PolicyNetwork` with these weights (`layers.0.weight`, `layers.0.bias` …)."""
    graph = PolicyGraph(is_level_F)
    num_values = lookback * len(is_level_F)
    graph.add("Shape", ["rows"], ["num_rows"], start=1, end=2)
    graph.add("Sub", [graph.constant("lookback", np.array([lookback])), "num_rows"], ["num_missing"])
    none, after = graph.constant("none", np.array([0])), graph.constant("none_after", np.array([0, 0, 0]))
    graph.add("Concat", [none, "num_missing", none, after], ["paddings"], axis=0)
    graph.add("Pad", [graph.windows, "paddings"], ["whole_windows"])
    graph.add("Reshape", ["whole_windows", graph.constant("flat", np.array([-1, num_values]))], ["values"])
    graph.add("Concat", ["values", "positions"], ["hidden_0"], axis=1)
    num_layers = len(weights) // 2
    for number in range(num_layers):
        layer = [graph.constant(f"{part}_{number}", weights[f"layers.{number}.{part}"]) for part in ("weight", "bias")]
        graph.add("Gemm", [f"hidden_{number}", *layer], [f"layer_{number}"], transB=1)
        if number + 1 < num_layers:
            graph.add(OPERATORS[activation], [f"layer_{number}"], [f"hidden_{number + 1}"])
    last = f"layer_{num_layers - 1}"
    if gives_probabilities:
        graph.add("Softmax", [last], ["outputs"], axis=-1)
    else:
        graph.add("Identity", [last], ["outputs"])
    return graph.model("policy")


def table_graph(values_SA: np.ndarray, edges_FE: np.ndarray, *, is_level_F: Sequence[bool]) -> ModelProto:
    """The graph of a table: bins of the last row's features and the rounded position choose a row of values.

    Args:
        values_SA: float32, state = bin * 3 + position + 1.
        edges_FE: float32, ascending; beyond any value where a feature has fewer bins.
        is_level_F: the columns from which the window's mean is subtracted.
    """
    graph = PolicyGraph(is_level_F)
    num_features, num_edges = edges_FE.shape
    strides_F = (num_edges + 1) ** np.arange(num_features)[::-1] * NUM_ACTIONS
    last_axis = graph.constant("last_axis", np.array([-1]))
    graph.add("Unsqueeze", ["last_rows", last_axis], ["values_of_features"])
    graph.add("Greater", ["values_of_features", graph.constant("edges", edges_FE)], ["is_above"])
    graph.add("Cast", ["is_above"], ["ones_above"], to=TensorProto.INT64)
    graph.add("ReduceSum", ["ones_above", last_axis], ["bins"], keepdims=0)
    graph.add("Mul", ["bins", graph.constant("strides", strides_F.astype(np.int64))], ["places"])
    graph.add("ReduceSum", ["places", last_axis], ["first_state"], keepdims=1)
    graph.add("Round", ["positions"], ["rounded"])
    graph.add("Cast", ["rounded"], ["held"], to=TensorProto.INT64)
    graph.add(
        "Clip", ["held", graph.constant("short", np.int64(-1)), graph.constant("long", np.int64(1))], ["position"]
    )
    graph.add("Add", ["position", graph.constant("one", np.array([1]))], ["position_place"])
    graph.add("Add", ["first_state", "position_place"], ["state"])
    graph.add("Squeeze", ["state", last_axis], ["states"])
    graph.add("Gather", [graph.constant("table", values_SA), "states"], ["outputs"], axis=0)
    return graph.model("policy_table")
