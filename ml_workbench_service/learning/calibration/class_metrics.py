"""Classification metrics, each beside the baseline's on the same rows, so that no accuracy stands alone.

| figure              | what it is                                                                                |
|---------------------|-------------------------------------------------------------------------------------------|
| `accuracy`          | share of the rows whose class was stated                                                  |
| `balanced_accuracy` | mean recall over the classes that occur: 1 / classes for any constant answer              |
| `f1_score`          | macro: mean F1 over the classes that occur or were stated                                  |
| `log_loss`          | mean -log of the probability of what happened; the proper score that verdicts use         |
| `brier`             | mean squared distance from the outcome, summed over classes, 0 to 2 (Brier, Monthly       |
|                     | Weather Review 78, 1950)                                                                  |
| `calibration_error` | expected calibration error of the stated class's probability, 15 bins of equal width (Guo |
|                     | et al., ICML 2017, arXiv:1706.04599)                                                      |

The stated class is the most probable one; of equals the first. Baselines answer with what the training part knew: its
class frequencies and largest class, and for regimes persistence, the present regime.

Legend: N rows, C classes. Labels are class numbers, as floats or integers; rows without a label do not get here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.market import Floats, Ints

NUM_BINS = 15
"""As Guo et al. and most that came after: figures stay comparable with theirs."""
LEAST_PROBABILITY = float(np.finfo(np.float64).eps)
"""A probability of 0 for what happened would cost infinitely much; scikit-learn clips at the same place."""
MAJORITY = "majority_class"
PERSISTENCE = "persistence"

Figures = Mapping[str, float | None]


def stated(probabilities_NC: Floats) -> Ints:
    """(N,) the number of the most probable class; of equals the first."""
    return np.asarray(np.argmax(probabilities_NC, axis=1), dtype=np.int64)


def log_losses(labels_N: Floats | Ints, probabilities_NC: Floats) -> Floats:
    """(N,) -log of the probability of what happened: the differences of two models' are what a verdict tests."""
    labels = _numbers(labels_N, probabilities_NC)
    hit = probabilities_NC[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.clip(hit, LEAST_PROBABILITY, 1.0)))


def figures(
    labels_N: Floats | Ints, probabilities_NC: Floats, *, stated_N: Ints | None = None
) -> dict[str, float | None]:
    """All figures of the module's table; every one None where there is no row.

    Args:
        labels_N: class numbers.
        probabilities_NC: each row sums to 1.
        stated_N: the stated classes, where they are not the most probable ones (persistence states the present).
    """
    if not len(labels_N):
        names = ("accuracy", "balanced_accuracy", "f1_score", "log_loss", "brier", "calibration_error")
        return dict.fromkeys(names)
    labels = _numbers(labels_N, probabilities_NC)
    classes = stated(probabilities_NC) if stated_N is None else np.asarray(stated_N, dtype=np.int64)
    num_classes = probabilities_NC.shape[1]
    hits = np.bincount(labels[labels == classes], minlength=num_classes)
    happened = np.bincount(labels, minlength=num_classes)
    said = np.bincount(classes, minlength=num_classes)
    outcomes_NC = np.eye(num_classes)[labels]
    occurs, either = happened > 0, happened + said > 0
    return {
        "accuracy": float(hits.sum() / len(labels)),
        "balanced_accuracy": float(np.mean(hits[occurs] / happened[occurs])),
        "f1_score": float(np.mean(2 * hits[either] / (happened + said)[either])),
        "log_loss": float(np.mean(log_losses(labels, probabilities_NC))),
        "brier": float(np.mean(np.sum((probabilities_NC - outcomes_NC) ** 2, axis=1))),
        "calibration_error": calibration_error(
            probabilities_NC[np.arange(len(labels)), classes], is_hit_N=labels == classes
        ),
    }


def calibration_error(confidence_N: Floats, *, is_hit_N: np.ndarray) -> float:
    """Mean |accuracy - confidence| over the bins (low, high], each weighted by its rows."""
    bins = np.clip(np.ceil(confidence_N * NUM_BINS) - 1, 0, NUM_BINS - 1).astype(np.int64)
    surplus = np.bincount(bins, weights=is_hit_N - confidence_N, minlength=NUM_BINS)
    return float(np.abs(surplus).sum() / len(confidence_N))


@dataclass(frozen=True)
class ClassBaseline:
    """What somebody without a model would have said of the same rows."""

    name: str
    stated_N: Ints
    probabilities_NC: Floats

    def figures(self, labels_N: Floats | Ints) -> dict[str, float | None]:
        """Its own figures."""
        return figures(labels_N, self.probabilities_NC, stated_N=self.stated_N)


def class_frequencies(labels_N: Floats | Ints, num_classes: int) -> Floats:
    """(C,) of the training part, each class counted once more than it occurred (Laplace): none is impossible."""
    counts = np.bincount(np.asarray(labels_N, dtype=np.int64), minlength=num_classes) + 1.0
    return np.asarray(counts / counts.sum())


def majority(train_labels_N: Floats | Ints, *, num_rows: int, num_classes: int) -> ClassBaseline:
    """The training part's largest class, with its frequencies as probabilities."""
    frequencies = class_frequencies(train_labels_N, num_classes)
    return ClassBaseline(
        MAJORITY, np.full(num_rows, np.argmax(frequencies)), np.broadcast_to(frequencies, (num_rows, num_classes))
    )


def persistence(
    train_labels_N: Floats | Ints, train_present_N: Floats, *, present_N: Floats, num_classes: int
) -> ClassBaseline:
    """The present class; its probabilities are the training part's transition frequencies from that class.

    A certain "it stays" would lose infinitely much at the first change: whoever believes in persistence knows from
    the training part how often it fails. Where the present class is unknown (NaN) the training frequencies answer.
    """
    frequencies = class_frequencies(train_labels_N, num_classes)
    known = np.isfinite(train_present_N)
    transitions_CC = np.tile(frequencies, (num_classes, 1))  # one row's worth of prior for each class
    present_then = train_present_N[known].astype(np.int64)
    np.add.at(transitions_CC, (present_then, np.asarray(train_labels_N)[known].astype(np.int64)), 1.0)
    transitions_CC /= transitions_CC.sum(axis=1, keepdims=True)
    is_known = np.isfinite(present_N)
    present = np.where(is_known, present_N, np.argmax(frequencies)).astype(np.int64)
    return ClassBaseline(
        PERSISTENCE, present, np.where(is_known[:, None], transitions_CC[present], frequencies[None, :])
    )


def skill(of_model: Figures, of_baseline: Figures, *, name: str) -> dict[str, float | None]:
    """1 - score ÷ the baseline's for both proper scores; None where the baseline's is 0 or there is no row."""
    return {
        f"{score}_against_{name}": None if model is None or not base else 1.0 - model / base
        for score in ("log_loss", "brier")
        for model, base in [(of_model[score], of_baseline[score])]
    }


def _numbers(labels_N: Floats | Ints, probabilities_NC: Floats) -> Ints:
    labels = np.asarray(labels_N)
    assert len(labels) == len(probabilities_NC), "a label for every row"
    assert np.isin(labels, np.arange(probabilities_NC.shape[1])).all(), "rows without a label are left out before"
    return labels.astype(np.int64)
