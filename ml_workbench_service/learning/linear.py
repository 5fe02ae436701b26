"""One linear layer over the window, in torch and as a graph.

A window shorter than the lookback meets the weights of its own bars, the newest ones: as if what is missing had been
average.

Legend: N windows, T rows, L the lookback, F features, K outputs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ml_workbench_service.learning.onnx_parts import Graph
from ml_workbench_service.learning.windowed import WindowedNetwork

LAST = np.iinfo(np.int64).max


class LinearForecaster(WindowedNetwork):
    """Window stage, then one weight for each bar and feature, and a bias."""

    def __init__(self, *, is_level_F: tuple[bool, ...], lookback: int) -> None:
        super().__init__(is_level_F)
        bound = (lookback * len(is_level_F)) ** -0.5
        self.weight_LF = nn.Parameter(torch.empty(lookback, len(is_level_F)).uniform_(-bound, bound) * 0.1)
        self.bias_K = nn.Parameter(torch.zeros(1))

    def forward(self, rows_TNF: Tensor) -> Tensor:
        """Time-major rows → (N, 1) in units of the label scale."""
        windows_TNF = self.window_stage(rows_TNF)
        answers_N = torch.einsum("tnf,tf->n", windows_TNF, self.weight_LF[-len(windows_TNF) :])
        return (answers_N + self.bias_K)[:, None]


def linear_graph(weights: Mapping[str, np.ndarray], *, is_level_F: Sequence[bool]) -> ModelProto:
    """`rows` (N, T, F) → `outputs` (N, 1) and `last_rows` (N, F).

    The sum is a pooling over each window's own products, times their number: a matrix product's last bits would depend
    on the batch.
    """
    graph = Graph(is_level_F)
    weight = graph.constant("weight", weights["weight_LF"])
    graph.add("Shape", ["rows"], ["num_rows"], start=1, end=2)
    graph.add("Neg", ["num_rows"], ["begin"])
    ends = [graph.constant("end", np.array([LAST])), graph.constant("time", np.array([0]))]
    graph.add("Slice", [weight, "begin", *ends], ["weights_of_rows"])
    graph.add("Mul", [graph.windows, "weights_of_rows"], ["products"])
    graph.add("Reshape", ["products", graph.constant("one_channel", np.array([0, 1, -1]))], ["channel"])
    graph.add("GlobalAveragePool", ["channel"], ["mean_product"])
    graph.add("Size", ["weights_of_rows"], ["num_products"])
    graph.add("Cast", ["num_products"], ["num_as_float"], to=1)
    graph.add("Mul", ["mean_product", "num_as_float"], ["sum"])
    graph.add("Add", ["sum", graph.constant("bias", weights["bias_K"])], ["answer"])
    graph.add("Reshape", ["answer", graph.constant("column", np.array([0, 1]))], ["outputs"])
    return graph.model("linear_forecaster", num_outputs=1)
