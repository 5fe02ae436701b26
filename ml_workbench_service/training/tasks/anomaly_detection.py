"""Anomaly detection: which windows are strange, measured by injected anomalies.

There is no target. Into copies of the untouched test part's windows anomalies of every kind are injected
(`evaluation/injected_anomalies.py`); the card says how many are found, and how often untouched windows alarm.

Legend: N windows, K = 1 + F outputs.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import ModelType, Target
from ml_workbench_service.evaluation.injected_anomalies import KINDS, inject
from ml_workbench_service.learning.calibration.anomaly_score import AnomalyScale, detection
from ml_workbench_service.learning.decoders.anomaly import AnomalyDecoder
from ml_workbench_service.learning.decoders.decoder import Decoder
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict
from ml_workbench_service.training.tasks.network_task import NetworkTask

INJECTED_SHARE = 0.05
"""How common anomalies are where precision is stated: one window in twenty."""
MOST_TRAIN_WINDOWS = 20_000
"""Training windows whose errors make the scale; its last thousandth then still stands on twenty of them."""


class AnomalyDetection(NetworkTask):
    """A score in [0, 1] and an alarm."""

    model_type: ClassVar[ModelType] = ModelType.ANOMALY_DETECTION
    has_verdict: ClassVar[bool] = False

    def check_targets(self, targets: Sequence[Target]) -> None:
        """None at all."""
        if targets:
            raise DataValidationError.at(
                "body.target", "anomaly_detection has no target, it looks at the features alone; leave `target` out"
            )

    def decisions(self, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> np.ndarray:
        """The strangest twentieth; asked only where a family's graph can be quantised."""
        return np.asarray(outputs_NK[:, 0] > np.quantile(outputs_NK[:, 0], 0.95))

    def score(self, trained: Trained, ends: Ints, problem: TrainingProblem) -> float:
        """Average precision among anomalies injected into these windows, by the raw errors: no threshold is needed."""
        predict = Predict(trained, None)
        by_kind = _errors_by_kind(predict, ends, problem)
        return detection(predict.over(problem.windows, ends)[:, 0], by_kind, threshold=np.inf, share=INJECTED_SHARE)[
            "average_precision"
        ]

    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> AnomalyDecoder:
        """The training part's distribution, the calibration part's threshold."""
        windows = problem.windows
        train = windows.parts["train"]
        known = Predict(trained, None).over(windows, train[:: max(1, -(-len(train) // MOST_TRAIN_WINDOWS))])
        scale = AnomalyScale.fit(
            known[:, 0],
            known[:, 1:],
            features=windows.features,
            calibration_errors_N=outputs_NK[:, 0],
            expected_alarm_rate=float(trained.findings["expected_alarm_rate"]),
        )
        return AnomalyDecoder(trained.outputs, scale)

    def said(self, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> dict[str, np.ndarray]:
        """The score."""
        assert isinstance(decoder, AnomalyDecoder)
        return {"prediction": decoder.scale.scores(outputs_NK[:, 0])}

    def measure(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, is_simulated: bool, predict: Predict,
    ) -> tuple[Evaluation, list[Differentials]]:  # fmt: skip
        """Precision, recall by kind and alarm rate; a detector that alarms by chance is the baseline."""
        assert isinstance(decoder, AnomalyDecoder)
        scale = decoder.scale
        errors = _errors_by_kind(predict, ends, problem)
        by_kind = {kind: scale.scores(errors_N) for kind, errors_N in errors.items()}
        figures = detection(scale.scores(outputs_NK[:, 0]), by_kind, threshold=scale.threshold, share=INJECTED_SHARE)
        chance = {
            "precision": INJECTED_SHARE,
            "recall": scale.expected_alarm_rate,
            "alarm_rate": scale.expected_alarm_rate,
            "average_precision": INJECTED_SHARE,
        }
        test: dict[str, float | None] = {
            **figures,
            "threshold": scale.threshold,
            "expected_alarm_rate": scale.expected_alarm_rate,
            "num_planted": float(sum(map(len, errors.values()))),
            "num_windows": float(len(ends)),
        }
        found = Evaluation(
            test=test,
            baselines={"chance": dict(chance)},
            skill={f"{name}_over_chance": figures[name] - chance[name] for name in ("recall", "average_precision")},
            verdict="not_applicable",
            reason="anomalies are injected, not real: the figures say what is found of them, not whether it pays",
        )
        return found, []


def _errors_by_kind(predict: Predict, ends: Ints, problem: TrainingProblem) -> dict[str, Floats]:
    """The network's errors on anomalies injected into copies of these windows, by kind."""
    windows = problem.windows
    injected = inject(
        windows.rows_RF, ends, lookback=windows.lookback, is_level_F=windows.scaler.is_level_F, seed=problem.seed
    )
    errors_N = predict(injected.windows_NTF)[:, 0]
    return {kind: errors_N[injected.of(kind)] for kind in KINDS if injected.of(kind).any()}
