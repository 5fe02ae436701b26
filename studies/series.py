"""Simulated hourly bars on which the truth is known: a driftless market of many kinds, and one with an injected signal.

    r(t + 1) = s(t + 1) · (√r2 · f(t) + √(1 - r2) · z(t + 1)) + jump(t + 1)          s from the past and a hidden regime
    close(t + 1) = close(t) · (1 + r(t + 1))

Without a signal every simple return is symmetric around zero given the whole past, so the close is a martingale and
nobody can have skill. Volatility is what makes that hard to see: it clusters and answers falls more than rises
(Glosten, Jagannathan and Runkle, Journal of Finance 48, 1993), with Student's t (Bollerslev, Review of Economics and
Statistics 69, 1987), jumps (Merton, Journal of Financial Economics 3, 1976), hidden regimes (Hamilton and Susmel,
Journal of Econometrics 64, 1994), the hour of the day and the weekend. All parameters of a series are drawn
from its seed; these generators share no code with the service's own simulation.

With a signal, `f` is a standard normal column of the bars known at the close of bar t; `mean` is the known conditional
mean of the next simple return, and its R² is r2 of the returns' variance.

Legend: N bars, oldest first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import HOUR_MS

FIRST_MS = int(datetime(2012, 1, 1, 22, tzinfo=UTC).timestamp()) * 1000
"""A Sunday 17:00 in New York."""
SYMBOL = "EUR/USD"
DEVIATION = 0.001
"""Of an hourly return: some ten basis points."""
KINDS = ("garch", "garch and jumps", "garch and regimes", "garch, jumps and regimes")
LARGEST_MOVE = 0.2
"""No return is larger; the generators' rarest moves are cut symmetrically, so the price stays a martingale."""
LARGEST_SHOCK = 5.5
"""In deviations, where shocks feed the variance: so that one draw of a heavy tail cannot make it explode."""


@dataclass(frozen=True)
class Series:
    """Bars of one pair, and what is true of them."""

    kind: str
    opened_ms: Ints  # (N,)
    close: Floats  # (N,)
    deviation: Floats  # (N,) of each bar's return, before jumps
    mean: Floats  # (N,) best forecast of the next bar's simple return, made at this bar; zeros without a signal
    signal: Floats | None  # (N,) standard normal, the user's own column

    @property
    def prices(self) -> dict[str, Floats]:
        """Open, high, low and close, each (N,)."""
        opened = np.concatenate([self.close[:1], self.close[:-1]])
        reach = 0.5 * self.deviation  # a bar's extremes lie beyond its ends
        return {
            "open": opened,
            "high": np.maximum(opened, self.close) * (1 + reach),
            "low": np.minimum(opened, self.close) * (1 - np.minimum(reach, 0.5)),
            "close": self.close,
        }

    def write(self, folder: Path, more: Mapping[str, Floats] | None = None, *, declares: bool = False) -> None:
        """`EURUSD_1h.parquet`, with the column `signal` where there is one, and more columns (N,) by name.

        Args:
            declares: whether the file claims of every bar that all of it was known at its end (`available_at`).
        """
        moments = [datetime.fromtimestamp(int(each) / 1000, tz=UTC) for each in self.opened_ms]
        columns: dict[str, Any] = {"timestamp": moments, **self.prices}
        if declares:
            columns["available_at"] = [moment + timedelta(hours=1) for moment in moments]
        if self.signal is not None:
            columns["signal"] = self.signal
        folder.mkdir(parents=True, exist_ok=True)
        columns |= more or {}
        pl.DataFrame(columns).write_parquet(folder / "EURUSD_1h.parquet")


def null_series(num: int, *, seed: int, number: int) -> Series:
    """The `number`-th driftless series of a seed, of the four kinds in turn; N = num."""
    chance = np.random.default_rng([seed, number, 0])
    kind = KINDS[number % len(KINDS)]
    opened_ms = open_hours(num)
    deviation, shocks = _volatile(chance, opened_ms, has_regimes="regimes" in kind)
    moves = deviation * shocks
    if "jumps" in kind:
        moves = moves + _jumps(chance, num)
    return Series(kind, opened_ms, _prices(chance, moves), deviation, np.zeros(num), None)


