"""ONNX graph of the autoencoder, and the two things that torch, ONNX and the isolation forest compute alike.

The *activity* of a row is a root of the mean square of its last four changes, nearly its logarithm: it falls far
below all it ever was where a price stands still. Square roots, because onnxruntime's Log gives the last elements of a
batch other last bits than the rest; a square root has one correct answer.

Legend: N windows, T rows, F features, C = 2F channels (rows, then activity), H units, B numbers of the bottleneck.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto

from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.learning.networks.onnx_builder import Graph
from ml_workbench_service.learning.networks.recurrent import gate_constants

ACTIVITY_ROWS = 4
"""Changes whose mean square is the activity."""
ACTIVITY_FLOOR = 1e-6
"""Added to it: changes under a thousandth of a feature's deviation are none."""
ACTIVITY_ROOTS = 6
"""Square roots taken one after the other: the 64th root of the mean square. With four and a larger floor, a forest over
two features missed three stale prices of four; with these it finds all."""
RECENCY_HALF_LIFE = 2.0
"""Rows after which an error counts half; of 1, 2 and 4 none is much better on real bars, no decay finds far less."""
LONGEST_WINDOW = 1024
"""Rows of the longest window; the largest lookback that a family allows."""


def recency(num_rows: int) -> Floats32:
    """Weights of a window's rows (T,), oldest first, that sum to one."""
    weight = _undivided(num_rows)
    divided: Floats32 = weight / weight.sum(dtype=np.float32)
    return divided


def _undivided(num_rows: int) -> Floats32:
    ages = np.arange(num_rows - 1, -1, -1)
    return np.asarray(0.5 ** (ages / RECENCY_HALF_LIFE), dtype=np.float32)


def autoencoder_graph(weights: Mapping[str, np.ndarray], *, is_level_F: Sequence[bool]) -> ModelProto:
    """`rows` (N, T, F) → `outputs` (N, 1 + F): the window's error and each feature's, and `last_rows` (N, F).

    Args:
        weights: `encoder.weight_ih_l0` … as torch names them, and the three buffers.
        is_level_F: the columns from which the window's mean is subtracted.
    """
    graph = Graph(is_level_F)
    _channels(graph, weights)
    _reconstruction(graph, weights)
    graph.add("Sub", ["sequence", "told_back"], ["residuals"])
    graph.add("MatMul", ["residuals", graph.constant("whitening", weights["whitening_CC"])], ["distances"])
    graph.add("Mul", ["distances", "distances"], ["errors"])
    _summary(graph, len(is_level_F))
    return graph.model("autoencoder", num_outputs=1 + len(is_level_F))


def add_activity(graph: Graph) -> str:
    """Adds the activity of every row of `rows` and returns its name (N, T, F)."""
    one, last = graph.constant("second_row", np.array([1])), graph.constant("last_row", np.array([-1]))
    zero, time = graph.constant("first_row", np.array([0])), graph.constant("time_axis", np.array([1]))
    end = graph.constant("end", np.array([np.iinfo(np.int64).max]))
    graph.add("Slice", ["rows", one, end, time], ["later"])
    graph.add("Slice", ["rows", zero, last, time], ["earlier"])
    graph.add("Sub", ["later", "earlier"], ["changes"])
    graph.add("Mul", ["changes", "changes"], ["squares"])
    pads = graph.constant("pads", np.array([0, ACTIVITY_ROWS, 0, 0, 0, 0]))
    graph.add("Pad", ["squares", pads], ["padded"], mode="edge")
    graph.add("Shape", ["rows"], ["num_rows"], start=1, end=2)
    total = ""
    for offset in range(ACTIVITY_ROWS):
        begin = graph.constant(f"offset_{offset}", np.array([offset]))
        graph.add("Add", [begin, "num_rows"], [f"offset_end_{offset}"])
        graph.add("Slice", ["padded", begin, f"offset_end_{offset}", time], [f"square_{offset}"])
        if offset:
            graph.add("Add", [total, f"square_{offset}"], [f"sum_{offset}"])
        total = f"sum_{offset}" if offset else "square_0"
    graph.add("Mul", [total, graph.constant("share", np.float32(1 / ACTIVITY_ROWS))], ["mean_square"])
    graph.add("Add", ["mean_square", graph.constant("floor", np.float32(ACTIVITY_FLOOR))], ["root_0"])
    for number in range(ACTIVITY_ROOTS):
        graph.add("Sqrt", [f"root_{number}"], [f"root_{number + 1}"])
    return f"root_{ACTIVITY_ROOTS}"


