"""FX calendar: open-market time, runs of consecutive bars, closures, 17:00 New York rolls.

The week opens Sunday 17:00 and closes Friday 17:00 New York (22:00 UTC in winter, 21:00 in summer). Clocks change on
Sunday 02:00 New York, while the market is closed, so each week has exactly 120 open hours and each trading day 24.

Legend: every time is int64 milliseconds since the epoch, UTC; N bars. Functions take arrays or single numbers and
answer with arrays of the same shape (a 0-d array for a number). Arithmetic is in whole milliseconds, hence exact.
Times outside 1970 to 2100 are refused.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, to_ms
from ml_workbench_service.contracts.market import Bools, Ints

Calendar = Literal["fx", "fixings"]
Moments = Ints | int
NEW_YORK = ZoneInfo("America/New_York")
ROLL_HOUR = 17  # the FX day ends at 17:00 New York
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
WEEK_OPEN_MS = 120 * HOUR_MS  # Sunday 17:00 to Friday 17:00 New York
SWAP_DAYS = ((1, 1, 1, 3, 1, 0, 0), (1, 1, 3, 1, 1, 0, 0))
"""Of the Monday … Sunday roll, for pairs that settle at T+1 and at T+2: the roll whose value date moves from Friday to
Monday, Thursday's or Wednesday's, carries the weekend."""
HOLIDAYS = ((12, 25), (1, 1))  # trading days on which bars may be missing without being a gap
MAX_FIXINGS_JUMP_MS = 7 * DAY_MS  # the longest scheduled pause of ECB fixings is five days (Easter)
_FIRST_YEAR, _LAST_YEAR = 1970, 2100


@dataclass(frozen=True)
class _Tables:
    """Borders of every week, every roll and every holiday between 1970 and 2100."""

    opens_ms: Ints  # (W,) Sunday 17:00 New York
    rolls_ms: Ints  # (R,) every day's 17:00 New York
    cumulative_days: Ints  # (2, R + 1) of swap, for settlement at T+1 and T+2
    holiday_starts_ms: Ints  # (H,) ends lie a day later
    holiday_dates: NDArray[np.datetime64]


def _sunday_opening_ms(day: datetime) -> int:
    return to_ms(day.replace(hour=ROLL_HOUR, tzinfo=NEW_YORK))


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    first, last = datetime(_FIRST_YEAR, 1, 4), datetime(_LAST_YEAR, 12, 31)  # 4 January 1970 is a Sunday
    sundays = range(0, (last - first).days, 7)
    opens = np.array([_sunday_opening_ms(first + timedelta(days=k)) for k in sundays], dtype=np.int64)
    # Clocks change between Saturday's roll and Sunday's, so a week's other six rolls follow its opening by whole days.
    rolls = (opens[:, None] + np.arange(7) * DAY_MS).ravel()
    from_sunday = np.roll(np.array(SWAP_DAYS, dtype=np.int64), 1, axis=1)
    cumulative_days = np.cumsum(np.tile(from_sunday, len(opens)), axis=1)
    years = range(_FIRST_YEAR + 1, _LAST_YEAR)
    holidays = sorted(datetime(year, *date) for year in years for date in HOLIDAYS)
    return _Tables(
        opens_ms=opens,
        rolls_ms=rolls,
        cumulative_days=np.pad(cumulative_days, ((0, 0), (1, 0))),
        holiday_starts_ms=rolls[[(day - first).days - 1 for day in holidays]],
        holiday_dates=np.array(holidays, dtype="datetime64[D]"),
    )


def _checked(at_ms: Moments) -> Ints:
    moments = np.asarray(at_ms, dtype=np.int64)
    rolls = _tables().rolls_ms
    if moments.size and (moments.min() < rolls[0] or moments.max() >= rolls[-1]):
        raise DataValidationError.at(
            "time", f"a time lies outside {_FIRST_YEAR} to {_LAST_YEAR}; check its unit and year", code="out_of_range"
        )
    return moments


def _last_at(borders_ms: Ints, moments: Ints, period_ms: int) -> Ints:
    """The number of the last border at or before each checked moment.

    Borders follow one another by the period, in summer an hour early; so a division finds the last one or the one
    before it, several times faster than a search.
    """
    number = (moments - borders_ms[0]) // period_ms
    last = len(borders_ms) - 1
    return np.asarray(np.minimum(number + (borders_ms[np.minimum(number + 1, last)] <= moments), last), dtype=np.int64)


def is_open(at_ms: Moments) -> Bools:
    """Whether the FX week is on at that moment (the opening belongs to it, the close does not)."""
    moments = _checked(at_ms)
    opens = _tables().opens_ms
    return np.asarray(moments - opens[_last_at(opens, moments, WEEK_MS)] < WEEK_OPEN_MS)


def market_ms(at_ms: Moments) -> Ints:
    """Open-market milliseconds since the first week of 1970: like a clock that stops over the weekend."""
    moments = _checked(at_ms)
    opens = _tables().opens_ms
    week = _last_at(opens, moments, WEEK_MS)
    return np.asarray(week * WEEK_OPEN_MS + np.minimum(moments - opens[week], WEEK_OPEN_MS), dtype=np.int64)


def advance(at_ms: Moments, duration_ms: Moments) -> Ints:
    """The earliest moment by which that much open-market time has passed; a negative duration goes back.

    Friday 16:00 New York plus an hour is Friday 17:00, plus two hours is Sunday 18:00.
    """
    moments = _checked(at_ms)
    wanted = market_ms(moments) + np.asarray(duration_ms, dtype=np.int64)
    opens = _tables().opens_ms
    week = np.clip((wanted - 1) // WEEK_OPEN_MS, 0, len(opens) - 1)
    reached = opens[week] + wanted - week * WEEK_OPEN_MS
    return np.where(np.asarray(duration_ms) == 0, moments, _checked(reached)).astype(np.int64)


def is_open_at(at_ms: int) -> bool:
    """`is_open` of one moment in half a microsecond: a live answer asks a dozen such questions."""
    opens_ms, _ = _week_openings()
    return at_ms - opens_ms[_week_of(at_ms)] < WEEK_OPEN_MS


def market_ms_at(at_ms: int) -> int:
    """`market_ms` of one moment."""
    week = _week_of(at_ms)
    return week * WEEK_OPEN_MS + min(at_ms - _week_openings()[0][week], WEEK_OPEN_MS)


def advance_from(at_ms: int, duration_ms: int) -> int:
    """`advance` from one moment."""
    wanted_ms = market_ms_at(at_ms) + duration_ms
    if duration_ms == 0:
        return at_ms
    opens_ms, _ = _week_openings()
    week = min(max((wanted_ms - 1) // WEEK_OPEN_MS, 0), len(opens_ms) - 1)
    reached_ms = opens_ms[week] + wanted_ms - week * WEEK_OPEN_MS
    _week_of(reached_ms)
    return reached_ms


@lru_cache(maxsize=1)
def _week_openings() -> tuple[tuple[int, ...], int]:
    """Every week's opening, and the last moment that is known, as Python's own numbers."""
    tables = _tables()
    return tuple(tables.opens_ms.tolist()), int(tables.rolls_ms[-1])


def _week_of(at_ms: int) -> int:
    """The number of the week of one moment, by the division of `_last_at`."""
    opens_ms, end_ms = _week_openings()
    if not opens_ms[0] <= at_ms < end_ms:
        _checked(at_ms)  # raises
    number = (at_ms - opens_ms[0]) // WEEK_MS
    last = len(opens_ms) - 1
    return min(number + (opens_ms[min(number + 1, last)] <= at_ms), last)


def week_opening(at_ms: Moments) -> Ints:
    """The Sunday 17:00 New York at or before that moment."""
    moments = _checked(at_ms)
    opens = _tables().opens_ms
    return np.asarray(opens[_last_at(opens, moments, WEEK_MS)], dtype=np.int64)


def trading_day_opening(at_ms: Moments) -> Ints:
    """The 17:00 New York at or before that moment: where its FX day began."""
    moments = _checked(at_ms)
    rolls = _tables().rolls_ms
    return np.asarray(rolls[_last_at(rolls, moments, DAY_MS)], dtype=np.int64)


def is_holiday(at_ms: Moments) -> Bools:
    """Whether that moment lies in the trading day, New York, of 25 December or 1 January."""
    moments = _checked(at_ms)
    starts = _tables().holiday_starts_ms
    passed = np.searchsorted(starts, moments, side="right") - 1
    return np.asarray((passed >= 0) & (moments < starts[np.maximum(passed, 0)] + DAY_MS))


def swap_days(from_ms: Moments, to_ms: Moments, *, spot_lag_days: Moments) -> Ints:
    """Days of swap charged to a position held over (from, to]; whole arrays at once.

    Args:
        from_ms, to_ms: of the holding.
        spot_lag_days: 2 or 1, from the trade to the pair's value date (`market.costs.spot_lag_days`).
    """
    tables, row = _tables(), np.asarray(spot_lag_days, dtype=np.int64) - 1
    begins, ends = (np.searchsorted(tables.rolls_ms, _checked(each), side="right") for each in (from_ms, to_ms))
    return np.asarray(tables.cumulative_days[row, ends] - tables.cumulative_days[row, begins], dtype=np.int64)


@lru_cache(maxsize=1)
def _holidays_before_ms() -> Ints:
    """(H + 1,) open-market milliseconds of the holidays before each."""
    starts = _tables().holiday_starts_ms
    return np.concatenate([[0], np.cumsum(market_ms(starts + DAY_MS) - market_ms(starts))])


def _holiday_ms(at_ms: Ints) -> Ints:
    """Milliseconds of holiday passed until then; every holiday is one trading day of the week's open time, or none."""
    starts, open_before = _tables().holiday_starts_ms, _holidays_before_ms()
    passed = np.searchsorted(starts, at_ms, side="right") - 1
    today_start = starts[np.maximum(passed, 0)]
    today = market_ms(np.minimum(at_ms, today_start + DAY_MS)) - market_ms(today_start)
    return np.where(passed < 0, 0, open_before[np.maximum(passed, 0)] + today).astype(np.int64)


