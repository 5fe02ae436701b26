"""Reads a column of times as exports write them: ISO 8601, epochs, dotted dates, day or month first, HistData's digits.

The order of day and month is told from the whole column: a first number above 12 proves day first, a second one month
first; where nothing proves either, the order in which the times move in the smaller steps; last, dots mean day first.

Legend: N rows; local times are milliseconds since the epoch as if the clock on the wall were UTC.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Ints

if TYPE_CHECKING:
    import polars as pl

Fail = Callable[[int | None, str], DataValidationError]
"""Makes the error about a row (from 0), or about the whole file."""

ZoneFrom = Literal["offset", "epoch", "cell", "header", "format"]
"""What in a file says its zone: offsets or Z, epochs, zones named in the cells, the header, the program's own habit."""

MISSING_MS = np.iinfo(np.int64).min
_DATE = (
    r"^\s*(?P<a>\d{1,4})[./-](?P<b>\d{1,2})[./-](?P<c>\d{1,4})"
    r"(?:[ T]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"\s*(?P<zone>Z|UTC|GMT)?\s*(?:(?P<sign>[+-])(?P<off_h>\d{2}):?(?P<off_m>\d{2})?)?\s*$"
)
_DIGITS = (
    r"^\s*(?P<a>\d{4})(?P<b>\d{2})(?P<c>\d{2})"
    r"(?:[ T]?(?P<hour>\d{2})(?P<minute>\d{2})(?P<second>\d{2})?(?P<fraction>\d{3})?)?\s*$"
)
DUKASCOPY = r"\d{2}\.\d{2}\.\d{4} \d{2}:\d{2}:\d{2}\.\d{3}"
_EPOCH_DIGITS = r"-?(\d{9,10}|\d{13}|\d{16}|\d{19})"
_EPOCH_UNITS = ((1e11, 1000, 1), (1e14, 1, 1), (1e17, 1, 1000), (1e20, 1, 1_000_000))  # bound; s, ms, us, ns


@dataclass(frozen=True)
class TimeColumn:
    """Times of the rows, and the zone they are in; None where the file does not say."""

    local_ms: Ints  # (N,)
    zone: str | None
    zone_from: ZoneFrom | None = None  # None where `zone` is
    is_local: bool = False  # the file says "local time": whose, BARS_TIMEZONE must say; it is never UTC by guess


def read_times(column: "pl.Series", *, zone: str | None, fail: Fail, is_optional: bool = False) -> TimeColumn:
    """The column's times.

    Args:
        zone: of times that do not say theirs.
        is_optional: whether rows may be empty; they read as MISSING_MS.

    Raises:
        DataValidationError: an empty or unreadable time, or days and months that contradict each other.
    """
    import polars as pl

    if column.dtype == pl.String:
        times = _read_text(column, fail)
    elif column.dtype.is_temporal():
        own = getattr(column.dtype, "time_zone", None)
        times = TimeColumn(_filled(column.cast(pl.Datetime("ms", own))), "UTC" if own else None)
    elif column.dtype.is_numeric():
        times = TimeColumn(_epochs(column), "UTC")
    else:
        raise fail(None, "the timestamps are neither text, times nor numbers")
    empty = np.flatnonzero(times.local_ms == MISSING_MS)
    if len(empty) and not is_optional:
        raise fail(int(empty[0]), "the timestamp cannot be read; write it as 2025-03-01T00:00:00Z")
    return TimeColumn(times.local_ms, times.zone or zone)


def _filled(column: "pl.Series") -> Ints:
    import polars as pl

    return column.cast(pl.Int64, strict=False).fill_null(MISSING_MS).to_numpy().astype(np.int64)


def _epochs(column: "pl.Series") -> Ints:
    """Milliseconds from seconds, milliseconds, microseconds or nanoseconds, told by size."""
    counts = _filled(column)
    present = counts[counts != MISSING_MS]
    size = float(np.median(np.abs(present))) if len(present) else 0.0
    multiply, divide = next(((up, down) for bound, up, down in _EPOCH_UNITS if size < bound), (1, 1))
    return np.where(counts == MISSING_MS, MISSING_MS, counts // divide * multiply).astype(np.int64)


def _read_text(column: "pl.Series", fail: Fail) -> TimeColumn:
    import polars as pl

    present = column.drop_nulls()
    sample = str(present[0]).strip() if len(present) else ""
    if re.fullmatch(_EPOCH_DIGITS, sample):
        return TimeColumn(_epochs(column), "UTC")
    texts = column.str.extract_groups(_DIGITS if re.match(_DIGITS, sample) else _DATE).struct.unnest()
    parts = {name: texts[name].cast(pl.Int64, strict=False).fill_null(-1).to_numpy() for name in texts.columns}
    if "fraction" in parts:
        millis = (texts["fraction"].fill_null("0") + "000").str.slice(0, 3).cast(pl.Int64)
        parts["fraction"] = millis.to_numpy()
    local = _moments(*_year_month_day(parts, dotted="." in sample[:6], fail=fail), parts)
    if "zone" not in texts.columns:
        return TimeColumn(local, None)
    has_zone = (texts["zone"].is_not_null() | texts["sign"].is_not_null()).to_numpy()
    if not has_zone.any():
        return TimeColumn(local, "UTC" if re.fullmatch(DUKASCOPY, sample) else None)
    if not has_zone[local != MISSING_MS].all():
        raise fail(None, "some timestamps have a zone and some have none; write all of them with Z")
    sign = np.where((texts["sign"] == "-").fill_null(False).to_numpy(), -1, 1)
    offset_ms = sign * (np.maximum(parts["off_h"], 0) * 60 + np.maximum(parts["off_m"], 0)) * 60_000
    return TimeColumn(np.where(local == MISSING_MS, MISSING_MS, local - offset_ms).astype(np.int64), "UTC")


def _year_month_day(parts: dict[str, Ints], *, dotted: bool, fail: Fail) -> tuple[Ints, Ints, Ints]:
    """Which of three numbers is what, told from the whole column."""
    a, b, c = parts["a"], parts["b"], parts["c"]
    if a.max(initial=0) > 31:
        return a, b, c
    if a.max(initial=0) > 12 and b.max(initial=0) > 12:
        raise fail(None, "neither day-first nor month-first dates fit the whole column; write them as 2025-03-01")
    if b.max(initial=0) > 12:
        return c, a, b
    if a.max(initial=0) > 12:
        return c, b, a
    jumps = [float(np.abs(np.diff(_moments(c, *order, parts).astype(np.float64))).sum()) for order in ((b, a), (a, b))]
    if jumps[0] == jumps[1] and not dotted:
        raise fail(None, "day and month cannot be told apart; write dates as 2025-03-01")
    return (c, b, a) if jumps[0] <= jumps[1] else (c, a, b)


def _moments(year: Ints, month: Ints, day: Ints, parts: dict[str, Ints]) -> Ints:
    """Milliseconds of each row; MISSING_MS where there is no such day or time."""
    hour, minute, second, millis = (np.maximum(parts[name], 0) for name in ("hour", "minute", "second", "fraction"))
    fits = (year >= 1970) & (year <= 2099) & (month >= 1) & (month <= 12) & (day >= 1)
    fits &= (hour < 24) & (minute < 60) & (second < 60)
    months = np.where(fits, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (np.where(fits, day, 1) - 1)
    fits &= days.astype("datetime64[M]") == months
    clock_ms = ((hour * 60 + minute) * 60 + second) * 1000 + millis
    return np.where(fits, days.astype(np.int64) * 86_400_000 + clock_ms, MISSING_MS).astype(np.int64)
