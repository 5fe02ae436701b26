"""Recurrent networks in torch and as an ONNX graph: layers over the window, one linear layer on the last state.

Legend: N windows, T rows, F features, H units, K outputs. Gate order: torch i f g o and r z n, ONNX i o f c and z r h.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto
from torch import Tensor, nn

from ml_workbench_service.learning.networks.heads import Head
from ml_workbench_service.learning.networks.onnx_builder import Graph
from ml_workbench_service.learning.networks.windowed import WindowedNetwork

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
    inputs = [f"sequence_{layer}", *gate_constants(graph, weights, f"rnn.{{}}_l{layer}", f"{{}}_{layer}", cell=cell)]
    attributes = {"hidden_size": num_units} | ({"linear_before_reset": 1} if cell == "GRU" else {})
    if is_last:
        graph.add(cell, inputs, ["", "final_state"], **attributes)
        return
    graph.add(cell, inputs, [f"states_{layer}"], **attributes)
    one = graph.constant(f"directions_{layer}", np.array([1], np.int64))
    graph.add("Squeeze", [f"states_{layer}", one], [f"sequence_{layer + 1}"])


def gate_constants(
    graph: Graph, weights: Mapping[str, np.ndarray], weight_name: str, constant_name: str, *, cell: str
) -> list[str]:
    """Input weights, recurrent weights and biases of a layer of torch's in ONNX's order of the gates; their names."""
    order = GATES_IN_ONNX_ORDER[cell]

    def reordered(name: str) -> np.ndarray:
        gates = np.split(weights[weight_name.format(name)], len(order))
        return np.concatenate([gates[gate] for gate in order])

    bias = np.concatenate([reordered("bias_ih"), reordered("bias_hh")])
    values = {"input_weight": reordered("weight_ih"), "recurrent_weight": reordered("weight_hh"), "bias": bias}
    return [graph.constant(constant_name.format(name), value[None]) for name, value in values.items()]


KERNEL_SIZES = {"LSTM": 100_000, "GRU": 2_000_000}
"""Steps x windows x units up to which our kernel on one thread keeps up with torch's on two."""


class RecurrentForecaster(WindowedNetwork):
    """Window stage, recurrent layers, dropout, one linear layer on the last state."""

    def __init__(
        self, cell: str, *, is_level_F: tuple[bool, ...], units: int, layers: int, head: Head, dropout: float
    ) -> None:
        super().__init__(is_level_F)
        self.finish = head.finish
        between = dropout if layers > 1 else 0.0
        self.rnn: nn.RNNBase = getattr(nn, cell)(len(is_level_F), units, layers, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(units, head.num_raw)

    def forward(self, rows_TNF: Tensor) -> Tensor:
        """Time-major rows → (N, K) in units of the label scale."""
        windows_TNF = self.window_stage(rows_TNF)
        state_NH = self._by_kernel(windows_TNF) if self._suits_kernel(windows_TNF) else self.rnn(windows_TNF)[0][-1]
        return self.finish(self.head(self.dropout(state_NH)))

    def _suits_kernel(self, windows_TNF: Tensor) -> bool:
        """Training on a processor, as long as torch's bookkeeping rather than its arithmetic is the cost."""
        size = windows_TNF.shape[0] * windows_TNF.shape[1] * self.rnn.hidden_size
        return self.training and windows_TNF.device.type == "cpu" and size <= KERNEL_SIZES[self.rnn.mode]

    def _by_kernel(self, states_TNX: Tensor) -> Tensor:
        """The last layer's last state."""
        from ml_workbench_service.learning.networks.recurrent_kernel import (  # half a second of numba
            CELLS,
            RecurrentPass,
        )

        cell, last = CELLS[self.rnn.mode], self.rnn.num_layers - 1
        for layer in range(self.rnn.num_layers):
            if layer:
                states_TNX = nn.functional.dropout(states_TNX, self.rnn.dropout, training=True)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = (getattr(self.rnn, f"{name}_l{layer}") for name in names)
            states_TNX = RecurrentPass.apply(cell, layer == last, states_TNX, *weights)  # type: ignore[no-untyped-call]
        return states_TNX