def injected_series(num: int, *, seed: int, number: int, r2: float) -> Series:
    """The `number`-th series of a seed whose column `signal` explains `r2` of the next return's variance; N = num.

    The volatility clusters mildly and has the hours' pattern; with jumps and regimes the R² of the returns' variance
    would say little about what can be learnt.
    """
    chance = np.random.default_rng([seed, number, 1])
    opened_ms = open_hours(num)
    signal = chance.standard_normal(num)
    variance = _garch(_student(chance, num, freedom=8.0), alpha=0.03, beta=0.95, leverage=0.0)
    deviation = DEVIATION * np.sqrt(variance / variance.mean())
    shocks = _student(np.random.default_rng([seed, number, 2]), num, freedom=8.0)
    mean = np.sqrt(r2) * DEVIATION * signal
    moves = np.sqrt(1 - r2) * deviation * shocks
    moves[1:] += mean[:-1]
    return Series("injected signal", opened_ms, _prices(chance, moves), deviation, mean, signal)


def open_hours(num: int) -> Ints:
    """(N,) openings of the first `num` hours of the FX week since `FIRST_MS`."""
    hours = FIRST_MS + HOUR_MS * np.arange(num * 7 // 5 + 400, dtype=np.int64)
    return np.asarray(hours[calendar.is_open(hours)][:num], dtype=np.int64)


def _prices(chance: np.random.Generator, moves: Floats) -> Floats:
    level = float(np.exp(chance.uniform(np.log(0.6), np.log(2.0))))
    moves = np.clip(moves, -LARGEST_MOVE, LARGEST_MOVE)
    moves[0] = 0.0
    return np.asarray(level * np.cumprod(1 + moves), dtype=np.float64)


def _volatile(chance: np.random.Generator, opened_ms: Ints, *, has_regimes: bool) -> tuple[Floats, Floats]:
    """Each bar's deviation, and shocks of variance one to multiply it with."""
    num = len(opened_ms)
    shocks = _student(chance, num, freedom=float(chance.uniform(3.0, 10.0)))
    alpha = float(chance.uniform(0.02, 0.12))
    leverage = float(chance.uniform(0.0, 0.5)) * alpha
    persistence = float(chance.uniform(0.9, 0.995))
    variance = _garch(shocks, alpha=alpha, beta=persistence - alpha - leverage / 2, leverage=leverage)
    deviation = DEVIATION * float(np.exp(chance.uniform(-0.7, 0.7))) * np.sqrt(variance) * _hours(chance, opened_ms)
    if has_regimes:
        deviation = deviation * _regimes(chance, num)
    return deviation, shocks


def _student(chance: np.random.Generator, num: int, *, freedom: float) -> Floats:
    """Student's t with variance one; `freedom` above two."""
    return np.asarray(chance.standard_t(freedom, num) * np.sqrt((freedom - 2) / freedom))


def _garch(shocks: Floats, *, alpha: float, beta: float, leverage: float) -> Floats:
    """(N,) variance relative to its long run, each from the shocks before it."""
    cut = np.clip(shocks, -LARGEST_SHOCK, LARGEST_SHOCK)
    answers = (alpha * cut**2 + leverage * cut**2 * (cut < 0) + beta).tolist()
    rest = 1.0 - alpha - beta - leverage / 2
    variance, path = 1.0, []
    for answer in answers:
        path.append(variance)
        variance = rest + variance * answer
    return np.array(path)


def _hours(chance: np.random.Generator, opened_ms: Ints) -> Floats:
    """(N,) factor of the hour of the day, and of the first hour after a weekend."""
    amplitude, phase = float(chance.uniform(0.0, 0.6)), float(chance.uniform(0.0, 2 * np.pi))
    hour = (opened_ms // HOUR_MS % 24) / 24
    factor = np.exp(amplitude * np.sin(2 * np.pi * hour + phase))
    after_weekend = np.diff(opened_ms, prepend=opened_ms[0]) > 24 * HOUR_MS
    return np.asarray(np.where(after_weekend, factor * float(chance.uniform(1.0, 4.0)), factor))


def _regimes(chance: np.random.Generator, num: int) -> Floats:
    """(N,) factor of a hidden Markov state: calm, usual or stormy, each lasting days to months."""
    factors = np.exp(np.array([chance.uniform(-1.2, -0.3), 0.0, chance.uniform(0.4, 1.6)]))
    lasting = np.exp(chance.uniform(np.log(48), np.log(1500), size=3))
    path = np.empty(num)
    at, state = 0, int(chance.integers(3))
    while at < num:
        until = at + 1 + int(chance.exponential(lasting[state]))
        path[at:until] = factors[state]
        at, state = until, int((state + chance.integers(1, 3)) % 3)
    return path


def _jumps(chance: np.random.Generator, num: int) -> Floats:
    """(N,) rare symmetric moves of three to twelve usual deviations, from once a week to once in a quarter."""
    rate = float(np.exp(chance.uniform(np.log(1 / 1500), np.log(1 / 120))))
    size = DEVIATION * float(chance.uniform(3.0, 12.0))
    return np.asarray(np.where(chance.random(num) < rate, size * chance.standard_normal(num), 0.0))
