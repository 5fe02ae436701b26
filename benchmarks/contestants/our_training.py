"""Ours: the family's own `train` with everything on: dropout, clipping, short windows, validation part, event log.

A window that training cuts short is counted by its share of rows, so that cutting wins nothing here.
"""

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from turns import BATCH, LEARNING_RATE, LOOKBACK, UNITS, play

from ml_workbench_service.accelerators.cpu import Cpu
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.families.gru import Gru
from ml_workbench_service.families.lstm import Lstm
from ml_workbench_service.jobs.event_report import EventReport
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.learning.data.windows import SymbolRows, Windows, build
from ml_workbench_service.learning.fitting.loop import SHORT_SHARE
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import MIN_WINDOW

HOUR_MS = 3_600_000
FAMILIES: dict[str, tuple[type[Any], str]] = {"LSTM": (Lstm, "lstm_units"), "GRU": (Gru, "gru_units")}
VALIDATION_SPLIT = 0.2
EPOCHS = 3
ROWS_SHARE = 1 - SHORT_SHARE * (1 - (MIN_WINDOW + LOOKBACK) / 2 / LOOKBACK)
"""Mean length of the windows that training sees, in lookbacks: short ones are uniform down to the shortest."""


class Watch:
    """The real report of a job, and when each epoch ended."""

    def __init__(self, report: EventReport) -> None:
        self._report = report
        self.ended: list[float] = []
        self.losses: list[float] = []
        self.say, self.warn, self.check = report.say, report.warn, report.check

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Notes the time and passes everything on."""
        self._report(step, total, **metrics)
        self.ended.append(time.perf_counter())
        self.losses.append(metrics["train_loss"])


def windows_of(rows_RF: np.ndarray) -> Windows:
    """The same rows as the peers', the next row's first column as the label."""
    num = len(rows_RF) - 1
    available_at_ms = np.arange(1, num + 1, dtype=np.int64) * HOUR_MS
    table = SymbolRows(
        symbol="EUR/USD",
        x_NF=rows_RF[:-1].astype(np.float64),
        labels_NK=rows_RF[1:, :1].astype(np.float64),
        label_available_at_ms_N=available_at_ms + HOUR_MS,
        available_at_ms_N=available_at_ms,
        runs_N=np.zeros(num, dtype=np.int64),
        bar_volatility_N=np.ones(num),
        opened_ms_N=available_at_ms - HOUR_MS,
        open_N=np.ones(num),
        close_N=np.ones(num),
        spread_N=np.full(num, np.nan),
        spread_open_N=np.full(num, np.nan),
    )
    features = [f"f{number}" for number in range(rows_RF.shape[1])]
    level = [False] * len(features)
    return build([table], features=features, is_level=level, lookback=LOOKBACK, split=VALIDATION_SPLIT)


def turn(cell: str, bars: str, num_batches: int) -> dict[str, Any]:
    """One fresh training of a few epochs, timed from the first epoch's end to the last one's."""
    family, units_name = FAMILIES[cell]
    rows_RF = np.load(bars)
    windows = windows_of(rows_RF[: int((num_batches * BATCH + LOOKBACK) / (1 - VALIDATION_SPLIT))])
    hyperparameters = {units_name: UNITS, "lookback": LOOKBACK, "batch_size": BATCH, "epochs": EPOCHS}
    with tempfile.TemporaryDirectory() as root:
        spec = JobSpec(
            id="benchmark", kind=JobKind.TRAIN, request={}, created_at=datetime.now(tz=UTC), correlation_id="benchmark"
        )
        watch = Watch(EventReport(JobFolder.create(Path(root), spec)))
        trained = family({**hyperparameters, "learning_rate": LEARNING_RATE}).train(
            TrainingProblem(windows, (parse_target("price_change_1h"),)), accelerator=Cpu(), report=watch
        )
    seconds = watch.ended[-1] - watch.ended[0]
    num_windows = len(windows.parts["train"]) * (EPOCHS - 1) * ROWS_SHARE
    return {
        "windows_per_s": num_windows / seconds,
        "loss": watch.losses[-1],
        "num_parameters": sum(value.size for value in trained.weights.values()),
        "threads": torch.get_num_threads(),
    }


play(turn)
