"""Simulated exchange rates: a forward GARCH path with the FX day's volatility seasonality, the week, and no drift.

The log rate moves in steps of five minutes. A step's standard deviation is the hour's GARCH level times the hour's
seasonal factor; signs are symmetric, so the log rate is a martingale and nothing about the past tells the sign of
what follows. Over a weekend the rate jumps. A path depends on its key, level and variance alone and only ever grows at
its end: asking for more weeks changes nothing before.

    v(h + 1) = v (1 - a - b) + v(h) (a z(h)² + b)     per hour h; z standard normal, v the long-run variance

Legend: W weeks, S = 1440 steps a week (Sunday 17:00 to Friday 17:00 New York).
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.market.calendar import HOUR_MS, ROLL_HOUR, WEEK_OPEN_MS, week_opening

STEP_MS = TIMEFRAMES_MS["5m"]
STEPS_A_WEEK = WEEK_OPEN_MS // STEP_MS
STEPS_AN_HOUR = HOUR_MS // STEP_MS
HOURS_A_WEEK = WEEK_OPEN_MS // HOUR_MS
ALPHA, BETA = 0.04, 0.955
"""Hourly GARCH(1,1): half-life of a shock 138 open hours, finite kurtosis (3a² + 2ab + b² < 1)."""
WEEKEND_SHARE = 0.15
"""Variance of the weekend's jump, in days; a round figure for liquid pairs."""
SEASONALITY = (
    *(0.46, 0.70, 1.06, 1.31, 1.13, 0.91, 1.04, 1.05, 1.63, 1.46, 1.59, 1.06),  # New York 0:00 to 11:00
    *(1.01, 1.00, 1.40, 0.87, 0.59, 0.41, 0.58, 0.70, 0.71, 0.76, 0.59, 0.44),  # New York 12:00 to 23:00
)
"""Relative deviation of hourly EUR/USD returns by New York hour, measured on the bars of 2017 in gym-anytrading."""


@dataclass(frozen=True)
class Path:
    """Log rate at the start and the end of every step, oldest first; they differ over weekends only."""

    opened_ms: Ints  # (W * S,)
    starts: Floats  # (W * S,) log
    ends: Floats  # (W * S,) log


def step_openings(origin_ms: int, end_ms: int) -> Ints:
    """Openings of all steps from the week of `origin_ms` up to the whole week that holds `end_ms`."""
    num_weeks = (end_ms - origin_ms) // (7 * 24 * HOUR_MS) + 2
    middles = int(week_opening(origin_ms)) + HOUR_MS * (60 + 168 * np.arange(num_weeks))  # an hour's shift is harmless
    weeks = week_opening(middles)
    weeks = weeks[weeks <= end_ms]
    return np.asarray((weeks[:, None] + STEP_MS * np.arange(STEPS_A_WEEK)).ravel(), dtype=np.int64)


def simulate(opened_ms: Ints, *, key: tuple[int, int], level: float, daily_variance: float) -> Path:
    """The path over whole weeks of steps.

    Args:
        opened_ms: (W * S,) from `step_openings`.
        key: two 64-bit numbers, the seed of a Philox stream (Salmon et al., 2011).
        level: rate at the first opening.
        daily_variance: of the log rate over one trading day, without the weekend's jump.
    """
    num_weeks = len(opened_ms) // STEPS_A_WEEK
    moves = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
    jumps = np.random.Generator(np.random.Philox(key=np.array((key[0], key[1] + 1), dtype=np.uint64)))
    noise = moves.standard_normal((num_weeks * HOURS_A_WEEK, STEPS_AN_HOUR))
    hourly = _hourly_variance(noise.sum(axis=1) ** 2 / STEPS_AN_HOUR) * (daily_variance / 24)
    hours = (ROLL_HOUR + np.arange(HOURS_A_WEEK)) % 24
    season = np.array(SEASONALITY) ** 2 / np.mean(np.array(SEASONALITY) ** 2)
    deviation = np.sqrt(hourly * np.tile(season[hours], num_weeks) / STEPS_AN_HOUR)
    noise *= deviation[:, None]
    weekend = jumps.standard_normal(num_weeks) * np.sqrt(WEEKEND_SHARE * daily_variance)
    weekend[0] = np.log(level)
    ends = noise.reshape(num_weeks, STEPS_A_WEEK)
    ends[:, 0] += weekend
    ends = np.cumsum(ends.ravel())
    starts = np.empty_like(ends)
    starts[1:] = ends[:-1]
    starts[0] = 0.0
    starts[::STEPS_A_WEEK] += weekend
    return Path(opened_ms, starts, ends)


def _hourly_variance(squares: Floats) -> Floats:
    """GARCH(1,1) relative to its long-run variance, from each hour's squared shock; starts at the long run."""
    factors = (ALPHA * squares + BETA).tolist()
    rest = 1.0 - ALPHA - BETA
    return np.fromiter(
        accumulate(factors[:-1], lambda variance, factor: variance * factor + rest, initial=1.0),
        dtype=np.float64,
        count=len(factors),
    )


def cross(*, base: Path | None, quote: Path | None) -> Path:
    """The pair BASE/QUOTE from two legs against one common currency; None is that currency itself.

    Raises:
        ValueError: both are None.
    """
    if base is None or quote is None:
        leg, sign = (quote, 1.0) if base is None else (base, -1.0)
        if leg is None:
            raise ValueError("a pair needs two different currencies")
        return Path(leg.opened_ms, sign * leg.starts, sign * leg.ends)
    return Path(base.opened_ms, quote.starts - base.starts, quote.ends - base.ends)


def candles(path: Path, *, timeframe_ms: int) -> tuple[Ints, Floats, Floats, Floats, Floats]:
    """Opening times, open, high, low, close of bars aligned to UTC; those at the week's ends may be open for less."""
    group = path.opened_ms - path.opened_ms % timeframe_ms
    firsts = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    lasts = np.append(firsts[1:], len(group)) - 1
    high = np.maximum(np.maximum.reduceat(path.starts, firsts), np.maximum.reduceat(path.ends, firsts))
    low = np.minimum(np.minimum.reduceat(path.starts, firsts), np.minimum.reduceat(path.ends, firsts))
    return group[firsts], np.exp(path.starts[firsts]), np.exp(high), np.exp(low), np.exp(path.ends[lasts])
