"""A network for rules alone."""

import time
from collections.abc import Callable

import numpy as np

from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction


class Formula:
    """Any functions of the window's last value, one an output, and a pause."""

    def __init__(self, *functions: Callable[[float], float], pause_s: float = 0.0) -> None:
        self._functions = functions
        self._pause_s = pause_s

    def predict(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """The function of each window's last value."""
        if self._pause_s:
            until = time.perf_counter() + self._pause_s
            while time.perf_counter() < until:
                pass
        outputs = [[each(float(window[-1, 0])) for each in self._functions] for window in rows_NTF]
        return RawPrediction(np.array(outputs, np.float32), rows_NTF[:, -1])
