"""`Classification`: which of a few classes comes; one target, one calibrated probability for each class.

Legend: N windows, R rows of all symbols, C classes.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import ModelType, Target
from ml_workbench_service.learning.class_calibration import ClassCalibration
from ml_workbench_service.learning.class_metrics import ClassBaseline, figures, majority, persistence, skill, stated
from ml_workbench_service.learning.evaluation import verdict_of
from ml_workbench_service.learning.family import Assignment, Trained
from ml_workbench_service.learning.judge import Judge
from ml_workbench_service.learning.judges.classes import ClassJudge
from ml_workbench_service.learning.task import Predict, Task
from ml_workbench_service.market.regimes import regime_features


class Classification(Task):
    """The next move's direction, the first barrier touched, the regime to come."""

    model_type: ClassVar[ModelType] = ModelType.CLASSIFICATION

    def check_targets(self, targets: Sequence[Target]) -> None:
        """One, and it has classes."""
        if not targets:
            raise DataValidationError.at(
                "body.target", "classification needs a target, such as direction_1h", code="missing"
            )
        if len(targets) > 1:
            raise DataValidationError.at(
                "body.target", "classification learns one target at a time; train a model for each"
            )
        if not targets[0].classes:
            raise DataValidationError.at(
                "body.target",
                f"{targets[0].name} is a number, not a class; send model_type time_series, or direction_<h>, "
                "triple_barrier_<h> or market_regime",
            )

    def decisions(self, outputs_NK: Floats, ends: Ints, assignment: Assignment) -> np.ndarray:
        """The most probable class, before any temperature."""
        return stated(outputs_NK)

    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, assignment: Assignment) -> ClassJudge:
        """The temperature with the least log loss."""
        windows = assignment.windows
        return ClassJudge(
            ClassCalibration.fit(
                outputs_NK,
                windows.own_labels_RK[ends, 0],
                classes=trained.outputs,
                train_labels_N=windows.own_labels_RK[windows.parts["train"], 0],
            )
        )

    def evaluate(
        self, trained: Trained, judge: Judge, outputs_NK: Floats, ends: Ints, assignment: Assignment,
        *, is_simulated: bool, predict: Predict,
    ) -> Evaluation:  # fmt: skip
        """Every figure beside the majority class's, and beside persistence's where the target is a regime."""
        assert isinstance(judge, ClassJudge)
        labels_N = assignment.windows.own_labels_RK[ends, 0]
        test = figures(labels_N, judge.calibration.probabilities(outputs_NK))
        baselines = {each.name: each.figures(labels_N) for each in _baselines(ends, assignment)}
        verdict, reason = verdict_of(is_simulated)
        return Evaluation(
            test={**test, "temperature": judge.calibration.temperature, "num_windows": float(len(labels_N))},
            baselines=baselines,
            skill={
                key: value for name, each in baselines.items() for key, value in skill(test, each, name=name).items()
            },
            verdict=verdict,
            reason=reason,
        )


def _baselines(ends: Ints, assignment: Assignment) -> list[ClassBaseline]:
    (target,), windows = assignment.targets, assignment.windows
    train = windows.parts["train"]
    train_labels_N, num_classes = windows.own_labels_RK[train, 0], len(target.classes)
    baselines = [majority(train_labels_N, num_rows=len(ends), num_classes=num_classes)]
    if target.measure == "market_regime":
        present_R = _present_regimes(assignment)
        baselines.append(
            persistence(train_labels_N, present_R[train], present_N=present_R[ends], num_classes=num_classes)
        )
    return baselines


def _present_regimes(assignment: Assignment) -> Floats:
    """(R,) the regime that each row itself is in, by its symbol's rule."""
    windows = assignment.windows
    present_R = np.full(len(windows.close_R), np.nan)
    for number, symbol in enumerate(windows.symbols):
        own = windows.symbol_R == number
        features = regime_features(windows.close_R[own], windows.runs_R[own])
        present_R[own] = assignment.regimes[symbol].classify(*features)
    return present_R
