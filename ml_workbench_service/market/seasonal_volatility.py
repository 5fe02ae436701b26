"""Seasonal volatility of intraday bars: how much a bar of this hour usually moves, and an EWMA of what is left.

    volatility of the coming bars = EWMA of (return ÷ its bar's factor) x root mean square of their factors
    log factor of a bar           = Tokyo + London + New York, each a profile over the day on its own clock

Idea: FX volatility has the pattern of the centres' working days (Andersen and Bollerslev, Journal of Empirical Finance
4, 1997), and each centre keeps its own clock: London's and New York's change on different Sundays, Tokyo's never. An
EWMA of plain returns is late by hours: it says at London's opening what Asia's night was like.

Fitted on the training part: each |return| ÷ its FX day's mean |return|, so that no storm decides; the mean of each
combination of clock cells; a ridge regression of its log on the cells, weighted by count, with a penalty of `SHRINKAGE`
observations, which for one profile is a shrinkage of n / (n + 20) and with three shares what they cannot tell apart.
The week's first bar, which holds the weekend's jump, has a cell of its own. 25 December and 1 January teach nothing;
neither do days with under half of their bars, nor returns over a missing bar. Under `FEWEST_WEEKS` weeks there is one
profile, of New York's hours. Daily bars have no season: every factor is 1, and the volatility is `ewma_volatility`.

When it fails: scheduled news moves single days, and the pattern drifts over years; it is a mean of the training part.

Legend: N bars, of one symbol. Times are openings, int64 milliseconds since the epoch, UTC. A factor is a function of
the opening alone, and sums of squares run in whole numbers: a bar's volatility does not depend on which other bars are
computed with it, to the bit.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np

from ml_workbench_service.contracts.contract import Contract, Finite, to_ms
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS, NEW_YORK, WEEK_OPEN_MS
from ml_workbench_service.market.targets import ewma_deviation, ewma_of_windows

SHRINKAGE = 20.0
"""Observations of an ordinary bar that each cell begins with."""
FEWEST_WEEKS = 20
"""Weeks of training under which a single profile of hours is all that can be told apart."""
FACTOR_BOUNDS = (0.2, 5.0)
FINEST_CELL_MS = 5 * 60_000
"""A year of minutes has 50,000 returns for the 864 cells of five minutes on three clocks."""
DAY_SHARE = 0.5
"""Of a day's usual bars, under which its mean tells too little."""
MOST_SPAN_MS = 100 * DAY_MS
"""Between moments that are looked at together: of minutes 100,000 bars."""
DECIMALS = 9
"""Of log factors: sums in another order, as of other threads or processors, end in the same numbers."""
TOKYO = ZoneInfo("Asia/Tokyo")
LONDON = ZoneInfo("Europe/London")
_UNIT = float(2**30)
"""Of squared factors as whole numbers: 25 x 2^30 over ten years of minutes stays below 2^63."""


