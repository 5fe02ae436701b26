"""Columns of bars: a file's cells, whatever program wrote them, become times, prices and the user's own numbers.

Columns are known by their names, in any order: `timestamp` (or `date` and `time`), open, high, low, close, volume,
`spread`, and `available_at`, which says when a bar was known, where later than its end. Every further numeric column
is the user's own. What is decided here stands in `RawBars.notes`, what is doubtful in `RawBars.doubts`; nothing is
dropped or repaired without a word there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.contracts.reading_reports import PriceSide, SpreadTime
from ml_workbench_service.integrations.feature_store.bar_cells.extras import Extra
from ml_workbench_service.integrations.feature_store.bar_cells.file_cells import FileCells
from ml_workbench_service.integrations.feature_store.bar_cells.headers import END_WORDS, Heading, headings
from ml_workbench_service.integrations.feature_store.bar_cells.marks import Mark
from ml_workbench_service.integrations.feature_store.bar_cells.openings import opening_times
from ml_workbench_service.integrations.feature_store.bar_cells.prices import PRICES as PRICES
from ml_workbench_service.integrations.feature_store.bar_cells.prices import (
    PriceColumns,
    SpreadUnit,
    price_columns,
    side_of_name,
)
from ml_workbench_service.integrations.feature_store.bar_times import Fail, TimeColumn, read_times

if TYPE_CHECKING:
    import polars as pl

SPREADS = ("spread", "spread_open", "spread_close")
_COMMENT = r"^(#|//)"


@dataclass(frozen=True)
class Conventions:
    """What a program's files leave unsaid."""

    zone: str | None = None  # of times that do not say theirs; None leaves it to BARS_TIMEZONE
    is_broker_time: bool = False  # a clock that the weekly close may tell
    price_side: PriceSide = "mid"  # where neither the file's name nor its columns' names say
    is_spread_in_points: bool = False
    ignored: tuple[str, ...] = ()  # columns
    decimal_mark: Mark | None = None  # None leaves it to the cells


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
    point: float | None = None  # one unit of the prices' last digit; None where they have none that is told
    spread_unit: SpreadUnit | None = None  # as the file has it; `extra["spread"]` itself is in price units
    spread_time: SpreadTime = "unknown"  # of `extra["spread"]`; of `spread_open`, `spread_close` what they say
    dropped: Mapping[str, int] = field(default_factory=dict)  # rows of the file that are not here, by reason
    notes: tuple[str, ...] = ()  # what was decided in reading, in words
    doubts: tuple[str, ...] = ()  # what is doubtful: warnings of the reading report
    places: Ints | None = None  # (N,) each row's place in the file, from 0; None where no row was left out

    def where(self, row: int) -> str:
        """The place of a row, for a message."""
        return _place(self.file, row if self.places is None else int(self.places[row]), self.first_line)


def bad_file(file: str, problem: str) -> DataValidationError:
    """An error about one of the user's files."""
    return DataValidationError.at("bars", f"{file}: {problem}", code="bad_bars", file=file)


