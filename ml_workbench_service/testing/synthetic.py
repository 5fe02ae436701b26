"""Synthetic market: rows with a signal that is really there, for checks of learning that need no feature store."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common_lib.exceptions import JobCancelled
from ml_workbench_service.accelerators.cpu import Cpu
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.learning.data.windows import SymbolRows, Windows, build
from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.market.costs import resolved_costs

# Before torch is imported: threads that spin while they wait cost most of a busy machine's speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HOUR_MS = 3_600_000
START_MS = 1_600_000_000_000
DEVIATION = 0.001
FEATURES = ("signal", "noise", "close")
IS_LEVEL = (False, False, True)


class OneThread(Cpu):
    """The processor with one thread: tests share it with others. Never chosen by itself."""

    name = "one_thread"
    preference = -1

    def for_training(self) -> object:
        """`torch.device("cpu")`, one thread."""
        import torch

        device = super().for_training()
        torch.set_num_threads(1)
        return device


class Recorder:
    """A `Report` that keeps what it hears, and can be asked to cancel at its n-th check."""

    def __init__(self, *, cancel_at_check: int | None = None) -> None:
        self.steps: list[tuple[int, int, dict[str, float]]] = []
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.num_checks = 0
        self._cancel_at_check = cancel_at_check

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Keeps the step."""
        self.steps.append((step, total, metrics))

    def say(self, message: str) -> None:
        """Keeps the message."""
        self.messages.append(message)

    def warn(self, message: str) -> None:
        """Keeps the warning."""
        self.warnings.append(message)

    def check(self) -> None:
        """Counts, and cancels when its time has come."""
        self.num_checks += 1
        if self._cancel_at_check is not None and self.num_checks >= self._cancel_at_check:
            raise JobCancelled("cancelled by the test")


def symbol_rows(
    symbol: str = "EUR/USD",
    *,
    num: int = 1500,
    seed: int = 0,
    r2: float = 0.3,
    gaps: Sequence[int] = (),
    horizon: int = 1,
    deviation: float = DEVIATION,
) -> SymbolRows:
    """Hourly rows whose `signal` explains `r2` of the next bar's return.

    Args:
        gaps: rows before which a bar is missing: a new run begins there.
        horizon: bars until a label is known.
    """
    chance = np.random.default_rng(seed)
    signal = chance.standard_normal(num)
    returns = np.zeros(num)
    returns[1:] = np.sqrt(r2) * signal[:-1] + np.sqrt(1 - r2) * chance.standard_normal(num - 1)
    close = 1.1 * np.exp(deviation * np.cumsum(returns))
    noise = chance.standard_normal(num)
    starts = np.zeros(num, dtype=np.int64)
    starts[list(gaps)] = 1
    runs: Ints = np.cumsum(starts)
    known = START_MS + HOUR_MS * (np.arange(num) + runs)
    labels, label_known = np.full(num, np.nan), known.copy()
    ahead = np.flatnonzero(runs[horizon:] == runs[:-horizon])
    labels[ahead] = close[ahead + horizon] / close[ahead] - 1
    label_known[ahead] = known[ahead + horizon]
    return SymbolRows(
        symbol=symbol,
        x_NF=np.column_stack([signal, noise, close]),
        labels_NK=labels[:, None],
        label_available_at_ms_N=label_known,
        available_at_ms_N=known,
        runs_N=runs,
        bar_volatility_N=np.full(num, deviation),
        opened_ms_N=known - HOUR_MS,
        open_N=np.concatenate([close[:1], close[:-1]]),
        close_N=close,
        spread_N=np.full(num, np.nan),
        spread_open_N=np.full(num, np.nan),
    )


def with_holes(rows: SymbolRows, holes: Iterable[int]) -> SymbolRows:
    """The same without the noise feature in these rows."""
    x_NF = rows.x_NF.copy()
    x_NF[list(holes), FEATURES.index("noise")] = np.nan
    return replace(rows, x_NF=x_NF)


def cut(*tables: SymbolRows, lookback: int = 8, validation_split: float = 0.4) -> Windows:
    """Windows over `FEATURES`."""
    return build(list(tables), features=FEATURES, is_level=IS_LEVEL, lookback=lookback, split=validation_split)


def skill(labels_N: Floats, forecasts_N: Floats) -> float:
    """1 - MSE ÷ MSE of zero."""
    return float(1 - np.mean((labels_N - forecasts_N) ** 2) / np.mean(labels_N**2))


def problem(windows: Windows, *names: str, seed: int = 0, **more: Any) -> TrainingProblem:
    """What a family is asked to learn; `price_change_1h` unless targets are named."""
    targets = tuple(parse_target(name) for name in names or ("price_change_1h",))
    costs = {symbol: resolved_costs(symbol) for symbol in windows.symbols}
    return TrainingProblem(windows=windows, targets=targets, seed=seed, costs=costs, **more)
