"""Reads one file of bars into columns: Parquet, plain CSV, MetaTrader 4 and 5, HistData, Dukascopy.

    MetaTrader 5  `<DATE>\\t<TIME>\\t<OPEN>…<SPREAD>`, spread in points         broker time
    MetaTrader 4  `2017.01.02,00:00,o,h,l,c,v` without header                 broker time
    HistData      `20170102 000000;o;h;l;c;v` without header                  fixed UTC-5, bid
    Dukascopy     `Gmt time,…`, `Time (EET),…`, or `02.01.2017 22:00:00.000`  UTC, or the zone in its header
    plain         `timestamp,open,high,low,close[,volume][,spread][,own columns]`; ISO 8601, epoch, or day and month in
                  either order, told from the whole column; times without a zone are UTC unless BARS_TIMEZONE says else

`available_at` in a plain file says when a bar was known, where later than its end. `spread` is in price units. Every
further numeric column is the user's own. Nothing is dropped or repaired here except what the format itself defines.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.integrations.feature_store.bar_times import Fail, TimeColumn, read_times

if TYPE_CHECKING:
    import polars as pl

PriceSide = Literal["bid", "ask", "mid"]
SIDES: tuple[PriceSide, ...] = ("bid", "ask", "mid")
PRICES = ("open", "high", "low", "close")
_SNIFFED_BYTES = 4096
_ALIASES = {
    **dict.fromkeys(("o", "open_price", "bidopen", "askopen", "midopen"), "open"),
    **dict.fromkeys(("h", "high_price", "bidhigh", "askhigh", "midhigh"), "high"),
    **dict.fromkeys(("l", "low_price", "bidlow", "asklow", "midlow"), "low"),
    **dict.fromkeys(("c", "close_price", "bidclose", "askclose", "midclose"), "close"),
    **dict.fromkeys(("vol", "tickvol", "tick_volume", "tick_vol"), "volume"),
}
_TIME_NAMES = ("timestamp", "datetime", "date_time", "time", "date", "gmt_time", "local_time", "open_time", "opened_at")


@dataclass(frozen=True)
class RawBars:
    """One file's rows as they stand in it: unsorted, times not yet in UTC where `times.zone` is open."""

    file: str  # its name, for messages
    first_line: int  # line of the first row; 0 for Parquet, whose rows count from 1
    times: TimeColumn
    prices: dict[str, Floats]  # open, high, low, close; NaN where missing
    extra: dict[str, Floats]
    available_ms: Ints | None
    price_side: PriceSide

    def where(self, row: int) -> str:
        """The place of a row, for a message."""
        return _place(self.file, row, self.first_line)


def read_bars(path: Path, *, max_rows: int | None = None) -> RawBars:
    """The file's bars, or the first `max_rows` of them.

    Raises:
        DataValidationError: not a known layout, or a cell that is no number or time; names file and line.
    """
    import polars as pl

    try:
        if path.suffix.lower() == ".parquet":
            return _columns(path, pl.read_parquet(path, n_rows=max_rows), first_line=0, layout="plain")
        return _read_text(path, max_rows)
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        raise bad_file(path.name, "cannot be read as bars; export it again as CSV or Parquet") from error


def bad_file(file: str, problem: str) -> DataValidationError:
    """An error about one of the user's files."""
    return DataValidationError.at("bars", f"{file}: {problem}", code="bad_bars", file=file)


