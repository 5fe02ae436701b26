"""Reads a column of times as exports write them: ISO 8601, epochs, dotted dates, day or month first, named months.

The order of day and month is told from the whole column: a first number above 12 proves day first, a second one month
first; where nothing proves either, the order in which the times move in the smaller steps; last, dots mean day first.

A zone is taken from the cells before any other: an offset, `Z`, `US/Eastern`, `EST`. An abbreviation that is a fixed
offset to some and a clock with summer time to others counts only where both give the same UTC in every row.

Legend: N rows; local times are milliseconds since the epoch as if the clock on the wall were UTC.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bools, Ints

if TYPE_CHECKING:
    import polars as pl

Fail = Callable[[int | None, str], DataValidationError]
"""Makes the error about a row (from 0), or about the whole file."""

ZoneFrom = Literal["offset", "epoch", "cell", "header", "format"]
"""What in a file says its zone: offsets or Z, epochs, zones named in the cells, the header, the program's own habit."""

MISSING_MS = np.iinfo(np.int64).min
_CLOCK = (
    r"(?:(?:[ T,;]+|[ ]*-[ ]*)(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"\s*(?P<half>[AaPp][Mm]\b|[AaPp]\.[Mm]\.)?)?"
)
_ZONE = (
    r"\s*(?P<zone>[A-Za-z]+(?:/[A-Za-z_]+)*)?\s*(?:(?P<sign>[+-])(?P<off_h>\d{1,2}):?(?P<off_m>\d{2})?)?"
    r"\s*(?:[\[(].*)?$"
)
_WEEKDAY = r"^\s*(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*[.,]?\s+)?"
_MONTH = r"(?P<b>[A-Za-z]{3,9})\.?"
_BETWEEN = r"[ ,./-]+"
DATE_STYLES = {
    "numbers": r"^\s*(?P<a>\d{1,4})[./-](?P<b>\d{1,2})[./-](?P<c>\d{1,4})" + _CLOCK + _ZONE,
    "digits": (
        r"^\s*(?P<a>\d{4})(?P<b>\d{2})(?P<c>\d{2})"
        r"(?:[ T]*(?P<hour>\d{2})(?P<minute>\d{2})(?P<second>\d{2})?(?P<fraction>\d{3})?)?\s*$"
    ),
    "digits and a clock": r"^\s*(?P<a>\d{4})(?P<b>\d{2})(?P<c>\d{2})" + _CLOCK + _ZONE,
    "day and named month": _WEEKDAY + rf"(?P<a>\d{{1,2}}){_BETWEEN}{_MONTH}{_BETWEEN}(?P<c>\d{{4}}|\d{{2}})\b"
    + _CLOCK + _ZONE,
    "named month and day": _WEEKDAY + rf"{_MONTH}{_BETWEEN}(?P<a>\d{{1,2}}){_BETWEEN}(?P<c>\d{{4}})" + _CLOCK + _ZONE,
    "year and named month": rf"^\s*(?P<c>\d{{4}}){_BETWEEN}{_MONTH}{_BETWEEN}(?P<a>\d{{1,2}})" + _CLOCK + _ZONE,
}  # fmt: skip
_MONTHS = {
    **{"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6},
    **{"jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12},
}
_EPOCH = r"^\s*-?(\d{9,10}|\d{13}|\d{16}|\d{19})(\.\d*)?\s*$"
_SCIENTIFIC = r"^\s*\d([.,]\d+)?[eE]\+?\d+\s*$"
_EXCEL_DAYS = r"^\s*[2-6]\d{4}([.,]\d+)?\s*$"
_FIRST_DAY, _LAST_DAY = 1970_01_01, 2099_12_31
_EPOCH_UNITS = ((1e11, 1000, 1), (1e14, 1, 1), (1e17, 1, 1000), (1e20, 1, 1_000_000))  # bound; s, ms, us, ns
NAMED_ZONES = {
    **dict.fromkeys(("UTC", "GMT", "Z", "ZULU"), ("UTC",)),
    "BST": ("Europe/London", "UTC+1"),
    "WET": ("Europe/Lisbon", "UTC+0"),
    **dict.fromkeys(("CET", "MEZ"), ("Europe/Berlin", "UTC+1")),
    **dict.fromkeys(("CEST", "MESZ"), ("Europe/Berlin", "UTC+2")),
    "EET": ("Europe/Athens",),  # Dukascopy's, with summer time
    "EEST": ("Europe/Athens", "UTC+3"),
    "MSK": ("Europe/Moscow", "UTC+3"),
    "IST": ("Asia/Kolkata", "Asia/Jerusalem", "Europe/Dublin"),
    **dict.fromkeys(("HKT", "SGT"), ("UTC+8",)),
    **dict.fromkeys(("JST", "KST"), ("UTC+9",)),
    "AEST": ("Australia/Sydney", "UTC+10"),
    "AEDT": ("Australia/Sydney", "UTC+11"),
    **dict.fromkeys(("ET", "NY", "NYT", "NEW YORK", "EASTERN", "US EASTERN"), ("America/New_York",)),
    **dict.fromkeys(("LONDON", "LON"), ("Europe/London",)),
    **dict.fromkeys(("FRANKFURT", "BERLIN"), ("Europe/Berlin",)),
    "TOKYO": ("Asia/Tokyo",),
    "EST": ("America/New_York", "UTC-5"),
    "EDT": ("America/New_York", "UTC-4"),
    "CT": ("America/Chicago",),
    "CST": ("America/Chicago", "UTC-6", "Asia/Shanghai"),
    "CDT": ("America/Chicago", "UTC-5"),
    "PT": ("America/Los_Angeles",),
    "PST": ("America/Los_Angeles", "UTC-8"),
    "PDT": ("America/Los_Angeles", "UTC-7"),
}
"""Abbreviations of zones, with what they stand for; more than one where usage differs."""


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
        zone: of times that do not say theirs, as a program or a header names it.
        is_optional: whether rows may be empty; they read as MISSING_MS.

    Raises:
        DataValidationError: an empty or unreadable time, or days and months that contradict each other.
    """
    import polars as pl

    if column.dtype == pl.String:
        times = _read_text(column, fail)
    elif column.dtype.is_temporal():
        own = getattr(column.dtype, "time_zone", None)
        local = _filled(column.cast(pl.Datetime("ms", own)))
        times = TimeColumn(local, "UTC", "offset") if own else TimeColumn(local, None)
    elif column.dtype.is_integer() and column.is_between(_FIRST_DAY, _LAST_DAY).all():
        times = _read_text(column.cast(pl.String), fail)
    elif column.dtype.is_numeric():
        times = TimeColumn(_epochs(column, fail), "UTC", "epoch")
    else:
        raise fail(None, "the timestamps are neither text, times nor numbers")
    empty = np.flatnonzero(times.local_ms == MISSING_MS)
    if len(empty) and not is_optional:
        raise fail(int(empty[0]), "the timestamp cannot be read; write it as 2025-03-01T00:00:00Z")
    if times.zone is None and zone is not None:
        present = times.local_ms[times.local_ms != MISSING_MS]
        return TimeColumn(times.local_ms, zone_of(zone, present, fail), "header")
    return times


def is_epoch(cell: str) -> bool:
    """Whether a cell counts seconds, or thousandths and less, since 1970."""
    return re.match(_EPOCH, cell) is not None


def is_time(cell: str) -> bool:
    """Whether a cell looks like a date with or without a clock, or like an epoch."""
    return is_epoch(cell) or style_of(cell) is not None


def has_zone(cell: str) -> bool:
    """Whether a cell says its zone itself."""
    style = style_of(cell)
    match = re.match(DATE_STYLES[style], cell) if style else None
    parts = match.groupdict() if match else {}
    return bool(parts.get("zone") or parts.get("sign"))


def style_of(cell: str) -> str | None:
    """The first style of dates that a cell can be read in; None where it is none."""
    return next((name for name, pattern in DATE_STYLES.items() if re.match(pattern, cell)), None)


def zone_of(text: str, local_ms: Ints, fail: Fail) -> str:
    """The zone that a text names, as `bar_time_zones` knows it.

    Raises:
        DataValidationError: no such zone, or one that usage gives two meanings which differ in these rows.
    """
    name = text.strip()
    named = NAMED_ZONES.get(name.upper())
    if named is not None:
        if any(not np.array_equal(_utc(local_ms, each), _utc(local_ms, named[0])) for each in named[1:]):
            meanings = " or ".join(named)
            raise fail(
                None,
                f"its times say {name}, which can mean {meanings}; write the times with their offset, or name their "
                f"column like `Time ({named[0]})`",
            )
        return named[0]
    match = re.fullmatch(r"([A-Za-z]+(?:/[A-Za-z_]+)*)?\s*([+-]\d{1,2}(?::?\d{2})?)?", name.replace(" ", "_"))
    base = (match[1] if match else None) or "UTC"
    if match is None or not (base.upper() in ("UTC", "GMT") or ("/" in base and _is_known(base))):
        raise fail(None, f"its times say the zone `{name}`, which is not known; write it as UTC+2 or Europe/Athens")
    offset = match[2] or ""
    if base.upper() == "ETC/GMT":  # whose signs are the other way round
        return f"UTC{offset.translate(str.maketrans('+-', '-+'))}"
    return f"{'UTC' if base.upper() in ('UTC', 'GMT') else base}{offset}"


def _is_known(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _utc(local_ms: Ints, zone: str) -> Ints:
    """(N,) UTC by an IANA zone or `UTC±h`; only compared, so that rows which a clock skips may be anything."""
    import polars as pl

    if match := re.fullmatch(r"UTC(?:([+-]\d+))?", zone):
        return local_ms - int(match[1] or 0) * 3_600_000
    wall = pl.from_numpy(local_ms).to_series().cast(pl.Datetime("ms"))
    utc = wall.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.epoch("ms")
    return utc.fill_null(MISSING_MS).to_numpy().astype(np.int64)


def _filled(column: "pl.Series") -> Ints:
    import polars as pl

    return column.cast(pl.Int64, strict=False).fill_null(MISSING_MS).to_numpy().astype(np.int64)


def _epochs(column: "pl.Series", fail: Fail) -> Ints:
    """Milliseconds from seconds, milliseconds, microseconds or nanoseconds, told by size."""
    import polars as pl

    is_whole = column.dtype.is_integer()
    counts = _filled(column) if is_whole else column.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    present = counts[counts != MISSING_MS] if is_whole else counts[np.isfinite(counts)]
    size = float(np.median(np.abs(present))) if len(present) else 0.0
    if len(present) and size < 1e8:
        raise fail(None, "its times are numbers too small for seconds since 1970; write them as 2025-03-01T00:00:00Z")
    multiply, divide = next(((up, down) for bound, up, down in _EPOCH_UNITS if size < bound), (1, 1))
    if is_whole:
        return np.where(counts == MISSING_MS, MISSING_MS, counts // divide * multiply).astype(np.int64)
    millis = np.round(np.where(np.isfinite(counts), counts, 0) / divide * multiply)
    return np.where(np.isfinite(counts), millis.astype(np.int64), MISSING_MS).astype(np.int64)


def _epoch_texts(column: "pl.Series", fail: Fail) -> Ints:
    import polars as pl

    text = column.str.strip_chars()
    whole = text.str.replace(r"\.0*$", "")
    fraction = whole.str.contains(".", literal=True).any()
    return _epochs(whole.cast(pl.Float64 if fraction else pl.Int64, strict=False), fail)


def _read_text(column: "pl.Series", fail: Fail) -> TimeColumn:
    present = column.is_not_null()
    row = int(present.arg_max() or 0)
    sample = str(column[row]) if present.any() else ""
    if is_epoch(sample):
        return TimeColumn(_epoch_texts(column, fail), "UTC", "epoch")
    style = style_of(sample)
    if style is None:
        raise fail(row, _unreadable(sample))
    texts = column.str.extract_groups(DATE_STYLES[style]).struct.unnest()
    local = _moments(*_year_month_day(texts, dotted="." in sample[:6], fail=fail), _clock(texts))
    if "zone" not in texts.columns:
        return TimeColumn(local, None)
    return _zoned(local, texts, fail)


def _unreadable(sample: str) -> str:
    if re.match(_SCIENTIFIC, sample):
        return "the timestamp is in scientific notation, which has lost digits; write it in full"
    if re.match(_EXCEL_DAYS, sample):
        return "the timestamp is a spreadsheet's number of days; format the column as 2025-03-01 00:00"
    if re.match(r"^\s*\d{1,2}:\d{2}", sample):
        return "the timestamp has no date; add a column `date`"
    return "the timestamp cannot be read; write it as 2025-03-01T00:00:00Z"


def _zoned(local: Ints, texts: "pl.DataFrame", fail: Fail) -> TimeColumn:
    """By what the cells say of their zone."""
    import polars as pl

    says = (texts["zone"].is_not_null() | texts["sign"].is_not_null()).to_numpy()
    if not says.any():
        return TimeColumn(local, None)
    if not says[local != MISSING_MS].all():
        raise fail(None, "some timestamps have a zone and some have none; write all of them with Z")
    zones = texts["zone"].filter(pl.Series(says)).fill_null("UTC").str.to_uppercase()
    names = sorted(set(zones.unique().to_list()) - {"UTC", "GMT", "Z"})
    is_signed = texts["sign"].is_not_null().to_numpy()
    if not names or (is_signed[says].all() and "ETC/GMT" not in names):
        return TimeColumn(_less_offset(local, _offset_ms(texts)), "UTC", "offset")
    if zones.n_unique() == 1:
        first = texts.row(int(np.argmax(says)), named=True)
        offset = f"{first['sign']}{first['off_h']}" if first["sign"] else ""
        return TimeColumn(local, zone_of(f"{first['zone']}{offset}", local[local != MISSING_MS], fail), "cell")
    fixed = {name: _fixed_offset_ms(name) for name in names}
    if None in fixed.values():
        raise fail(None, f"its timestamps name several zones, {', '.join(names)}; write all of them with Z")
    shifts = texts["zone"].str.to_uppercase().replace_strict(fixed, default=0, return_dtype=pl.Int64).fill_null(0)
    return TimeColumn(_less_offset(local, shifts.to_numpy()), "UTC", "offset")


def _fixed_offset_ms(name: str) -> int | None:
    """Of an abbreviation that changes with the season, as EST and EDT do in one column."""
    fixed = [each for each in NAMED_ZONES.get(name, ()) if each.startswith("UTC")]
    return int(fixed[0][3:] or 0) * 3_600_000 if len(fixed) == 1 else None


def _offset_ms(texts: "pl.DataFrame") -> Ints:
    parts = _integers(texts, ("off_h", "off_m"))
    sign = np.where((texts["sign"] == "-").fill_null(False).to_numpy(), -1, 1)
    return np.asarray(sign * (np.maximum(parts["off_h"], 0) * 60 + np.maximum(parts["off_m"], 0)) * 60_000)


def _less_offset(local: Ints, offset_ms: Ints) -> Ints:
    return np.where(local == MISSING_MS, MISSING_MS, local - offset_ms).astype(np.int64)


def _integers(texts: "pl.DataFrame", names: tuple[str, ...]) -> dict[str, Ints]:
    """(N,) each; -1 where the cell lacks it."""
    import polars as pl

    return {name: texts[name].cast(pl.Int64, strict=False).fill_null(-1).to_numpy() for name in names}


def _year_month_day(texts: "pl.DataFrame", *, dotted: bool, fail: Fail) -> tuple[Ints, Ints, Ints]:
    """Which of three numbers is what, told from the whole column, or by the month's name."""
    import polars as pl

    if texts["b"].str.contains(r"^[A-Za-z]").any():
        months = (
            texts["b"].str.slice(0, 3).str.to_lowercase().replace_strict(_MONTHS, default=-1, return_dtype=pl.Int64)
        )
        parts = _integers(texts, ("a", "c"))
        year = np.where((parts["c"] >= 0) & (parts["c"] < 70), parts["c"] + 2000, parts["c"])
        return year, months.fill_null(-1).to_numpy(), parts["a"]
    parts = _integers(texts, ("a", "b", "c"))
    a, b, c = parts["a"], parts["b"], parts["c"]
    if a.max(initial=0) > 31:
        return a, b, c
    if c.max(initial=0) < 100:
        raise fail(None, "its dates have years of two digits; write them as 2025-03-01")
    if a.max(initial=0) > 12 and b.max(initial=0) > 12:
        raise fail(None, "neither day-first nor month-first dates fit the whole column; write them as 2025-03-01")
    if b.max(initial=0) > 12:
        return c, a, b
    if a.max(initial=0) > 12:
        return c, b, a
    clock = _clock(texts)
    jumps = [float(np.abs(np.diff(_moments(c, *order, clock).astype(np.float64))).sum()) for order in ((b, a), (a, b))]
    if jumps[0] == jumps[1] and not dotted:
        raise fail(None, "day and month cannot be told apart; write dates as 2025-03-01")
    return (c, b, a) if jumps[0] <= jumps[1] else (c, a, b)


@dataclass(frozen=True)
class _Clock:
    """Milliseconds of the day of each row, and whether there is such a time."""

    ms: Ints
    fits: Bools


def _clock(texts: "pl.DataFrame") -> _Clock:
    import polars as pl

    parts = _integers(texts, ("hour", "minute", "second"))
    hour, minute, second = (np.maximum(parts[name], 0) for name in ("hour", "minute", "second"))
    millis = (texts["fraction"].fill_null("0") + "000").str.slice(0, 3).cast(pl.Int64).to_numpy()
    fits = (hour < 24) & (minute < 60) & (second < 60)
    if "half" in texts.columns and texts["half"].is_not_null().any():
        half = texts["half"].str.to_lowercase().str.slice(0, 1)
        has_half = half.is_not_null().to_numpy()
        is_later = (half == "p").fill_null(False).to_numpy()
        fits &= ~has_half | ((hour >= 1) & (hour <= 12))
        hour = np.where(has_half, hour % 12 + 12 * is_later, hour)
    return _Clock(((hour * 60 + minute) * 60 + second) * 1000 + millis, fits)


def _moments(year: Ints, month: Ints, day: Ints, clock: _Clock) -> Ints:
    """Milliseconds of each row; MISSING_MS where there is no such day or time."""
    fits = (year >= 1970) & (year <= 2099) & (month >= 1) & (month <= 12) & (day >= 1) & clock.fits
    months = np.where(fits, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (np.where(fits, day, 1) - 1)
    fits &= days.astype("datetime64[M]") == months
    return np.where(fits, days.astype(np.int64) * 86_400_000 + clock.ms, MISSING_MS).astype(np.int64)
