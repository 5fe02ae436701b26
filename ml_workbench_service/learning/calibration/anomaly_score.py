"""Anomaly score: an error's rank in [0, 1], a threshold with the expected alarm rate, the features that drove it.

The score is the share of the training windows whose error is no larger: 0.99 means stranger than 99 in 100. Beyond
the largest of them a power law goes on, so that worse still ranks above bad until float64 says 1 (Hill, Annals of
Statistics 3(5), 1975). The threshold comes from the calibration part, which no network was fitted to: a new window of
the same market exceeds it with at most the expected alarm rate (the conformal rank; Laxhammar and Falkman, 2015,
"Inductive conformal anomaly detection"). Markets change, so what comes true is measured, not promised; alarms come in
clusters, because windows overlap.

Plain numpy, for serving loads it. Legend: N windows, F features, Q points of the stored distribution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.prediction import Driver

NUM_BODY, NUM_TAIL = 401, 100
"""Points of the stored distribution over its whole width, and over the largest tenth on a logarithmic scale."""
TAIL_SHARE = 0.05
"""Largest training errors that decide how the power law falls; at least ten."""
LIGHTEST_TAIL, HEAVIEST_TAIL = 50.0, 0.5
"""Bounds of its exponent: equal errors have no tail, and under 0.5 the tail would never end."""
NUM_DRIVERS = 3
SMALLEST_ERROR = 1e-12


@dataclass(frozen=True)
class AnomalyScale:
    """What errors mean, as `recipe.json` keeps it.

    Attributes:
        features: names in the order of the features' errors.
        error_Q: training errors, ascending.
        probability_Q: share of the training windows up to each.
        tail_exponent: of the power law beyond the last.
        median_F: each feature's ordinary error.
        threshold: an alarm is a score above it.
        expected_alarm_rate: the share of ordinary windows that was asked to alarm.
        is_extrapolated: whether the calibration part was too short for so rare an alarm, so that the training part's
            tail had to say where the threshold lies.
    """

    features: tuple[str, ...]
    error_Q: Floats
    probability_Q: Floats
    tail_exponent: float
    median_F: Floats
    threshold: float
    expected_alarm_rate: float
    is_extrapolated: bool

    @classmethod
    def fit(
        cls,
        errors_N: Floats,
        error_NF: Floats,
        *,
        features: Sequence[str],
        calibration_errors_N: Floats,
        expected_alarm_rate: float,
    ) -> "AnomalyScale":
        """Distribution and medians from the training part, the threshold from the calibration part.

        Args:
            errors_N: the training windows' errors.
            error_NF: the same, of each feature.
            features: names of the columns.
            calibration_errors_N: the calibration windows' errors.
            expected_alarm_rate: above 0, below 1.
        """
        error_Q, probability_Q = _distribution(errors_N)
        scale = cls(
            features=tuple(features),
            error_Q=error_Q,
            probability_Q=probability_Q,
            tail_exponent=_tail_exponent(errors_N),
            median_F=np.median(error_NF, axis=0).astype(np.float64),
            threshold=1.0,
            expected_alarm_rate=expected_alarm_rate,
            is_extrapolated=False,
        )
        return scale._with_threshold(calibration_errors_N)

    def scores(self, errors_N: Floats) -> Floats:
        """The score of each error, by bisection."""
        errors_N = np.asarray(errors_N, dtype=np.float64)
        inside = np.interp(errors_N, self.error_Q, self.probability_Q, left=0.0)
        largest = max(float(self.error_Q[-1]), SMALLEST_ERROR)
        beyond = 1 - (1 - self.probability_Q[-1]) * (largest / np.maximum(errors_N, largest)) ** self.tail_exponent
        return np.asarray(np.where(errors_N > self.error_Q[-1], beyond, inside), dtype=np.float64)

    def score(self, error: float) -> float:
        """The score of one error."""
        return float(self.scores(np.array([error]))[0])

    def alarm_rate(self, errors_N: Floats) -> float:
        """The share of these windows that alarm."""
        return float(np.mean(self.scores(errors_N) > self.threshold))

    def drivers(self, error_F: Floats) -> tuple[Driver, ...]:
        """The features whose errors lie furthest above their medians, first the worst; none where none does.

        A share is the feature's part of all that lies above; all features' shares add to 1.
        """
        excess = np.maximum(np.asarray(error_F, dtype=np.float64) - self.median_F, 0.0)
        total = float(excess.sum())
        worst = [int(place) for place in np.argsort(-excess, kind="stable")[:NUM_DRIVERS] if excess[place] > 0]
        return tuple(Driver(feature=self.features[place], share=float(excess[place] / total)) for place in worst)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `recipe.json`."""
        return {
            "features": list(self.features),
            "errors": self.error_Q.tolist(),
            "probabilities": self.probability_Q.tolist(),
            "tail_exponent": self.tail_exponent,
            "medians": self.median_F.tolist(),
            "threshold": self.threshold,
            "expected_alarm_rate": self.expected_alarm_rate,
            "is_extrapolated": self.is_extrapolated,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "AnomalyScale":
        """The inverse of `to_json`."""
        return cls(
            features=tuple(plain["features"]),
            error_Q=np.array(plain["errors"], dtype=np.float64),
            probability_Q=np.array(plain["probabilities"], dtype=np.float64),
            tail_exponent=float(plain["tail_exponent"]),
            median_F=np.array(plain["medians"], dtype=np.float64),
            threshold=float(plain["threshold"]),
            expected_alarm_rate=float(plain["expected_alarm_rate"]),
            is_extrapolated=bool(plain["is_extrapolated"]),
        )

    def _with_threshold(self, errors_N: Floats) -> "AnomalyScale":
        """The conformal rank of the scores; where it lies beyond the last, the larger of it and the asked quantile."""
        scores = np.sort(self.scores(errors_N))
        rank = int(np.ceil((len(scores) + 1) * (1 - self.expected_alarm_rate)))
        is_extrapolated = rank > len(scores)
        threshold = max(float(scores[-1]), 1 - self.expected_alarm_rate) if is_extrapolated else float(scores[rank - 1])
        return replace(self, threshold=threshold, is_extrapolated=is_extrapolated)


def detection(
    clean_scores_N: Floats, injected_scores: Mapping[str, Floats], *, threshold: float, share: float
) -> dict[str, float]:
    """What a detector finds of injected anomalies, as if this share of all windows were injected, each kind as often.

    `alarm_rate` is that of the clean windows. Precision and average precision depend on how common anomalies are;
    they are those of the stated share, whatever the numbers of windows. Windows of equal score alarm together.

    Args:
        clean_scores_N: scores of untouched windows.
        planted_scores: scores of injected windows by kind.
        threshold: an alarm is a score above it.
        share: of all windows, above 0 and below 1.
    """
    recalls = {f"recall_{kind}": float(np.mean(scores > threshold)) for kind, scores in injected_scores.items()}
    recall = float(np.mean(list(recalls.values())))
    alarm_rate = float(np.mean(clean_scores_N > threshold))
    alarms = share * recall + (1 - share) * alarm_rate
    return {
        "precision": share * recall / alarms if alarms else 0.0,
        "recall": recall,
        "alarm_rate": alarm_rate,
        "average_precision": _average_precision(clean_scores_N, injected_scores, share=share),
        **recalls,
    }


def _average_precision(clean_scores_N: Floats, injected_scores: Mapping[str, Floats], *, share: float) -> float:
    """Precision averaged over the injected windows' weight, from the highest score down."""
    weights = [np.full(len(each), share / len(injected_scores) / len(each)) for each in injected_scores.values()]
    injected, found = np.concatenate(list(injected_scores.values())), np.concatenate(weights)
    scores = np.concatenate([injected, clean_scores_N])
    hits = np.concatenate([found, np.zeros(len(clean_scores_N))])
    falses = np.concatenate([np.zeros(len(injected)), np.full(len(clean_scores_N), (1 - share) / len(clean_scores_N))])
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hit, false = np.cumsum(hits[order])[last_of_ties], np.cumsum(falses[order])[last_of_ties]
    return float(np.sum(np.diff(hit, prepend=0.0) / share * hit / (hit + false)))


def _distribution(errors_N: Floats) -> tuple[Floats, Floats]:
    """Quantiles, finest in the largest tenth; of equal errors the highest probability stands."""
    num = len(errors_N)
    highest = num / (num + 1)
    body, tail = np.linspace(0, highest, NUM_BODY), 1 - np.geomspace(0.1, 1 - highest, NUM_TAIL)
    probability = np.unique(np.clip(np.concatenate([body, tail, [highest]]), 0.0, highest))
    errors = np.quantile(errors_N.astype(np.float64), probability / highest)
    is_last = np.append(np.diff(errors) > 0, True)
    return errors[is_last], probability[is_last]


def _tail_exponent(errors_N: Floats) -> float:
    """Hill's estimate from the largest training errors."""
    largest = np.sort(np.maximum(errors_N.astype(np.float64), SMALLEST_ERROR))[
        -max(10, int(TAIL_SHARE * len(errors_N))) :
    ]
    spread = float(np.mean(np.log(largest / largest[0])))
    return float(np.clip(1 / max(spread, SMALLEST_ERROR), HEAVIEST_TAIL, LIGHTEST_TAIL))
