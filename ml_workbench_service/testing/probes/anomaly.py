"""Anomaly detection: anomalies are injected at the end of windows that the detector has not seen."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ml_workbench_service.contracts.market import Floats, Floats32
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.evaluation.injected_anomalies import KINDS, inject
from ml_workbench_service.learning.calibration.anomaly_score import detection
from ml_workbench_service.learning.data.windows import Part, Windows, build
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.testing.probes.probe import Probe
from ml_workbench_service.testing.synthetic import FEATURES, IS_LEVEL, symbol_rows

SHARE = 0.05
"""How common strange windows are among those that are told apart."""


class AnomalyProbe(Probe):
    """Average precision, 0 for chance and 1 for all, of telling a part's strange windows from the training part's.

    `r2` says whether anything is injected: with 0 nothing is, and the part's windows are strange only in that they were
    not trained on. A detector that learnt its training windows by heart tells these apart too; it has found nothing.
    The windows' own labels keep the answer, which no detector reads.
    """

    model_type: ClassVar[ModelType] = ModelType.ANOMALY_DETECTION
    quick: ClassVar[dict[str, Any]] = {**Probe.quick, "bottleneck": 4, "trees": 100, "max_samples": 256}
    injected: ClassVar[float] = 0.5
    chance: ClassVar[float] = 0.05

    def windows(self, *tables: Any, num: int = 2000, r2: float | None = None, seed: int = 0) -> Windows:
        """Labels say whether anything is injected, 1 or 0; no detector reads them."""
        is_injected = float(r2 != 0)
        made = [
            replace(table, labels_NK=np.where(np.isfinite(table.labels_NK), is_injected, np.nan))
            for table in tables or [symbol_rows(num=num, r2=self.r2 if r2 is None else r2, seed=seed)]
        ]
        return build(made, features=FEATURES, is_level=IS_LEVEL, lookback=8, split=0.4, scales_labels=[False])

    def problem(self, windows: Windows, *, seed: int = 0, checkpoint: Checkpoint | None = None) -> TrainingProblem:
        """Nothing is forecast."""
        return TrainingProblem(windows=windows, targets=(), seed=seed, checkpoint=checkpoint)

    def quality(
        self, model: Trained, windows: Windows, part: Part = "test", *, length: int | None = None,
        symbols: Sequence[int] | None = None,
    ) -> float:  # fmt: skip
        """Average precision above that of chance, as a share of what is left."""
        usual, ends = (windows.parts[name] for name in ("train", part))
        if symbols is not None:
            usual, ends = (rows[np.isin(windows.symbol_R[rows], symbols)] for rows in (usual, ends))

        def errors(rows_NTF: Floats32) -> Floats:
            return model.predict(rows_NTF[:, -(length or windows.lookback) :]).outputs_NK[:, 0].astype(np.float64)

        strange = {"nothing": errors(windows.gather(ends))}
        if windows.own_labels_RK[ends, 0].all():
            injected = inject(
                windows.rows_RF, ends, lookback=windows.lookback, is_level_F=windows.scaler.is_level_F, seed=1
            )
            found = errors(injected.windows_NTF)
            strange = {kind: found[injected.of(kind)] for kind in KINDS}
        precision = detection(errors(windows.gather(usual)), strange, threshold=0.0, share=SHARE)["average_precision"]
        return (precision - SHARE) / (1 - SHARE)
