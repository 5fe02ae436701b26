"""Monitoring log: a line for each sampled answer of a live version, written beside the answers and not within them.

The lines of all answers that one turn of the event loop gave are written at once, right after it: by then their clients
are being answered, and a write costs as much for one line as for thirty.
"""

import asyncio
import logging
import time
from typing import Any

import numpy as np

from common_lib.logging import log_events
from ml_workbench_service.contracts.market import Bools
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.runs.records import RecordRun

NAMES = (
    "prediction_id", "model_id", "version", "symbol", "sample", "status", "prediction", "novelty", "correlation_id",
)  # fmt: skip

_PATHS = (*NAMES[:-2], "novelty.score", "metadata.correlation_id")
"""Where a record has them."""

log = logging.getLogger("ml_workbench.monitoring")


class MonitoringLog:
    """The lines of one service; call it in the event loop."""

    def __init__(self) -> None:
        self._events: list[tuple[Any, ...]] = []
        self._times_s: list[float] = []

    def note(self, record: PredictionRecord) -> None:
        """One more line."""
        if not log.isEnabledFor(logging.INFO):
            return
        if not self._events:
            asyncio.get_running_loop().call_soon(self.write)
        novelty = None if record.novelty is None else record.novelty.score
        self._times_s.append(time.time())
        self._events.append(
            (
                "prediction", record.prediction_id, record.model_id, record.version, record.symbol, record.sample,
                record.status, record.prediction, novelty, record.metadata.correlation_id,
            )
        )  # fmt: skip

    def note_run(self, run: RecordRun, is_noted_N: Bools) -> None:
        """A line for each of these rows."""
        if not is_noted_N.any() or not log.isEnabledFor(logging.INFO):
            return
        if not self._events:
            asyncio.get_running_loop().call_soon(self.write)
        noted = run.taken(np.flatnonzero(is_noted_N))
        columns = [noted.column(path).values() for path in _PATHS]
        self._times_s += [time.time()] * len(noted)
        self._events += [("prediction", *values) for values in zip(*columns, strict=True)]

    def write(self) -> None:
        """Writes what is kept."""
        events, self._events = self._events, []
        times_s, self._times_s = self._times_s, []
        log_events(log, logging.INFO, NAMES, events, times_s=times_s)
