"""Columns of bars: a file's cells, whatever program wrote them, become times, prices and the user's own numbers.

Columns are known by their names, in any order: `timestamp` (or `date` and `time`), open, high, low, close, volume,
`spread` in price units, and `available_at`, which says when a bar was known, where later than its end. Every further
numeric column is the user's own. Nothing is dropped or repaired here except what a format's conventions say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.integrations.feature_store.bar_times import Fail, TimeColumn, read_times

if TYPE_CHECKING:
    import polars as pl

PriceSide = Literal["bid", "ask", "mid"]
SpreadTime = Literal["open", "close", "average", "minimum", "unknown"]
SpreadUnit = Literal["price", "points"]
SIDES: tuple[PriceSide, ...] = ("bid", "ask", "mid")
PRICES = ("open", "high", "low", "close")
_ALIASES = {
    **dict.fromkeys(("o", "open_price", "bidopen", "askopen", "midopen"), "open"),
    **dict.fromkeys(("h", "high_price", "bidhigh", "askhigh", "midhigh"), "high"),
    **dict.fromkeys(("l", "low_price", "bidlow", "asklow", "midlow"), "low"),
    **dict.fromkeys(("c", "close_price", "bidclose", "askclose", "midclose"), "close"),
    **dict.fromkeys(("vol", "tickvol", "tick_volume", "tick_vol"), "volume"),
}
_TIME_NAMES = ("timestamp", "datetime", "date_time", "time", "date", "gmt_time", "local_time", "open_time", "opened_at")
_HEADER_ZONES = {"UTC": "UTC", "GMT": "UTC", "EET": "Europe/Athens"}


@dataclass(frozen=True)
class Conventions:
    """What a program's files leave unsaid."""

    zone: str | None = None  # of times that do not say theirs; None leaves it to BARS_TIMEZONE
    is_broker_time: bool = False  # a clock that the weekly close may tell
    price_side: PriceSide = "mid"  # where neither the file's name nor its columns' names say
    is_spread_in_points: bool = False
    ignored: tuple[str, ...] = ()  # columns


@dataclass(frozen=True)
class RawBars:
    """One file's rows as they stand in it: unsorted, times not yet in UTC where `times.zone` is open."""

    file: str  # its name, for messages
    first_line: int  # line of the first row; 0 for Parquet, whose rows count from 1
    times: TimeColumn
    is_broker_time: bool
    prices: dict[str, Floats]  # open, high, low, close; NaN where missing
    extra: dict[str, Floats]
    available_ms: Ints | None
    price_side: PriceSide  # of the columns that were taken
    format: str = ""  # which one read it
    point: float | None = None  # one unit of the prices' last digit; None of Parquet
    spread_unit: SpreadUnit | None = None  # as the file has it; `extra["spread"]` itself is in price units
    spread_time: SpreadTime = "unknown"  # of `extra["spread"]`; of `spread_open`, `spread_close` what they say
    dropped: Mapping[str, int] = field(default_factory=dict)  # rows of the file that are not here, by reason
    notes: tuple[str, ...] = ()  # what was decided in reading, in words
    doubts: tuple[str, ...] = ()  # what is doubtful: warnings of the reading report

    def where(self, row: int) -> str:
        """The place of a row, for a message."""
        return _place(self.file, row, self.first_line)


def bad_file(file: str, problem: str) -> DataValidationError:
    """An error about one of the user's files."""
    return DataValidationError.at("bars", f"{file}: {problem}", code="bad_bars", file=file)


def raw_bars(path: Path, frame: "pl.DataFrame", *, first_line: int, conventions: Conventions) -> RawBars:
    """The bars in a file's cells: one row a bar, its columns named, as text or as Parquet types them.

    Raises:
        DataValidationError: a column is missing or doubled, or a cell is no number or time; names file and line.
    """
    frame, zone = _normal_names(path.name, frame)
    side = _price_side(path.stem, frame.columns) or conventions.price_side
    frame = frame.rename({name: _ALIASES[name] for name in frame.columns if name in _ALIASES and _is_free(frame, name)})
    names = [name for name in _TIME_NAMES if name in frame.columns]
    missing = [name for name in PRICES if name not in frame.columns] + ([] if names else ["timestamp"])
    if missing:
        raise bad_file(path.name, f"has no {', '.join(missing)}; it needs timestamp, open, high, low and close")
    if frame.is_empty():
        raise bad_file(path.name, "has no rows; export it again")
    fail = partial(_bad_cell, path.name, first_line)
    is_split = "date" in names and "time" in names
    column = _joined(frame) if is_split else frame[names[0]]
    times = read_times(column, zone=zone or conventions.zone, fail=fail)
    available = None
    if "available_at" in frame.columns:
        available = read_times(frame["available_at"], zone="UTC", fail=fail, is_optional=True).local_ms
    used = {*PRICES, "available_at", *(("date", "time") if is_split else names[:1]), *conventions.ignored}
    extra = _own_columns(frame.drop(used, strict=False))
    if conventions.is_spread_in_points and "spread" in extra:
        extra["spread"] *= _point(frame["close"])
    return RawBars(
        file=path.name,
        first_line=first_line,
        times=times,
        is_broker_time=conventions.is_broker_time,
        prices={name: _numbers(frame[name], fail) for name in PRICES},
        extra=extra,
        available_ms=available,
        price_side=side,
    )


