"""Heads: what becomes of a network's last linear layer, in torch and in its graph, and what it is trained for.

Legend: N windows, K outputs. `raw` are the values of the last layer.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ml_workbench_service.contracts.training import Target
from ml_workbench_service.learning.family import Assignment
from ml_workbench_service.learning.objectives import Objective, SquaredError
from ml_workbench_service.learning.onnx_parts import Graph


class Head:
    """The raw values are the outputs: point forecasts in units of the label scale, or the logits of classes.

    Attributes:
        names: the outputs' names.
        objective: what the network is trained for.
        num_raw: values of the last layer.
    """

    def __init__(self, names: Sequence[str], objective: Objective, *, num_raw: int | None = None) -> None:
        self.names = tuple(names)
        self.objective = objective
        self.num_raw = len(self.names) if num_raw is None else num_raw

    @property
    def num_outputs(self) -> int:
        """How many outputs the graph has."""
        return len(self.names)

    def finish(self, raw_NR: Tensor) -> Tensor:
        """Raw values → outputs (N, K)."""
        return raw_NR

    def add_to(self, graph: Graph, raw: str) -> None:
        """The same as nodes, from the value of that name to `outputs`."""
        graph.add("Identity", [raw], ["outputs"])


class OffsetHead(Head):
    """Point forecasts that begin at constants instead of zero: a volatility is never near it.

    Args:
        offsets: one an output, in units of the label scale.
    """

    def __init__(self, names: Sequence[str], objective: Objective, *, offsets: Sequence[float]) -> None:
        super().__init__(names, objective)
        self.offsets_K = np.array(offsets, dtype=np.float32)

    def finish(self, raw_NR: Tensor) -> Tensor:
        """Raw values above the offsets."""
        return raw_NR + torch.from_numpy(self.offsets_K).to(raw_NR.device)

    def add_to(self, graph: Graph, raw: str) -> None:
        """One addition."""
        graph.add("Add", [raw, graph.constant("offsets", self.offsets_K)], ["outputs"])


def head_for(assignment: Assignment) -> Head:
    """The forecasts that an assignment asks for; what is no price move begins at its mean in the training part."""
    targets, windows = assignment.targets, assignment.windows
    if assignment.quantiles or all(target.needs_price for target in targets):
        return forecast_head(targets, assignment.quantiles)
    means_K = windows.labels_RK[windows.parts["train"]].mean(axis=0, dtype=np.float64)
    offsets = [0.0 if target.needs_price else float(mean) for target, mean in zip(targets, means_K, strict=True)]
    return OffsetHead([target.name for target in targets], SquaredError(), offsets=offsets)


def forecast_head(targets: Sequence[Target], quantiles: Sequence[float]) -> Head:
    """One point forecast of each target, or its quantiles."""
    if not quantiles:
        return Head([target.name for target in targets], SquaredError())
    from ml_workbench_service.learning.quantile_head import QuantileHead

    return QuantileHead([target.name for target in targets], quantiles)