class SeasonalProfile(Contract):
    """Log factors of one symbol's bars by the time of their opening; without profiles every factor is 1."""

    timeframe_ms: int
    cell_ms: int = HOUR_MS
    tokyo: tuple[Finite, ...] = ()
    london: tuple[Finite, ...] = ()
    new_york: tuple[Finite, ...] = ()
    week_opening: Finite = 0.0  # log factor of the week's first bar
    week_delay_ms: int = 0  # how long after Sunday 17:00 New York the feed's first bar opens
    log_scale: Finite = 0.0  # added to all: their mean square is 1 on the training part

    @classmethod
    def fit(cls, opened_ms: Ints, log_returns: Floats, timeframe_ms: int) -> "SeasonalProfile":
        """From the training part of one symbol.

        Args:
            opened_ms: (N,) strictly increasing.
            log_returns: (N,) of each bar, from the close before; NaN where unknown.
            timeframe_ms: length of a bar.
        """
        flat = cls(timeframe_ms=timeframe_ms)
        if timeframe_ms >= DAY_MS or len(opened_ms) < 2:
            return flat
        flat = flat.model_copy(update={"week_delay_ms": _week_delay_ms(opened_ms, timeframe_ms)})
        sample = _sample(flat, opened_ms, log_returns)
        if not len(sample.moves_M):
            return flat
        if len(_starts(calendar.week_opening(sample.opened_ms_M))) < FEWEST_WEEKS:
            profile = flat.model_copy(update=_fitted(sample, {"new_york": NEW_YORK}, HOUR_MS))
        else:
            clocks = {"tokyo": TOKYO, "london": LONDON, "new_york": NEW_YORK}
            cell_ms = min(max(timeframe_ms, FINEST_CELL_MS), HOUR_MS)
            profile = flat.model_copy(update={"cell_ms": cell_ms, **_fitted(sample, clocks, cell_ms)})
        squares = np.exp(2 * profile._log_factor(sample.opened_ms_M))
        return profile.model_copy(update={"log_scale": round(-0.5 * float(np.log(squares.mean())), DECIMALS)})

    @property
    def is_flat(self) -> bool:
        """Whether every factor is 1."""
        return not (self.tokyo or self.london or self.new_york or self.week_opening)

    def factor(self, opened_ms: Ints) -> Floats:
        """(N,) how much a bar that opens then usually moves, relative to all."""
        if self.is_flat:
            return np.ones(len(opened_ms))
        return np.clip(np.exp(self._log_factor(opened_ms)), *FACTOR_BOUNDS)

    def coming_factor(self, opened_ms: Ints, horizon: int = 1) -> Floats:
        """(N,) root mean square of the factors of the `horizon` bars after each; closures are passed over."""
        if self.is_flat:
            return np.ones(len(opened_ms))
        phases = opened_ms % self.timeframe_ms  # bars on New York's clock have two of them, one in summer
        if len(phases) and (phases == phases[0]).all():
            return self._coming_factor(opened_ms, horizon)
        found = np.empty(len(opened_ms))
        for phase in np.unique(phases):
            here = phases == phase
            found[here] = self._coming_factor(opened_ms[here], horizon)
        return found

    def is_week_opening(self, opened_ms: Ints) -> Bools:
        """(N,) whether a bar is the first of its FX week."""
        ends_ms = opened_ms + self.timeframe_ms - 1
        return np.asarray(opened_ms <= calendar.week_opening(ends_ms - self.week_delay_ms) + self.week_delay_ms)

    def _log_factor(self, opened_ms: Ints) -> Floats:
        total = np.full(len(opened_ms), self.log_scale)
        for zone, effects in ((TOKYO, self.tokyo), (LONDON, self.london), (NEW_YORK, self.new_york)):
            if effects:
                total += np.array(effects)[_cells(opened_ms, zone, self.cell_ms)]
        return np.where(self.is_week_opening(opened_ms), self.log_scale + self.week_opening, total)

    def _coming_factor(self, opened_ms: Ints, horizon: int) -> Floats:
        """Of bars whose openings differ by whole bars within a week."""
        first_ms, last_ms = int(opened_ms.min()), int(opened_ms.max())
        grid_ms = self._grid(first_ms, last_ms, horizon)
        squares = np.rint(self.factor(grid_ms) ** 2 * _UNIT).astype(np.int64)
        total = np.concatenate([[0], np.cumsum(squares)])
        next_N = np.searchsorted(grid_ms, opened_ms, side="right")
        return np.asarray(np.sqrt((total[next_N + horizon] - total[next_N]) / _UNIT / horizon))

    def _grid(self, first_ms: int, last_ms: int, horizon: int) -> Ints:
        """Openings of the expected bars from the first one on, until `horizon` of them lie beyond the last one."""
        length_ms = self.timeframe_ms
        num_weeks = (last_ms - first_ms) // (7 * DAY_MS) + horizon * length_ms // WEEK_OPEN_MS + 4
        weeks_ms = calendar.week_opening(calendar.week_opening(first_ms) + 7 * DAY_MS * np.arange(num_weeks) + DAY_MS)
        begins_ms = weeks_ms + self.week_delay_ms
        begins_ms = begins_ms - (begins_ms - first_ms) % length_ms
        nums = -(-(weeks_ms + WEEK_OPEN_MS - begins_ms) // length_ms)
        within = np.arange(int(nums.sum())) - np.repeat(np.cumsum(nums) - nums, nums)
        grid_ms = np.repeat(begins_ms, nums) + length_ms * within
        first, last = np.searchsorted(grid_ms, [first_ms, last_ms], side="right")
        return np.asarray(grid_ms[max(int(first) - 1, 0) : int(last) + horizon], dtype=np.int64)


def seasonal_volatility(profile: SeasonalProfile, opened_ms: Ints, log_returns: Floats, *, horizon: int = 1) -> Floats:
    """(N,) ex-ante standard deviation of one of the `horizon` bars after each, from returns up to each.

    The root of the mean variance: times the root of the horizon it is that of the whole move. NaN until a quarter of
    the EWMA's kernel is filled.
    """
    return ewma_deviation(deseasonalised(profile, opened_ms, log_returns)) * profile.coming_factor(opened_ms, horizon)


def volatility_of_windows(
    profile: SeasonalProfile | None, opened_ms_NW: Ints, close_NW: Floats, *, horizon: int = 1
) -> Floats:
    """(N,) `seasonal_volatility` at the end of windows of `EWMA_BARS` + 1 bars each, the same to the bit.

    Args:
        profile: None: volatility has no season.
        close_NW: above zero.
    """
    returns_NW = np.diff(np.log(close_NW), axis=1)
    if profile is None or not len(close_NW):
        return ewma_of_windows(returns_NW)
    factors = profile.factor(opened_ms_NW[:, 1:].reshape(-1)).reshape(returns_NW.shape)
    last_ms_N, coming_N = opened_ms_NW[:, -1], np.empty(len(close_NW))
    for number in np.unique(spans_N := last_ms_N // MOST_SPAN_MS):  # a grid of bars lies between the first and the last
        here_N = spans_N == number
        coming_N[here_N] = profile.coming_factor(last_ms_N[here_N], horizon)
    return np.asarray(ewma_of_windows(returns_NW / factors) * coming_N)


def deseasonalised(profile: SeasonalProfile, opened_ms: Ints, log_returns: Floats) -> Floats:
    """(N,) each bar's return in units of its factor."""
    return log_returns / profile.factor(opened_ms)


@dataclass(frozen=True)
class _Sample:
    """M returns that teach: |return| ÷ its day's mean, when each bar opens, and whether it is its week's first."""

    opened_ms_M: Ints
    moves_M: Floats
    is_first_M: Bools


def _week_delay_ms(opened_ms: Ints, timeframe_ms: int) -> int:
    """The median week's: some minutes where a broker opens late, an hour for gold, none where a bar holds 17:00."""
    weeks_N = calendar.week_opening(opened_ms + timeframe_ms - 1)
    firsts = _starts(weeks_N)
    return max(int(np.median(opened_ms[firsts] - weeks_N[firsts])), 0)


def _starts(ascending_N: Ints) -> Ints:
    """The first place of each value."""
    return np.flatnonzero(np.diff(ascending_N, prepend=ascending_N[:1] - 1))


def _sample(profile: SeasonalProfile, opened_ms: Ints, log_returns: Floats) -> _Sample:
    sizes, length_ms = np.abs(log_returns), profile.timeframe_ms
    is_first = profile.is_week_opening(opened_ms)
    gap_ms = np.diff(opened_ms, prepend=opened_ms[0])
    known = np.isfinite(sizes) & np.where(is_first, gap_ms < 4 * DAY_MS, gap_ms == length_ms)
    known &= ~calendar.is_holiday(opened_ms)
    days_N = calendar.trading_day_opening(opened_ms + length_ms - 1)
    day_N = np.cumsum(np.diff(days_N, prepend=days_N[:1]) != 0)
    counted = known & ~is_first  # the weekend's jump is no part of its day's mean
    nums_D = np.bincount(day_N, counted)
    sums_D = np.bincount(day_N, np.where(counted, sizes, 0.0))
    whole_D = (nums_D >= DAY_SHARE * DAY_MS / length_ms) & (sums_D > 0)
    teaches = known & whole_D[day_N]
    moves = sizes[teaches] * nums_D[day_N[teaches]] / sums_D[day_N[teaches]]
    return _Sample(opened_ms[teaches], moves, is_first[teaches])


def _fitted(sample: _Sample, clocks: dict[str, ZoneInfo], cell_ms: int) -> dict[str, object]:
    """Log effects by clock and of the week's opening: a weighted ridge regression of the log means of cells."""
    usual, num_cells = ~sample.is_first_M, DAY_MS // cell_ms
    moves, opened_ms = sample.moves_M[usual], sample.opened_ms_M[usual]
    cells_JM = np.stack([_cells(opened_ms, zone, cell_ms) for zone in clocks.values()])
    combination, counts = np.zeros(len(moves), dtype=np.int64), np.zeros(0, dtype=np.int64)
    for cells_M in cells_JM:  # numbered anew after each clock: few of all combinations occur
        combined = combination * num_cells + cells_M
        counts = np.bincount(combined)
        combination, counts = (np.cumsum(counts > 0) - 1)[combined], counts[counts > 0]
    at = np.zeros(len(counts), dtype=np.int64)
    at[combination] = np.arange(len(moves))  # one of each: all have the same cells
    targets = _log_means(np.bincount(combination, moves).astype(np.float64), counts)
    design = np.zeros((len(counts), len(clocks) * num_cells))
    for number, cells_M in enumerate(cells_JM):
        design[np.arange(len(counts)), number * num_cells + cells_M[at]] = 1.0
    weighted = design * counts[:, None]
    effects = np.linalg.solve(weighted.T @ design + SHRINKAGE * np.eye(design.shape[1]), weighted.T @ targets)
    found: dict[str, object] = {
        name: tuple(np.round(each, DECIMALS).tolist())
        for name, each in zip(clocks, np.split(effects, len(clocks)), strict=True)
    }
    firsts = sample.moves_M[~usual]
    if len(firsts):
        mean = float(_log_means(firsts.sum(keepdims=True), np.array([len(firsts)]))[0])
        found["week_opening"] = round(mean * len(firsts) / (len(firsts) + SHRINKAGE), DECIMALS)
    return found


def _log_means(sums: Floats, counts: Ints) -> Floats:
    """Logs of means, inside the bounds of factors: a cell that never moved has no logarithm."""
    return np.asarray(np.log(np.clip(sums / counts, *FACTOR_BOUNDS)))


def _cells(opened_ms: Ints, zone: ZoneInfo, cell_ms: int) -> Ints:
    """(N,) the cell of the local day in which each bar opens."""
    if not len(opened_ms):
        return np.zeros(0, dtype=np.int64)
    starts_ms, offsets_ms = _offsets(zone)
    first, last = np.searchsorted(starts_ms, [opened_ms.min(), opened_ms.max()], side="right")  # of a century's changes
    offset = np.searchsorted(starts_ms[first:last], opened_ms, side="right")
    local_ms = opened_ms + offsets_ms[first - 1 : last][offset]
    return np.asarray((local_ms - local_ms // DAY_MS * DAY_MS) // cell_ms, dtype=np.int64)


@lru_cache(maxsize=8)
def _offsets(zone: ZoneInfo) -> tuple[Ints, Ints]:
    """From when on a zone is how far ahead of UTC, 1970 to 2100: clocks change on whole hours, never twice a week."""

    def offset_ms(hour: int) -> int:
        ahead = (epoch + timedelta(hours=hour)).astimezone(zone).utcoffset()
        assert ahead is not None, "a zone has an offset"
        return ahead // timedelta(milliseconds=1)

    epoch = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    last = to_ms(datetime.fromisoformat("2101-01-01T00:00:00+00:00")) // HOUR_MS
    starts, offsets, hour, week = [0], [offset_ms(0)], 0, 7 * 24
    while hour < last:
        if offset_ms(hour + week) != offsets[-1]:
            before, after = hour, hour + week
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (middle, after) if offset_ms(middle) == offsets[-1] else (before, middle)
            starts.append(after * HOUR_MS)
            offsets.append(offset_ms(after))
        hour += week
    return np.array(starts, dtype=np.int64), np.array(offsets, dtype=np.int64)