def _own_columns(frame: "pl.DataFrame") -> dict[str, Floats]:
    """Those that hold numbers and have a name."""
    numbers = {name: _own_numbers(frame[name]) for name in frame.columns if not name.startswith(("column", "unnamed"))}
    return {name: column for name, column in numbers.items() if column is not None}


def _is_free(frame: "pl.DataFrame", name: str) -> bool:
    """Whether the alias is the only column that wants its proper name."""
    rivals = [column for column in frame.columns if _ALIASES.get(column) == _ALIASES[name]]
    return _ALIASES[name] not in frame.columns and rivals[0] == name


def _normal_names(file: str, frame: "pl.DataFrame") -> tuple["pl.DataFrame", str | None]:
    """Lower-case names of letters, digits and underscores; and the zone in a header such as `Time (EET)`."""
    zone, names = None, []
    for name in frame.columns:
        if match := re.fullmatch(r"\s*(?:local )?time \((\w+)\)\s*", name, flags=re.IGNORECASE):
            zone, name = _HEADER_ZONES.get(match[1].upper()), "time"
        normal = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
        zone = "UTC" if normal == "gmt_time" else zone
        names.append(normal if re.match(r"[a-z]", normal) else f"column_{normal}".rstrip("_"))
    if len(set(names)) < len(names):
        raise bad_file(file, "has two columns of the same name; rename one")
    return frame.rename(dict(zip(frame.columns, names, strict=True))), zone


def _joined(frame: "pl.DataFrame") -> "pl.Series":
    import polars as pl

    return frame.select(pl.concat_str("date", "time", separator=" ").alias("timestamp")).to_series()


def _bad_cell(file: str, first_line: int, row: int | None, problem: str) -> DataValidationError:
    return bad_file(file if row is None else _place(file, row, first_line), problem)


def _place(file: str, row: int, first_line: int) -> str:
    return f"{file}, line {row + first_line}" if first_line else f"{file}, row {row + 1}"


def _price_side(stem: str, names: list[str]) -> PriceSide | None:
    """From the file's name or its columns' names."""
    words = f"{stem.lower()} {' '.join(name for name in names if _ALIASES.get(name) in PRICES)}"
    return next((side for side in SIDES if re.search(rf"(?<![a-z]){side}(?![a-z])|\b{side}(open|close)", words)), None)


def _numbers(column: "pl.Series", fail: Fail) -> Floats:
    """A price column; empty cells are NaN, anything else that is no number is an error."""
    import polars as pl

    values = _as_float(column)
    if values is None or (bad := column.is_not_null() & values.is_null()).any():
        raise fail(0 if values is None else int(bad.arg_max() or 0), f"`{column.name}` is not a number")
    return values.fill_null(float("nan")).cast(pl.Float64).to_numpy().copy()


def _as_float(column: "pl.Series") -> "pl.Series | None":
    import polars as pl

    if column.dtype == pl.String:
        text = column.str.strip_chars()
        return text.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        return column.cast(pl.Float64)
    return None


def _own_numbers(column: "pl.Series") -> Floats | None:
    """A further column's numbers; None where it is text, or empty altogether."""
    values = _as_float(column)
    if values is None or (column.is_not_null() & values.is_null()).any() or values.is_null().all():
        return None
    numbers = values.fill_null(float("nan")).to_numpy().copy()
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def _point(close: "pl.Series") -> float:
    """The smallest step that the prices are written in: 0.00001 for five digits."""
    digits = close.drop_nulls().str.extract(r"\.(\d+)", 1).str.len_chars().fill_null(0).to_numpy()
    return float(10.0 ** -int(digits.max(initial=0)))