def _channels(graph: Graph, weights: Mapping[str, np.ndarray]) -> None:
    """`sequence` (T, N, C)."""
    activity = add_activity(graph)
    graph.add("Sub", [activity, graph.constant("activity_center", weights["activity_center_F"])], ["centred_activity"])
    scale = graph.constant("activity_scale", weights["activity_scale_F"])
    graph.add("Div", ["centred_activity", scale], ["scaled_activity"])
    graph.add("Concat", [graph.windows, "scaled_activity"], ["channels"], axis=2)
    graph.add("Transpose", ["channels"], ["sequence"], perm=[1, 0, 2])


def _reconstruction(graph: Graph, weights: Mapping[str, np.ndarray]) -> None:
    """`told_back` (T, N, C); the decoder runs backwards in time, so that it tells the newest row first."""
    _lstm(graph, weights, "encoder", "sequence", ["", "final_state"], direction="forward")
    graph.add("Squeeze", ["final_state", graph.constant("directions", np.array([0]))], ["state"])
    narrow = [
        graph.constant("narrow_weight", weights["narrow.weight"]),
        graph.constant("narrow_bias", weights["narrow.bias"]),
    ]
    graph.add("Gemm", ["state", *narrow], ["told"], transB=1)
    graph.add("Concat", ["num_rows", graph.constant("ones", np.array([1, 1]))], ["repeats"], axis=0)
    graph.add("Expand", ["told", "repeats"], ["told_again"])
    _lstm(graph, weights, "decoder", "told_again", ["decoder_states"], direction="reverse")
    graph.add("Squeeze", ["decoder_states", graph.constant("decoder_directions", np.array([1]))], ["states"])
    graph.add("MatMul", ["states", graph.constant("head_weight", weights["head.weight"].T)], ["undisplaced"])
    graph.add("Add", ["undisplaced", graph.constant("head_bias", weights["head.bias"])], ["told_back"])


def _lstm(
    graph: Graph, weights: Mapping[str, np.ndarray], name: str, sequence: str, outputs: list[str], *, direction: str
) -> None:
    inputs = [sequence, *gate_constants(graph, weights, f"{name}.{{}}_l0", f"{name}_{{}}", cell="LSTM")]
    num_units = weights[f"{name}.weight_hh_l0"].shape[1]
    graph.add("LSTM", inputs, outputs, hidden_size=num_units, direction=direction)


def _summary(graph: Graph, num_features: int) -> None:
    """From `errors` (T, N, C) to `outputs`; sums over rows and features are poolings, see `onnx_builder`."""
    undivided = graph.constant("undivided", _undivided(LONGEST_WINDOW))
    time, end = (
        graph.constant("rows_axis", np.array([0])),
        graph.constant("rows_end", np.array([np.iinfo(np.int64).max])),
    )
    graph.add("Neg", ["num_rows"], ["rows_begin"])
    graph.add("Slice", [undivided, "rows_begin", end, time], ["undivided_rows"])
    graph.add("ReduceSum", ["undivided_rows"], ["divisor"])
    graph.add("Div", ["undivided_rows", "divisor"], ["recency"])
    graph.add("Transpose", ["errors"], ["errors_by_row"], perm=[1, 2, 0])
    graph.add("Mul", ["errors_by_row", "recency"], ["weighted"])
    graph.add("GlobalAveragePool", ["weighted"], ["mean_errors"])
    graph.add("Cast", ["num_rows"], ["num_rows_float"], to=1)
    graph.add("Mul", ["mean_errors", "num_rows_float"], ["channel_errors"])
    graph.add("Reshape", ["channel_errors", graph.constant("halves", np.array([0, 2, num_features]))], ["by_half"])
    graph.add("Transpose", ["by_half"], ["half_last"], perm=[0, 2, 1])
    graph.add("GlobalAveragePool", ["half_last"], ["feature_errors"])
    graph.add("Reshape", ["feature_errors", graph.constant("row", np.array([0, 1, num_features]))], ["errors_row"])
    graph.add("GlobalAveragePool", ["errors_row"], ["mean_error"])
    graph.add("Concat", ["mean_error", "errors_row"], ["all_errors"], axis=2)
    graph.add("Reshape", ["all_errors", graph.constant("flat", np.array([0, 1 + num_features]))], ["outputs"])
