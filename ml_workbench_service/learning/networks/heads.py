"""Heads: what becomes of a network's last linear layer, in torch and in its graph, and what it is trained for.

**Classes.** Logits that begin at the training part's frequencies, trained by cross-entropy with class weights. The last
layer learns the evidence alone: log frequencies are added to it, so that an untrained network answers as the baseline
does and no step is spent on finding out how rare a class is (Lin et al., Focal loss, ICCV 2017, section 4.1). Weights
are answered for inside the loss, which adds log w to the logits: where it is least, the logits themselves speak of the
true frequencies, whatever the weights (`calibration/class_probabilities.py` says why).

**Quantiles** that never cross: a median for each target, and how far every other quantile is from its neighbour. A
network's raw values are, target by target and quantiles ascending, the median itself and elsewhere a raw step. A step
is made positive by squareplus, (x + sqrt(x² + 4)) / 2 (Barron 2021, arXiv:2112.11687), and steps are added up from the
median outward: a higher quantile is never below a lower one, by construction and to the last bit, in training and in
serving (a sum with one more step that is not negative is rounded to no less). Not softplus: onnxruntime's depends in
its last bit on a value's place in the batch, while squareplus is made of operations that it rounds exactly. The loss is
the pinball loss (Koenker and Bassett, Econometrica 46(1), 1978), least in the mean at the quantile. Fails where the
tail is thin: a 1 % quantile learns from one window in a hundred.

Legend: N windows, C classes, K outputs or targets, Q quantiles, R raw values of the last layer.
"""

from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import torch
from torch import Tensor, nn

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.training import Target
from ml_workbench_service.learning.calibration.class_metrics import class_frequencies
from ml_workbench_service.learning.calibration.class_probabilities import ClassWeights, class_counts, class_weights
from ml_workbench_service.learning.fitting.objectives import Objective, SquaredError, weighted_mean
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.learning.networks.onnx_builder import Graph


class Head:
    """The raw values are the outputs: point forecasts in units of the label scale, or the logits of classes.

    Attributes:
        names: the outputs' names.
        objective: what the network is trained for.
        num_raw, num_outputs: values of the last layer, and of the graph: the same.
    """

    def __init__(self, names: Sequence[str], objective: Objective) -> None:
        self.names = tuple(names)
        self.objective = objective
        self.num_raw = self.num_outputs = len(self.names)

    def finish(self, raw_NR: Tensor) -> Tensor:
        """Raw values → outputs (N, K)."""
        return raw_NR

    def add_to(self, graph: Graph, raw: str) -> None:
        """The same as nodes, from the value of that name to `outputs`."""
        graph.add("Identity", [raw], ["outputs"])


class OffsetHead(Head):
    """Outputs that begin at constants instead of zero: a volatility is never near it, no class as rare as another.

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


def head_for(problem: TrainingProblem) -> Head:
    """The forecasts that a problem asks for; what is no price move begins at its mean in the training part."""
    targets, windows = problem.targets, problem.windows
    if problem.quantiles or all(target.needs_price for target in targets):
        return forecast_head(targets, problem.quantiles)
    means_K = windows.labels_RK[windows.parts["train"]].mean(axis=0, dtype=np.float64)
    offsets = [0.0 if target.needs_price else float(mean) for target, mean in zip(targets, means_K, strict=True)]
    return OffsetHead([target.name for target in targets], SquaredError(), offsets=offsets)


def forecast_head(targets: Sequence[Target], quantiles: Sequence[float]) -> Head:
    """One point forecast of each target, or its quantiles."""
    if not quantiles:
        return Head([target.name for target in targets], SquaredError())
    return QuantileHead([target.name for target in targets], quantiles)


MEDIAN = 0.5


class QuantileHead(Head):
    """Outputs target by target, quantiles ascending, trained by the pinball loss.

    Args:
        targets: names.
        quantiles: ascending, 0.5 among them.
    """

    def __init__(self, targets: Sequence[str], quantiles: Sequence[float]) -> None:
        super().__init__(quantile_names(targets, quantiles), PinballLoss(quantiles))
        below = tuple(quantiles).index(MEDIAN)
        self._shape = (len(targets), len(quantiles))
        self._sizes = [below, 1, len(quantiles) - below - 1]

    def finish(self, raw_NR: Tensor) -> Tensor:
        """Raw values → quantiles (N, K x Q)."""
        raw_NKQ = raw_NR.view(len(raw_NR), *self._shape)
        roots_NKQ = (raw_NKQ * raw_NKQ + 4).sqrt()
        steps_NKQ = ((raw_NKQ + roots_NKQ) * 0.5).clamp(min=0)  # torch's root, unlike the graph's, may be a bit short
        _, median_NK1, _ = torch.split(raw_NKQ, self._sizes, dim=2)
        down, _, up = torch.split(steps_NKQ, self._sizes, dim=2)
        lower, upper = median_NK1 - down.flip(2).cumsum(2).flip(2), median_NK1 + up.cumsum(2)
        return torch.cat((lower, median_NK1, upper), dim=2).flatten(1)

    def add_to(self, graph: Graph, raw: str) -> None:
        """The same as nodes."""
        shape = graph.constant("targets_by_quantiles", np.array([-1, *self._shape]))
        sizes = graph.constant("below_median_above", np.array(self._sizes))
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
        graph.add("Flatten", ["quantiles"], ["outputs"])


class PinballLoss:
    """Each quantile's pinball loss: q of what the label is above the answer, 1 - q of what it is below."""

    def __init__(self, quantiles: Sequence[float]) -> None:
        self._quantiles = tuple(quantiles)

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor, weights_N: Tensor | None = None) -> Tensor:
        """Mean over windows, targets and quantiles."""
        return self._mean_loss(network(rows_TNF).view(*labels_NK.shape, -1), labels_NK, weights_N)

    def baseline(self, labels_NK: Tensor, weights_N: Tensor | None = None) -> float:
        """The loss of the best constants there are: these labels' own quantiles, each label counted alike."""
        levels_Q = labels_NK.new_tensor(self._quantiles, dtype=torch.float64)
        constants_KQ = torch.quantile(labels_NK.double(), levels_Q, dim=0).T
        return float(self._mean_loss(constants_KQ, labels_NK.double(), weights_N))

    def _mean_loss(self, answers_NKQ: Tensor, labels_NK: Tensor, weights_N: Tensor | None) -> Tensor:
        above_NKQ = labels_NK[..., None] - answers_NKQ
        levels_Q = above_NKQ.new_tensor(self._quantiles)
        return weighted_mean(torch.maximum(levels_Q * above_NKQ, (levels_Q - 1) * above_NKQ), weights_N)


