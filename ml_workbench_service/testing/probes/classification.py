"""Classification: the direction of the injected move, flat moves being a class of their own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.calibration.class_metrics import figures, majority, skill
from ml_workbench_service.learning.calibration.class_probabilities import ClassCalibration
from ml_workbench_service.learning.data.windows import Part, Windows, build
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.testing.probes.probe import Probe
from ml_workbench_service.testing.synthetic import FEATURES, IS_LEVEL, problem, symbol_rows

NUM_CLASSES = 3
FLAT = 0.3
"""Moves of under this many deviations are `hold`: a quarter of them."""


class ClassificationProbe(Probe):
    """Skill: 1 - log loss ÷ that of the training part's frequencies."""

    model_type: ClassVar[ModelType] = ModelType.CLASSIFICATION
    injected: ClassVar[float] = 0.15
    r2: ClassVar[float] = 0.5  # a class holds less of the signal than the move
    chance: ClassVar[float] = 0.02

    def windows(self, *tables: Any, num: int = 2000, r2: float | None = None, seed: int = 0) -> Windows:
        """Moves in deviations of a bar, cut into sell, hold and buy."""
        made = tables or [symbol_rows(num=num, r2=self.r2 if r2 is None else r2, seed=seed)]
        classed = []
        for table in made:
            strength_NK = table.labels_NK / (FLAT * table.bar_volatility_N[:, None])
            classes_NK = np.where(strength_NK > 1, 2.0, np.where(strength_NK < -1, 0.0, 1.0))
            classed.append(replace(table, labels_NK=np.where(np.isfinite(strength_NK), classes_NK, np.nan)))
        return build(classed, features=FEATURES, is_level=IS_LEVEL, lookback=8, split=0.4, scales_labels=[False])

    def problem(self, windows: Windows, *, seed: int = 0, checkpoint: Checkpoint | None = None) -> TrainingProblem:
        """`direction_1h`."""
        return problem(windows, "direction_1h", seed=seed, checkpoint=checkpoint)

    def quality(
        self, model: Trained, windows: Windows, part: Part = "test", *, length: int | None = None,
        symbols: Sequence[int] | None = None,
    ) -> float:  # fmt: skip
        """Skill in log loss against the training part's frequencies, after calibration."""
        ends = windows.parts[part]
        if symbols is not None:
            ends = ends[np.isin(windows.symbol_R[ends], symbols)]
        train, labels = windows.own_labels_RK[windows.parts["train"], 0], windows.own_labels_RK[ends, 0]
        calibrate = windows.parts["calibration"]
        calibration = ClassCalibration.fit(
            model.predict(windows.gather(calibrate)).outputs_NK,
            windows.own_labels_RK[calibrate, 0],
            classes=model.outputs,
            train_labels_N=train,
        )
        found = figures(labels, calibration.probabilities(model.predict(windows.gather(ends, length)).outputs_NK))
        base = majority(train, num_rows=len(ends), num_classes=NUM_CLASSES).figures(labels)
        gained = skill(found, base, name="frequencies")["log_loss_against_frequencies"]
        assert gained is not None
        return gained
