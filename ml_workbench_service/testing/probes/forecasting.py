"""Forecasting: a signal that explains a share of the next bar's return."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.data.windows import Part, Windows
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.testing.probes.probe import Probe
from ml_workbench_service.testing.synthetic import problem, skill


class ForecastingProbe(Probe):
    """Skill: 1 - MSE ÷ MSE of "no change"."""

    model_type: ClassVar[ModelType] = ModelType.TIME_SERIES
    injected: ClassVar[float] = 0.15
    chance: ClassVar[float] = 0.02

    def problem(self, windows: Windows, *, seed: int = 0, checkpoint: Checkpoint | None = None) -> TrainingProblem:
        """`price_change_1h`."""
        return problem(windows, "price_change_1h", seed=seed, checkpoint=checkpoint)

    def quality(
        self, model: Trained, windows: Windows, part: Part = "test", *, length: int | None = None,
        symbols: Sequence[int] | None = None,
    ) -> float:  # fmt: skip
        """Skill in squared error against no change."""
        ends = windows.parts[part]
        if symbols is not None:
            ends = ends[np.isin(windows.symbol_R[ends], symbols)]
        forecasts = model.predict(windows.gather(ends, length)).outputs_NK[:, 0] * windows.label_scale_RK[ends, 0]
        return skill(windows.own_labels_RK[ends, 0], forecasts)