def quantile_names(targets: Sequence[str], quantiles: Sequence[float]) -> tuple[str, ...]:
    """`<target>_q` and the quantile's decimals, two at least: 0.05 → `_q05`, 0.5 → `_q50`, 0.025 → `_q025`."""
    decimals = [format(Decimal(str(quantile)), "f").partition(".")[2].ljust(2, "0") for quantile in quantiles]
    return tuple(f"{target}_q{each}" for target in targets for each in decimals)


class CrossEntropy:
    """Mean over the windows of w · -log p of the class that happened, p the softmax of logits + log w."""

    def __init__(self, frequencies_C: Floats, weights_C: Floats) -> None:
        self._weights_C = torch.tensor(weights_C, dtype=torch.float32)
        self._log_weights_C = self._weights_C.log()
        self._log_frequencies_C = torch.tensor(np.log(frequencies_C), dtype=torch.float32)

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor, weights_N: Tensor | None = None) -> Tensor:
        """Of the first label, a class number."""
        return self._loss(network(rows_TNF), labels_NK, weights_N)

    def baseline(self, labels_NK: Tensor, weights_N: Tensor | None = None) -> float:
        """What the training part's frequencies lose on these labels."""
        logits_NC = self._log_frequencies_C.to(labels_NK.device).expand(len(labels_NK), -1)
        return float(self._loss(logits_NC, labels_NK, weights_N))

    def _loss(self, logits_NC: Tensor, labels_NK: Tensor, weights_N: Tensor | None) -> Tensor:
        weights_C, log_weights_C = self._weights_C.to(logits_NC.device), self._log_weights_C.to(logits_NC.device)
        logits_NC, labels_N = logits_NC + log_weights_C, labels_NK[:, 0].long()
        if weights_N is None:
            return nn.functional.cross_entropy(logits_NC, labels_N, weight=weights_C, reduction="sum") / len(labels_N)
        losses_N = nn.functional.cross_entropy(logits_NC, labels_N, weight=weights_C, reduction="none")
        return weighted_mean(losses_N, weights_N)


class ClassHead(OffsetHead):
    """One logit a class: the raw value and the class's log frequency."""

    def __init__(self, classes: Sequence[str], frequencies_C: Floats, weights_C: Floats) -> None:
        super().__init__(classes, CrossEntropy(frequencies_C, weights_C), offsets=np.log(frequencies_C).tolist())


def class_head(problem: TrainingProblem, scheme: ClassWeights) -> ClassHead:
    """For the classes of the only target, as frequent as in the training part."""
    (target,), windows = problem.targets, problem.windows
    labels_N = windows.own_labels_RK[windows.parts["train"], 0]
    num = len(target.classes)
    return ClassHead(
        target.classes, class_frequencies(labels_N, num), class_weights(class_counts(labels_N, num), scheme)
    )
