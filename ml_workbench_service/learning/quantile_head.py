"""Quantiles that never cross: a median for each target, and how far every other quantile is from its neighbour.

A network's raw values are, target by target and quantiles ascending, the median itself and elsewhere a raw step. A step
is made positive by squareplus, (x + sqrt(x² + 4)) / 2 (Barron 2021, arXiv:2112.11687), and steps are added up from the
median outward: a higher quantile is never below a lower one, by construction and to the last bit, in training and in
serving (a sum with one more step that is not negative is rounded to no less). Not softplus: onnxruntime's depends in
its last bit on a value's place in the batch, while squareplus is made of operations that it rounds exactly.

The loss is the pinball loss (Koenker and Bassett, Econometrica 46(1), 1978), least in the mean at the quantile. Fails
where the tail is thin: a 1 % quantile learns from one window in a hundred.

Legend: N windows, K targets, Q quantiles, R = K x Q raw values.
"""

from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import torch
from torch import Tensor, nn

from ml_workbench_service.learning.heads import Head
from ml_workbench_service.learning.onnx_parts import Graph

MEDIAN = 0.5


class QuantileHead(Head):
    """Outputs target by target, quantiles ascending, trained by the pinball loss.

    Args:
        targets: names.
        quantiles: ascending, 0.5 among them.
    """

    def __init__(self, targets: Sequence[str], quantiles: Sequence[float]) -> None:
        super().__init__(quantile_names(targets, quantiles), PinballLoss(quantiles))
        self._num_targets = len(targets)
        self._quantiles = tuple(quantiles)

    def finish(self, raw_NR: Tensor) -> Tensor:
        """Raw values → quantiles (N, K x Q)."""
        return quantiles_from_raw(raw_NR, num_targets=self._num_targets, quantiles=self._quantiles)

    def add_to(self, graph: Graph, raw: str) -> None:
        """The same as nodes."""
        add_quantile_nodes(graph, raw, num_targets=self._num_targets, quantiles=self._quantiles)


class PinballLoss:
    """Each quantile's pinball loss: q of what the label is above the answer, 1 - q of what it is below."""

    def __init__(self, quantiles: Sequence[float]) -> None:
        self._quantiles = tuple(quantiles)

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor) -> Tensor:
        """Mean over windows, targets and quantiles."""
        return self._mean_loss(network(rows_TNF).view(*labels_NK.shape, -1), labels_NK)

    def baseline(self, labels_NK: Tensor) -> float:
        """The loss of the best constants there are: these labels' own quantiles."""
        levels_Q = labels_NK.new_tensor(self._quantiles, dtype=torch.float64)
        constants_KQ = torch.quantile(labels_NK.double(), levels_Q, dim=0).T
        return float(self._mean_loss(constants_KQ, labels_NK.double()))

    def _mean_loss(self, answers_NKQ: Tensor, labels_NK: Tensor) -> Tensor:
        above_NKQ = labels_NK[..., None] - answers_NKQ
        levels_Q = above_NKQ.new_tensor(self._quantiles)
        return torch.maximum(levels_Q * above_NKQ, (levels_Q - 1) * above_NKQ).mean()


def num_raw(num_targets: int, quantiles: Sequence[float]) -> int:
    """Raw values that a network's last layer needs."""
    return num_targets * len(quantiles)


def quantile_names(targets: Sequence[str], quantiles: Sequence[float]) -> tuple[str, ...]:
    """`<target>_q` and the quantile's decimals, two at least: 0.05 → `_q05`, 0.5 → `_q50`, 0.025 → `_q025`."""
    decimals = [format(Decimal(str(quantile)), "f").partition(".")[2].ljust(2, "0") for quantile in quantiles]
    return tuple(f"{target}_q{each}" for target in targets for each in decimals)


def quantiles_from_raw(raw_NR: Tensor, *, num_targets: int, quantiles: Sequence[float]) -> Tensor:
    """Raw values → quantiles (N, K x Q), target by target and ascending."""
    sizes = _sizes(quantiles)
    raw_NKQ = raw_NR.view(len(raw_NR), num_targets, len(quantiles))
    roots_NKQ = (raw_NKQ * raw_NKQ + 4).sqrt()
    steps_NKQ = ((raw_NKQ + roots_NKQ) * 0.5).clamp(min=0)  # torch's root, unlike the graph's, may be a last bit short
    _, median_NK1, _ = torch.split(raw_NKQ, sizes, dim=2)
    down, _, up = torch.split(steps_NKQ, sizes, dim=2)
    lower, upper = median_NK1 - down.flip(2).cumsum(2).flip(2), median_NK1 + up.cumsum(2)
    return torch.cat((lower, median_NK1, upper), dim=2).flatten(1)


def add_quantile_nodes(
    graph: Graph, raw: str, *, num_targets: int, quantiles: Sequence[float], outputs: str = "outputs"
) -> None:
    """The same as nodes, from the value called `raw` to the one called `outputs`."""
    shape = graph.constant("targets_by_quantiles", np.array([-1, num_targets, len(quantiles)]))
    sizes = graph.constant("below_median_above", np.array(_sizes(quantiles)))
    by_quantile = graph.constant("by_quantile", np.int64(2))
    graph.add("Reshape", [raw, shape], ["raw_steps"])
    graph.add("Mul", ["raw_steps", "raw_steps"], ["squares"])
    graph.add("Add", ["squares", graph.constant("four", np.float32(4))], ["squares_plus"])
    graph.add("Sqrt", ["squares_plus"], ["roots"])
    graph.add("Add", ["raw_steps", "roots"], ["twice_the_steps"])
    graph.add("Mul", ["twice_the_steps", graph.constant("half", np.float32(0.5))], ["steps"])
    graph.add("Split", ["raw_steps", sizes], ["raw_down", "median", "raw_up"], axis=2)
    graph.add("Split", ["steps", sizes], ["steps_down", "step_of_median", "steps_up"], axis=2)
    graph.add("CumSum", ["steps_down", by_quantile], ["down"], reverse=1)
    graph.add("CumSum", ["steps_up", by_quantile], ["up"])
    graph.add("Sub", ["median", "down"], ["lower"])
    graph.add("Add", ["median", "up"], ["upper"])
    graph.add("Concat", ["lower", "median", "upper"], ["quantiles"], axis=2)
    graph.add("Flatten", ["quantiles"], [outputs])


def _sizes(quantiles: Sequence[float]) -> list[int]:
    """How many quantiles are below the median, one, and how many above it."""
    below = tuple(quantiles).index(MEDIAN)
    return [below, 1, len(quantiles) - below - 1]