def raw_bars(
    path: Path,
    frame: "pl.DataFrame",
    *,
    first_line: int,
    conventions: Conventions,
    separator: str = "",
    format_name: str = "",
) -> RawBars:
    """The bars in a file's cells: one row a bar, its columns named, as text or as Parquet types them.

    Args:
        separator: of the cells; with it goes which decimal mark is usual.
        format_name: of the format that reads the file.

    Raises:
        DataValidationError: a column is missing or doubled, or a cell is no number or time; names file and line.
    """
    heads = _unique(path.name, headings(frame.columns))
    frame = frame.rename({each: head.name for each, head in zip(frame.columns, heads, strict=True)})
    frame = frame.drop(conventions.ignored, strict=False)
    heads = [head for head in heads if head.name in frame.columns]
    chosen = price_columns(frame.columns)
    _check_columns(path.name, heads, chosen)
    kept, dropped = _rows_that_hold_something(frame, chosen.used)
    places = None if kept.all() else np.flatnonzero(kept)
    frame = frame.filter(kept.tolist()) if places is not None else frame
    if frame.is_empty():
        raise bad_file(path.name, "has no rows; export it again")
    fail = partial(_bad_cell, path.name, first_line, places)
    openings = opening_times(frame, heads, zone=conventions.zone, fail=fail)
    cells = FileCells.of(path, frame, chosen, known_mark=conventions.decimal_mark, separator=separator, fail=fail)
    rest = frame.drop({*chosen.used, *openings.used, "available_at"}, strict=False)
    named = side_of_name(path.stem)
    extra = Extra.of(cells, rest, chosen, is_in_points=conventions.is_spread_in_points)
    own = cells.own_columns(rest.drop(extra.used), heads)
    prices = cells.prices(chosen)
    if chosen.side is not None and named not in (None, chosen.side):
        cells.notes.append(f"its prices are the columns of the {chosen.side}, whatever its name says")
    return RawBars(
        file=path.name,
        first_line=first_line,
        times=openings.times,
        is_broker_time=conventions.is_broker_time,
        prices=prices,
        extra={**extra.columns, **own},
        available_ms=_available(frame, openings.times, fail),
        price_side=chosen.side or named or conventions.price_side,
        format=format_name,
        point=cells.point,
        spread_unit=extra.spread_unit,
        spread_time=extra.spread_time,
        dropped=dropped,
        notes=(*openings.notes, *cells.notes),
        doubts=(*openings.doubts, *cells.doubts),
        places=places,
    )


def _unique(file: str, heads: list[Heading]) -> list[Heading]:
    names = [head.name for head in heads]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise bad_file(file, f"has two columns of the same name, `{twice[0]}`; rename one")
    return heads


def _check_columns(file: str, heads: list[Heading], chosen: PriceColumns) -> None:
    """Refuses a file without prices or times, by the names that it has."""
    times = [
        head
        for head in heads
        if head.time_rank is not None or (head.is_index and not head.is_foreign) or head.name in END_WORDS
    ]
    missing = [] if chosen.taken or chosen.has_both else [name for name in PRICES if not _has(heads, name)] or ["close"]
    missing += [] if times else ["timestamp"]
    if not missing:
        return
    names = ", ".join(head.written.strip() or "a column without name" for head in heads[:12])
    is_foreign = any(head.is_foreign for head in heads)
    step = "name its columns in English: " if is_foreign else "it needs "
    raise bad_file(
        file, f"has no {', '.join(missing)}; {step}timestamp, open, high, low and close (its columns are {names})"
    )


def _has(heads: list[Heading], name: str) -> bool:
    return any(head.name == name for head in heads)


def _rows_that_hold_something(frame: "pl.DataFrame", prices: frozenset[str]) -> tuple[Bools, dict[str, int]]:
    """(N,) whether a row is neither blank nor a comment, which lacks prices, and how many are."""
    import polars as pl

    if frame.is_empty() or not all(dtype == pl.String for dtype in frame.dtypes):
        return np.ones(len(frame), dtype=bool), {}
    begins = frame.to_series(0).str.contains(_COMMENT).fill_null(False)
    comment = begins & frame.select(pl.any_horizontal(pl.col(sorted(prices)).is_null())).to_series()
    blank = frame.select(pl.all_horizontal(pl.all().str.strip_chars().fill_null("") == "")).to_series()
    counts = {"blank line": int(blank.sum()), "comment": int(comment.sum())}
    kept = ~(blank | comment)
    return kept.to_numpy(), {reason: count for reason, count in counts.items() if count}


def _available(frame: "pl.DataFrame", times: TimeColumn, fail: Fail) -> Ints | None:
    """(N,) in UTC. Without a zone it is taken for UTC only where the openings are known to be in UTC."""
    if "available_at" not in frame.columns or frame["available_at"].is_null().all():
        return None
    known = read_times(frame["available_at"], zone=None, fail=fail, is_optional=True)
    if (known.zone or times.zone) != "UTC":
        raise fail(None, "`available_at` is not in UTC; write it as 2025-03-01T00:00:00Z")
    return known.local_ms


def _bad_cell(file: str, first_line: int, places: Ints | None, row: int | None, problem: str) -> DataValidationError:
    if row is None:
        return bad_file(file, problem)
    return bad_file(_place(file, row if places is None else int(places[row]), first_line), problem)


def _place(file: str, row: int, first_line: int) -> str:
    return f"{file}, line {row + first_line}" if first_line else f"{file}, row {row + 1}"