def _read_text(path: Path, max_rows: int | None) -> RawBars:
    import polars as pl

    with path.open("rb") as file:
        sniffed = file.read(_SNIFFED_BYTES)
    encoding = "utf-16" if sniffed[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"  # MetaTrader writes UTF-16
    head = sniffed[: len(sniffed) // 2 * 2].decode(encoding, errors="replace").lstrip("\ufeff")
    first = head.splitlines()[0] if head.strip() else ""
    separator = next((mark for mark in "\t;," if mark in first), ",")
    has_header = bool(re.match(r'\s*["<]*[A-Za-z]', first))
    source: Path | bytes = path
    if encoding == "utf-16":
        source = path.read_bytes().decode("utf-16").encode()
    frame = pl.read_csv(
        source,
        separator=separator,
        has_header=has_header,
        infer_schema=False,
        null_values=["", "NaN", "nan", "null", "N/A"],
        n_rows=max_rows,
    )
    layout = "plain"
    if not has_header:
        frame, layout = _name_columns(path.name, frame)
    elif first.startswith("<"):
        layout = "metatrader"
    return _columns(path, frame, first_line=1 + has_header, layout=layout)


def _name_columns(file: str, frame: "pl.DataFrame") -> tuple["pl.DataFrame", str]:
    """Names for a file without header, by its first cells."""
    first = str(frame.row(0)[0])
    volume = ["volume"]
    if re.fullmatch(r"\d{8} \d{6}", first) and frame.width in (5, 6):
        return _renamed(frame, ["timestamp", *PRICES, *volume]), "histdata"
    if re.fullmatch(r"\d{4}\.\d{2}\.\d{2}", first) and frame.width in (6, 7):
        layout = "histdata" if file.upper().startswith("DAT_MT") else "metatrader"
        return _renamed(frame, ["date", "time", *PRICES, *volume]), layout
    if frame.width in (5, 6, 7):
        return _renamed(frame, ["timestamp", *PRICES, *volume, "spread"]), "plain"
    raise bad_file(file, "has no header and no known layout; give it timestamp,open,high,low,close as first line")


def _renamed(frame: "pl.DataFrame", names: list[str]) -> "pl.DataFrame":
    return frame.rename(dict(zip(frame.columns, names, strict=False)))


def _columns(path: Path, frame: "pl.DataFrame", *, first_line: int, layout: str) -> RawBars:
    frame, zone_hint = _normal_names(path.name, frame)
    side = _price_side(path.stem, frame.columns, layout)
    frame = frame.rename({name: _ALIASES[name] for name in frame.columns if name in _ALIASES and _is_free(frame, name)})
    names = [name for name in _TIME_NAMES if name in frame.columns]
    missing = [name for name in PRICES if name not in frame.columns] + ([] if names else ["timestamp"])
    if missing:
        raise bad_file(path.name, f"has no {', '.join(missing)}; it needs timestamp, open, high, low and close")
    if frame.is_empty():
        raise bad_file(path.name, "has no rows; export it again")
    fail = _fail_at(path.name, first_line)
    is_split = "date" in names and "time" in names
    times = read_times(_joined(frame) if is_split else frame[names[0]], layout=layout, hint=zone_hint, fail=fail)
    available = None
    if "available_at" in frame.columns:
        column = frame["available_at"]
        available = read_times(column, layout="plain", hint="UTC", fail=fail, optional=True).local_ms
    return RawBars(
        file=path.name,
        first_line=first_line,
        times=times,
        prices={name: _numbers(path.name, frame[name], first_line) for name in PRICES},
        extra=_extra_columns(frame, {*PRICES, "available_at", *(("date", "time") if is_split else names[:1])}, layout),
        available_ms=available,
        price_side=side,
    )


def _extra_columns(frame: "pl.DataFrame", used: set[str], layout: str) -> dict[str, Floats]:
    """Volume, spread in price units, and the user's own numeric columns."""
    extra = {}
    for name in frame.columns:
        unnamed = name.startswith(("column", "unnamed")) or (layout == "metatrader" and name == "vol")
        numbers = None if name in used or unnamed else _own_numbers(frame[name])
        if numbers is not None:
            extra[name] = numbers
    if layout == "metatrader" and "spread" in extra:
        extra["spread"] = extra["spread"] * _point(frame["close"])
    return extra


def _is_free(frame: "pl.DataFrame", name: str) -> bool:
    """Whether the alias is the only column that wants its proper name."""
    rivals = [column for column in frame.columns if _ALIASES.get(column) == _ALIASES[name]]
    return _ALIASES[name] not in frame.columns and rivals[0] == name


def _normal_names(file: str, frame: "pl.DataFrame") -> tuple["pl.DataFrame", str | None]:
    """Lower-case names of letters, digits and underscores; and the zone in a header such as `Time (EET)`."""
    hint, names = None, []
    for name in frame.columns:
        if match := re.fullmatch(r"\s*(?:local )?time \((\w+)\)\s*", name, flags=re.IGNORECASE):
            hint, name = match[1].upper(), "time"
        normal = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
        hint = "UTC" if normal == "gmt_time" else hint
        names.append(normal if re.match(r"[a-z]", normal) else f"column_{normal}".rstrip("_"))
    if len(set(names)) < len(names):
        raise bad_file(file, "has two columns of the same name; rename one")
    return frame.rename(dict(zip(frame.columns, names, strict=True))), hint


def _joined(frame: "pl.DataFrame") -> "pl.Series":
    import polars as pl

    return frame.select(pl.concat_str("date", "time", separator=" ").alias("timestamp")).to_series()


def _fail_at(file: str, first_line: int) -> Fail:
    def fail(row: int | None, problem: str) -> DataValidationError:
        return bad_file(file if row is None else _place(file, row, first_line), problem)

    return fail


def _place(file: str, row: int, first_line: int) -> str:
    return f"{file}, line {row + first_line}" if first_line else f"{file}, row {row + 1}"


def _price_side(stem: str, names: list[str], layout: str) -> PriceSide:
    """From the file's name or its columns' names; HistData and MetaTrader export bids."""
    words = f"{stem.lower()} {' '.join(name for name in names if _ALIASES.get(name) in PRICES)}"
    for side in SIDES:
        if re.search(rf"(?<![a-z]){side}(?![a-z])|\b{side}(open|close)", words):
            return side
    return "bid" if layout in ("histdata", "metatrader") else "mid"


def _numbers(file: str, column: "pl.Series", first_line: int) -> Floats:
    """A price column; empty cells are NaN, anything else that is no number is an error."""
    import polars as pl

    values = _as_float(column)
    if values is None or (bad := column.is_not_null() & values.is_null()).any():
        row = 0 if values is None else int(bad.arg_max() or 0)
        raise bad_file(_place(file, row, first_line), f"`{column.name}` is not a number")
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
