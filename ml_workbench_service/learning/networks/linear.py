"""Linear forecaster: one linear layer over the window, in torch and as a graph.

A window shorter than the lookback meets the weights of its own bars, the newest ones: as if what is missing had been
average.

Legend: N windows, T rows, L the lookback, F features, K outputs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ml_workbench_service.learning.networks.heads import Head
from ml_workbench_service.learning.networks.onnx_builder import Graph
from ml_workbench_service.learning.networks.windowed import WindowedNetwork

LAST = np.iinfo(np.int64).max


class LinearForecaster(WindowedNetwork):
    """Window stage, then for each output one weight for each bar and feature, and a bias.

    In training the window stage is applied to the weights: both are linear, and the weights are as many as one window's
    values, not a batch's.
    """

    joins_rows = True

    def __init__(self, *, is_level_F: tuple[bool, ...], lookback: int, head: Head) -> None:
        super().__init__(is_level_F)
        self.finish = head.finish
        bound = (lookback * len(is_level_F)) ** -0.5
        weight_KLF = torch.empty(head.num_raw, lookback, len(is_level_F)).uniform_(-bound, bound)
        self.weight_KLF = nn.Parameter(weight_KLF * 0.1)
        self.bias_K = nn.Parameter(torch.zeros(head.num_raw))

    def forward(self, rows_TNF: Tensor) -> Tensor:
        """Time-major rows → (N, K) in units of the label scale."""
        weight_KTF: Tensor = self.weight_KLF
        if len(rows_TNF) < weight_KTF.shape[1]:  # most windows are whole, and a slice costs time in both directions
            weight_KTF = weight_KTF[:, -len(rows_TNF) :]
        if self.training:
            weight_KTF = self.window_stage(weight_KTF.transpose(0, 1)).transpose(0, 1)
        else:
            rows_TNF = self.window_stage(rows_TNF)
        values_NV, weight_KV = rows_TNF.transpose(0, 1).flatten(start_dim=1), weight_KTF.flatten(start_dim=1)
        return self.finish(nn.functional.linear(values_NV, weight_KV, self.bias_K))


def linear_graph(
    weights: Mapping[str, np.ndarray], *, is_level_F: Sequence[bool], head: Head, has_positions: bool = False
) -> ModelProto:
    """`rows` (N, T, F) → `outputs` (N, K) and `last_rows` (N, F).

    The sum is a pooling over each window's own products, times their number: a matrix product's last bits would depend
    on the batch.

    Args:
        has_positions: whether it is a policy's, asked with the position held, which makes no difference here.
    """
    graph = Graph(is_level_F, has_positions=has_positions)
    weight = graph.constant("weight", weights["weight_KLF"])
    graph.add("Shape", ["rows"], ["num_rows"], start=1, end=2)
    graph.add("Neg", ["num_rows"], ["begin"])
    ends = [graph.constant("end", np.array([LAST])), graph.constant("time", np.array([1]))]
    graph.add("Slice", [weight, "begin", *ends], ["weights_of_rows"])
    graph.add("Unsqueeze", [graph.windows, graph.constant("output_axis", np.array([1]))], ["windows_of_outputs"])
    graph.add("Mul", ["windows_of_outputs", "weights_of_rows"], ["products"])
    graph.add("GlobalAveragePool", ["products"], ["mean_products"])
    graph.add("Flatten", ["mean_products"], ["means"])
    graph.add("Size", [graph.windows], ["num_values"])
    graph.add("Shape", ["rows"], ["num_windows"], start=0, end=1)
    graph.add("Div", ["num_values", "num_windows"], ["num_products"])
    graph.add("Cast", ["num_products"], ["num_as_float"], to=1)
    graph.add("Mul", ["means", "num_as_float"], ["sums"])
    graph.add("Add", ["sums", graph.constant("bias", weights["bias_K"])], ["raw"])
    head.add_to(graph, "raw")
    return graph.model("linear_forecaster", num_outputs=head.num_outputs)
