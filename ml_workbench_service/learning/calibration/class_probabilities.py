"""Temperature scaling: a classifier's logits become probabilities that hold, fitted on the calibration part.

Outputs are logits z = log π + evidence, π the training part's class frequencies. A network's last bias makes that so
by itself, and an over-trained network exaggerates the evidence alone. That is what a temperature is divided into,
fitted on the calibration part by log loss (temperature scaling: Guo et al., ICML 2017, arXiv:1706.04599):

    p ∝ π · exp((z - log π) / T)

Guo et al. divide z as a whole, which pulls every answer towards 1 / classes; here T without end leads to the training
frequencies. Where the evidence is noise, and on exchange rates it often is, that is the right answer, and no worse
than the baseline. For equally frequent classes the two are the same.

Class weights never get here. A loss with weight w for class c is least at z + log w (Saerens, Latinne and Decaestecker,
Neural Computation 14, 2002): whoever trains with weights adds log w to the outputs inside the loss, so that the outputs
themselves stay free of it and their probabilities match the frequencies.

When it fails: frequencies that change between the parts are not chased. A bias per class fitted on the calibration
part would follow its luck: half a year of trends is no reason to expect trends.

Legend: N rows, C classes. Everything is float64, and a row's answer does not depend on the rows beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ml_workbench_service.contracts.market import Floats, Floats32, Ints
from ml_workbench_service.contracts.prediction import Direction
from ml_workbench_service.learning.calibration.class_metrics import class_frequencies

ClassWeights = Literal["none", "balanced"]

LEAST_TEMPERATURE = 0.1
MOST_TEMPERATURE = 1000.0
"""Ten times sharper, and evidence that counts for nothing: beyond either lies no other answer, only a larger number."""
LEAST_GAIN = 1e-9
"""Nats per row under which another temperature is no better than none: it stays at 1."""

VALUE_OF: Mapping[str, tuple[float, Direction]] = {
    "sell": (-1.0, "sell"), "hold": (0.0, "hold"), "buy": (1.0, "buy"),
    "lower": (-1.0, "sell"), "neither": (0.0, "hold"), "upper": (1.0, "buy"),
}  # fmt: skip
"""What a class that speaks of a future move is worth as a number, and as a direction."""


def class_numbers(classes: Sequence[str]) -> Floats:
    """(C,) what records and outcomes call each class: -1, 0 or 1 of a future move, else its place."""
    return np.array([VALUE_OF.get(name, (float(place), "hold"))[0] for place, name in enumerate(classes)])


def class_counts(labels_N: Floats | Ints, num_classes: int) -> Ints:
    """(C,) how often each class occurs."""
    return np.bincount(np.asarray(labels_N, dtype=np.int64), minlength=num_classes)


def class_weights(counts_C: Ints, scheme: ClassWeights) -> Floats:
    """(C,) what a row of each class counts in the loss; over the training part's rows the mean is 1.

    `balanced` is inverse frequency: each class that occurs has the same say, so that a rare one is learnt from at
    all; the price is noise from its few rows. The mean of 1 leaves the learning rate its meaning. A class that never
    occurs weighs 1. The module says how the shift that weights bring into a network is kept out of its answers.
    """
    if scheme == "none":
        return np.ones(len(counts_C))
    occurs = counts_C > 0
    return np.where(occurs, counts_C.sum() / (max(occurs.sum(), 1) * np.maximum(counts_C, 1)), 1.0)


@dataclass(frozen=True)
class ClassCalibration:
    """Everything `recipe.json` keeps to turn outputs into probabilities.

    Attributes:
        classes: their names, in the order of the network's outputs.
        frequencies_C: of the training part, none of them 0.
        temperature: 1: the evidence counts as it is; above: less.
    """

    classes: tuple[str, ...]
    frequencies_C: Floats
    temperature: float = 1.0

    @classmethod
    def fit(
        cls,
        logits_NC: Floats | Floats32,
        labels_N: Floats | Ints,
        *,
        classes: Sequence[str],
        train_labels_N: Floats | Ints,
    ) -> "ClassCalibration":
        """The temperature with the least log loss over the calibration part.

        One more row, undecided between the classes as the training part was, counts along (after Platt, 1999): a
        handful of rows that all came true is no proof of certainty. Rows with an output that is no number are left
        out; without any row, or where no temperature is better than another, it stays at 1.

        Args:
            logits_NC: outputs for the calibration part.
            labels_N: its class numbers.
            classes: their names.
            train_labels_N: the training part's class numbers.
        """
        frequencies_C = class_frequencies(train_labels_N, len(classes))
        usable = np.isfinite(logits_NC).all(axis=1)
        evidence_NC = _evidence(logits_NC[usable], frequencies_C)
        temperature = _least_loss(evidence_NC, np.asarray(labels_N)[usable].astype(np.int64), frequencies_C)
        return cls(tuple(classes), frequencies_C, temperature)

    def probabilities(self, logits: Floats | Floats32) -> Floats:
        """(C,) or (N, C) outputs → probabilities of the same shape; each row sums to 1."""
        evidence = _evidence(logits, self.frequencies_C)
        return np.exp(_log_probabilities(evidence / self.temperature, self.frequencies_C))

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {
            "classes": list(self.classes),
            "frequencies": self.frequencies_C.tolist(),
            "temperature": self.temperature,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "ClassCalibration":
        """The inverse of `to_json`."""
        return cls(
            tuple(plain["classes"]),
            np.array(plain["frequencies"], dtype=np.float64),
            float(plain["temperature"]),
        )


def _evidence(logits: Floats | Floats32, frequencies_C: Floats) -> Floats:
    """What the outputs say beyond the frequencies; of each row the largest is 0."""
    evidence = np.asarray(logits, dtype=np.float64) - np.log(frequencies_C)
    return np.asarray(evidence - evidence.max(axis=-1, keepdims=True))


def _log_probabilities(evidence: Floats, frequencies_C: Floats) -> Floats:
    """Normalised in logarithms; a row's largest evidence is 0. The sum runs class by class: its last bit is its own."""
    scores = evidence + np.log(frequencies_C)
    return np.asarray(scores - np.log(np.cumsum(np.exp(scores), axis=-1)[..., -1:]))


def _least_loss(evidence_NC: Floats, labels_N: Ints, frequencies_C: Floats) -> float:
    """The temperature; the loss is convex in 1 / T, hence has one valley in log T."""
    from scipy.optimize import minimize_scalar  # only training needs it

    if not len(labels_N):
        return 1.0
    num = len(labels_N)

    def loss(log_temperature: float) -> float:
        log_probabilities_NC = _log_probabilities(evidence_NC / np.exp(log_temperature), frequencies_C)
        undecided = float(np.mean(log_probabilities_NC @ frequencies_C))
        return -(float(log_probabilities_NC[np.arange(num), labels_N].sum()) + undecided) / (num + 1)

    bounds = float(np.log(LEAST_TEMPERATURE)), float(np.log(MOST_TEMPERATURE))
    found = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)
    return float(np.exp(found)) if loss(found) < loss(0.0) - LEAST_GAIN else 1.0
