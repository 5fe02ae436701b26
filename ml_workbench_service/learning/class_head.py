"""`ClassHead`: logits that begin at the training part's frequencies, trained by cross-entropy with class weights.

The last layer learns the evidence alone: log frequencies are added to it, so that an untrained network answers as the
baseline does and no step is spent on finding out how rare a class is (Lin et al., Focal loss, ICCV 2017, section 4.1).
Weights are answered for inside the loss, which adds log w to the logits: where it is least, the logits themselves
speak of the true frequencies, whatever the weights (`class_calibration` says why).

Legend: N windows, C classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.learning.class_calibration import ClassWeights, class_counts, class_weights
from ml_workbench_service.learning.class_metrics import class_frequencies
from ml_workbench_service.learning.family import Assignment
from ml_workbench_service.learning.heads import Head
from ml_workbench_service.learning.onnx_parts import Graph


class CrossEntropy:
    """Mean over the windows of w · -log p of the class that happened, p the softmax of logits + log w."""

    def __init__(self, frequencies_C: Floats, weights_C: Floats) -> None:
        self._weights_C = torch.tensor(weights_C, dtype=torch.float32)
        self._log_weights_C = self._weights_C.log()
        self._log_frequencies_C = torch.tensor(np.log(frequencies_C), dtype=torch.float32)

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor) -> Tensor:
        """Of the first label, a class number."""
        return self._loss(network(rows_TNF), labels_NK)

    def baseline(self, labels_NK: Tensor) -> float:
        """What the training part's frequencies lose on these labels."""
        logits_NC = self._log_frequencies_C.to(labels_NK.device).expand(len(labels_NK), -1)
        return float(self._loss(logits_NC, labels_NK))

    def _loss(self, logits_NC: Tensor, labels_NK: Tensor) -> Tensor:
        weights_C, log_weights_C = self._weights_C.to(logits_NC.device), self._log_weights_C.to(logits_NC.device)
        total = nn.functional.cross_entropy(
            logits_NC + log_weights_C, labels_NK[:, 0].long(), weight=weights_C, reduction="sum"
        )
        return total / len(labels_NK)


class ClassHead(Head):
    """One logit a class: the raw value and the class's log frequency."""

    def __init__(self, classes: Sequence[str], frequencies_C: Floats, weights_C: Floats) -> None:
        super().__init__(classes, CrossEntropy(frequencies_C, weights_C))
        self._offset_C = np.log(frequencies_C).astype(np.float32)

    def finish(self, raw_NR: Tensor) -> Tensor:
        """Raw values → logits."""
        return raw_NR + torch.from_numpy(self._offset_C).to(raw_NR.device)

    def add_to(self, graph: Graph, raw: str) -> None:
        """The same as a node."""
        graph.add("Add", [raw, graph.constant("log_frequencies", self._offset_C)], ["outputs"])


def class_head(assignment: Assignment, scheme: ClassWeights) -> ClassHead:
    """For the classes of the only target, as frequent as in the training part."""
    (target,), windows = assignment.targets, assignment.windows
    labels_N = windows.own_labels_RK[windows.parts["train"], 0]
    num = len(target.classes)
    return ClassHead(
        target.classes, class_frequencies(labels_N, num), class_weights(class_counts(labels_N, num), scheme)
    )
