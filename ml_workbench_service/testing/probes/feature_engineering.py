"""Feature selection: a column that tells of the next bar's return, beside one that does not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.data.windows import Part, Windows
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.testing.probes.probe import Probe
from ml_workbench_service.testing.synthetic import HOUR_MS, problem

CANDIDATES = tuple(
    parse(text)
    for text in ("signal", "noise", "lag(signal, 1)", "lag(noise, 1)", "signal / noise", "zscore(noise, 24)")
)


class FeatureEngineeringProbe(Probe):
    """1 where the best of what was chosen beats what luck reaches, 0 where it does not."""

    model_type: ClassVar[ModelType] = ModelType.FEATURE_ENGINEERING
    injected: ClassVar[float] = 0.5
    chance: ClassVar[float] = 0.5

    def problem(self, windows: Windows, *, seed: int = 0, checkpoint: Checkpoint | None = None) -> TrainingProblem:
        """Six candidate expressions over a column that tells and one that does not."""
        tables = []
        for number, symbol in enumerate(windows.symbols):
            rows = np.flatnonzero(windows.symbol_R == number)
            known = windows.available_at_ms_R[rows]
            columns = {"signal": windows.rows_RF[rows, 0], "noise": windows.rows_RF[rows, 1]}
            tables.append(
                FeatureTable(
                    symbol,
                    "1h",
                    known - HOUR_MS,
                    known,
                    {name: column.astype(np.float64) for name, column in columns.items()},
                    "file",
                )
            )
        asked = problem(windows, "price_change_1h", seed=seed, checkpoint=checkpoint)
        return replace(asked, tables=tuple(tables), candidates=CANDIDATES)

    def quality(
        self, model: Trained, windows: Windows, part: Part = "test", *, length: int | None = None,
        symbols: Sequence[int] | None = None,
    ) -> float:  # fmt: skip
        """Whether the best expression is the signal, above what luck reaches."""
        selection = model.findings["selection"]
        best = max(selection.chosen, key=lambda each: each.score)
        return float(best.expression.text == "signal" and best.score > selection.chance_level)