def expected_ms(at_ms: Moments) -> Ints:
    """`market_ms` without the holidays: only this much time must be covered by bars."""
    moments = _checked(at_ms)
    return market_ms(moments) - _holiday_ms(moments)


def _trading_dates(opened_ms: Ints) -> NDArray[np.datetime64]:
    """The date of a daily bar: of its middle, so that bars from midnight UTC and from 17:00 New York agree."""
    return (opened_ms + DAY_MS // 2).astype("datetime64[ms]").astype("datetime64[D]")


def _breaks(opened_ms: Ints, timeframe_ms: int, calendar: Calendar) -> Bools:
    """(N - 1,) whether an expected bar is missing between each bar and the next."""
    before, after = opened_ms[:-1], opened_ms[1:]
    if calendar == "fixings":
        return np.asarray(after - before > MAX_FIXINGS_JUMP_MS)
    if timeframe_ms >= DAY_MS:
        dates = _trading_dates(opened_ms)
        between = np.busday_count(dates[:-1] + 1, dates[1:], holidays=_tables().holiday_dates)
        return np.asarray(between > 0)
    slots = (after - before) // timeframe_ms  # whole bars from one opening to the next
    breaks = np.zeros(len(before), dtype=np.bool_)
    apart = np.flatnonzero(slots != 1)  # next to each other nothing is missing, and nearly all are
    before, slots = before[apart], slots[apart]
    missing = expected_ms(before + slots * timeframe_ms) - expected_ms(before + timeframe_ms)
    # Half a bar of tolerance: feeds differ in whether they write the stub bars at the week's ends.
    breaks[apart] = 2 * missing >= timeframe_ms
    return breaks


def runs(opened_ms: Ints, timeframe_ms: int, calendar: Calendar) -> Ints:
    """(N,) number of the run of consecutive bars that each bar belongs to, from 0 upwards.

    A scheduled closure is no gap: weekends, 25 December and 1 January (New York trading days), and with `fixings`
    any pause up to seven days. A missing expected bar starts a new run. Bars must be strictly increasing.
    """
    if len(opened_ms) == 0:
        return np.zeros(0, dtype=np.int64)
    moments = _checked(opened_ms)
    return np.concatenate([[0], np.cumsum(_breaks(moments, timeframe_ms, calendar))]).astype(np.int64)


def num_expected_bars(start_ms: int, end_ms: int, timeframe: str) -> int:
    """How many bars of the FX week open within [start, end), holidays left out: an estimate, good to a bar or two."""
    if end_ms <= start_ms:
        return 0
    length_ms = TIMEFRAMES_MS[timeframe]
    span_ms = int(expected_ms(end_ms) - expected_ms(start_ms))
    return -(-span_ms // length_ms)
