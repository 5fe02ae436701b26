"""Columns of bars: a file's cells, whatever program wrote them, become times, prices and the user's own numbers.

Columns are known by their names, in any order: `timestamp` (or `date` and `time`), open, high, low, close, volume,
`spread`, and `available_at`, which says when a bar was known, where later than its end. Every further numeric column
is the user's own. What is decided here stands in `RawBars.notes`, what is doubtful in `RawBars.doubts`; nothing is
dropped or repaired without a word there.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.integrations.feature_store.bar_cells import numbers
from ml_workbench_service.integrations.feature_store.bar_cells.headers import END_WORDS, Heading, headings
from ml_workbench_service.integrations.feature_store.bar_names import usual_price
from ml_workbench_service.integrations.feature_store.bar_cells.numbers import Mark
from ml_workbench_service.integrations.feature_store.bar_cells.openings import opening_times
from ml_workbench_service.integrations.feature_store.bar_cells.prices import (
    PRICES as PRICES,
    VOLUME_NAMES,
    PriceColumns,
    PriceSide,
    SpreadTime,
    between,
    mean_of,
    price_columns,
    side_of_name,
    spread_times,
)
from ml_workbench_service.integrations.feature_store.bar_times import Fail, TimeColumn, read_times

if TYPE_CHECKING:
    import polars as pl

SpreadUnit = Literal["price", "points"]
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
    row_numbers: Ints | None = None  # (N,) each row's place in the file, from 0; None where no row was left out

    def where(self, row: int) -> str:
        """The place of a row, for a message."""
        return _place(self.file, row if self.row_numbers is None else int(self.row_numbers[row]), self.first_line)


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
    kept, dropped = _rows_that_hold_something(frame)
    numbers = None if kept.all() else np.flatnonzero(kept)
    frame = frame.filter(kept.tolist()) if numbers is not None else frame
    if frame.is_empty():
        raise bad_file(path.name, "has no rows; export it again")
    fail = partial(_bad_cell, path.name, first_line, numbers)
    openings = opening_times(frame, heads, zone=conventions.zone, fail=fail)
    cells = _Cells.of(path, frame, chosen, conventions=conventions, separator=separator, fail=fail)
    rest = frame.drop({*chosen.used, *openings.used, "available_at"}, strict=False)
    named = side_of_name(path.stem)
    extra = _Extra.of(cells, rest, chosen, is_in_points=conventions.is_spread_in_points)
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
        available_ms=_available(frame, fail),
        price_side=chosen.side or named or conventions.price_side,
        format=format_name,
        point=cells.point,
        spread_unit=extra.spread_unit,
        spread_time=extra.spread_time,
        dropped=dropped,
        notes=(*openings.notes, *cells.notes),
        doubts=(*openings.doubts, *cells.doubts),
        row_numbers=numbers,
    )


def _unique(file: str, heads: list[Heading]) -> list[Heading]:
    names = [head.name for head in heads]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise bad_file(file, f"has two columns of the same name, `{twice[0]}`; rename one")
    return heads


def _check_columns(file: str, heads: list[Heading], chosen: PriceColumns) -> None:
    """Refuses a file without prices or times, by the names that it has."""
    times = [head for head in heads if head.time_rank is not None or head.is_index or head.name in END_WORDS]
    missing = [] if chosen.taken or chosen.has_both else [name for name in PRICES if not _has(heads, name)] or ["close"]
    missing += [] if times else ["timestamp"]
    if not missing:
        return
    names = ", ".join(head.written.strip() or "a column without name" for head in heads[:12])
    is_foreign = any(re.search(r"[^\W\d_]", head.written) and not re.search("[A-Za-z]", head.written) for head in heads)
    step = "name its columns in English: " if is_foreign else "it needs "
    raise bad_file(
        file, f"has no {', '.join(missing)}; {step}timestamp, open, high, low and close (its columns are {names})"
    )


def _has(heads: list[Heading], name: str) -> bool:
    return any(head.name == name for head in heads)


def _rows_that_hold_something(frame: "pl.DataFrame") -> tuple[Bools, dict[str, int]]:
    """(N,) whether a row is neither blank nor a comment, and how many are."""
    import polars as pl

    if frame.is_empty() or not all(dtype == pl.String for dtype in frame.dtypes):
        return np.ones(len(frame), dtype=bool), {}
    first = frame.to_series(0)
    comment = first.str.contains(_COMMENT).fill_null(False)
    blank = frame.select(pl.all_horizontal(pl.all().str.strip_chars().fill_null("") == "")).to_series()
    counts = {"blank line": int(blank.sum()), "comment": int(comment.sum())}
    kept = ~(blank | comment)
    return kept.to_numpy(), {reason: count for reason, count in counts.items() if count}


def _available(frame: "pl.DataFrame", fail: Fail) -> Ints | None:
    if "available_at" not in frame.columns:
        return None
    return read_times(frame["available_at"], zone="UTC", fail=fail, is_optional=True).local_ms


def _bad_cell(file: str, first_line: int, numbers: Ints | None, row: int | None, problem: str) -> DataValidationError:
    if row is None:
        return bad_file(file, problem)
    return bad_file(_place(file, row if numbers is None else int(numbers[row]), first_line), problem)


def _place(file: str, row: int, first_line: int) -> str:
    return f"{file}, line {row + first_line}" if first_line else f"{file}, row {row + 1}"


@dataclass(frozen=True)
class _Cells:
    """A file's cells with the one decimal mark that its prices have."""

    frame: "pl.DataFrame"  # text stripped
    mark: Mark
    is_marked: bool  # whether the prices show a mark at all
    digits: int | None  # of the prices, after the mark
    separator: str
    fail: Fail
    notes: list[str]
    doubts: list[str]

    @classmethod
    def of(
        cls,
        path: Path,
        frame: "pl.DataFrame",
        chosen: PriceColumns,
        *,
        conventions: Conventions,
        separator: str,
        fail: Fail,
    ) -> "_Cells":
        import polars as pl

        names = list(
            dict.fromkeys([*chosen.taken.values(), *(name for pair in chosen.pairs.values() for name in pair)])
        )
        text = [name for name in frame.columns if frame[name].dtype == pl.String]
        frame = frame.with_columns(numbers.stripped(frame[name]) for name in text)
        prices = [frame[name] for name in names if name in text]
        others = [frame[name] for name in text if name not in names]
        mark, why = _mark(path, prices, others, separator=separator, known=conventions.decimal_mark, fail=fail)
        is_marked = any(column.str.contains("[.,]").any() for column in prices)
        told = [
            numbers.written_digits(frame[name], mark)
            if name in text
            else numbers.float_digits(frame[name].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy())
            for name in names
        ]
        known = [count for count in told if count is not None]
        digits = max(known) if known and len(known) == len(told) else None
        notes = [why] if why and not why.endswith("decimal point") else []
        return cls(frame, mark, is_marked, digits, separator, fail, notes, [])

    @property
    def point(self) -> float | None:
        """The smallest step that the prices are written in: 0.00001 for five digits."""
        return None if self.digits is None else float(10.0**-self.digits)

    def numbers(self, name: str, *, parse: "Callable[[pl.Series, Mark], pl.Series]" = numbers.numbers) -> Floats:
        """(N,) a column; empty cells are NaN, anything else that is no number is an error."""
        import polars as pl

        column = self.frame[name]
        if column.dtype != pl.String:
            if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
                raise self.fail(0, f"`{name}` is not a number")
            return column.cast(pl.Float64).fill_null(float("nan")).to_numpy().copy()
        values = parse(column, self.mark)
        bad = column.is_not_null() & values.is_null() & ~column.is_in(["-", "--"])
        if bad.any():
            row = int(bad.arg_max() or 0)
            other: Mark = "," if self.mark == "." else "."
            is_other = not bool(numbers.misfits(column.slice(row, 1), other)[0])
            word = {".": "point", ",": "comma"}[self.mark]
            raise self.fail(row, f"`{name}` is not a number" + (f" with a decimal {word}" if is_other else ""))
        return values.fill_null(float("nan")).to_numpy().copy()

    def prices(self, chosen: PriceColumns) -> dict[str, Floats]:
        """Each (N,): the columns that were taken, or the mean of both sides."""
        if chosen.taken:
            return {word: self.numbers(chosen.taken[word]) for word in PRICES}
        self.notes.append("its prices are the mean of its bid and ask")
        pairs = {word: [self.numbers(name) for name in chosen.pairs[word]] for word in PRICES}
        return {word: mean_of(bid, ask, self.digits) for word, (bid, ask) in pairs.items()}

    def spread_between(self, pair: tuple[str, str]) -> Floats:
        """(N,) ask less bid; refused where it is below zero."""
        bid, ask = (self.numbers(name) for name in pair)
        crossed = ask < bid
        if crossed.any():
            row = int(np.argmax(crossed))
            raise self.fail(row, f"`{pair[1]}` is below `{pair[0]}`; correct or delete the row")
        return between(bid, ask, self.digits)

    def own_columns(self, frame: "pl.DataFrame", heads: list[Heading]) -> dict[str, Floats]:
        """Those that hold numbers and have a name; what is not read is noted."""
        by_name = {head.name: head for head in heads}
        own: dict[str, Floats] = {}
        texts = []
        for name in frame.columns:
            if by_name[name].is_unnamed or (by_name[name].is_index and self._counts_rows(name)):
                continue
            if by_name[name].is_made_later:
                self.notes.append(f"`{name}` is adjusted with what was known later, and is not read")
                continue
            column, is_text = self._own_numbers(name)
            if column is not None:
                own[name] = column
            elif is_text:
                texts.append(name)
        if texts:
            self.notes.append(f"columns that hold no numbers are not read: {', '.join(texts)}")
        return own

    def _counts_rows(self, name: str) -> bool:
        """Whether a column holds 0, 1, 2 … or 1, 2, 3 …, as an index that became a column does."""
        import polars as pl

        counts = self.frame[name].cast(pl.Int64, strict=False)
        return counts.null_count() == 0 and bool((counts.diff().drop_nulls() == 1).all())

    def _own_numbers(self, name: str) -> tuple[Floats | None, bool]:
        """A further column's numbers; None where it is text, or empty altogether, and whether it is text."""
        import polars as pl

        column = self.frame[name]
        if column.is_null().all():
            return None, False
        if column.dtype != pl.String:
            if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
                return None, True
            return _finite(column.cast(pl.Float64)), False
        mark = self._own_mark(column)
        if mark is None:
            return None, False
        values = numbers.numbers(column, mark)
        bad = column.is_not_null() & values.is_null()
        if not bad.any():
            return _finite(values), False
        if 2 * int(bad.sum()) > int(column.is_not_null().sum()):
            return None, True
        where = self.fail(int(bad.arg_max() or 0), f"`{name}` is no number").message
        self.doubts.append(f"a column is not read: {where}")
        return None, False

    def _own_mark(self, column: "pl.Series") -> Mark | None:
        """The prices' own, or what a column says where they show none; None where it says another, or nothing."""
        if self.is_marked:
            other: Mark = "," if self.mark == "." else "."
            if numbers.fits(column, self.mark) or not numbers.fits(column, other):
                return self.mark
            self.doubts.append(f"`{column.name}` is not read: its decimal mark is not that of the prices")
            return None
        mark, _ = numbers.decimal_mark([column], [], separator=self.separator, usual=None)
        if mark is None:
            self.doubts.append(f"`{column.name}` is not read: its point or comma may be a decimal mark or of thousands")
        return mark


def _finite(values: "pl.Series") -> Floats:
    numbers = values.fill_null(float("nan")).to_numpy().copy()
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def _mark(
    path: Path,
    prices: "list[pl.Series]",
    others: "list[pl.Series]",
    *,
    separator: str,
    known: Mark | None,
    fail: Fail,
) -> tuple[Mark, str]:
    """The decimal mark of the file's prices and why."""
    if not prices or (known is not None and all(numbers.fits(column, known) for column in prices)):
        return known or ".", ""
    mark, why = numbers.decimal_mark(prices, others, separator=separator, usual=usual_price(path.name))
    if mark is not None:
        return mark, why
    column = next(each for each in prices if numbers.is_either(each))
    row = int(column.str.contains("[.,]").arg_max() or 0)
    cell = str(column[row])
    raise fail(
        row,
        f"`{column.name}` is {cell}, which can be read as {re.sub('[.,]', '', cell)} or {cell.replace(',', '.')}, and "
        "nothing in the file tells which; write prices without a mark for thousands, or with four digits or more "
        "after the decimal mark",
    )


@dataclass(frozen=True)
class _Extra:
    """Volume and spread under their own names, and which of the file's columns they are."""

    columns: dict[str, Floats]
    used: list[str]
    spread_unit: SpreadUnit | None = None
    spread_time: SpreadTime = "unknown"

    @classmethod
    def of(cls, cells: _Cells, rest: "pl.DataFrame", chosen: PriceColumns, *, is_in_points: bool) -> "_Extra":
        columns, used = {}, []
        volume = next((name for name in VOLUME_NAMES if name in rest.columns), None)
        if volume is not None and not rest[volume].is_null().all():
            used.append(volume)
            columns["volume"] = _finite_or_nan(_volume(cells, volume))
        spreads = {} if chosen.has_both else _told_spreads(cells, rest, is_in_points=is_in_points)
        unused = [name for name in spread_times(rest.columns) if chosen.has_both]
        if unused:
            used += unused
            cells.notes.append(f"its spread is its ask less its bid; not read: {', '.join(unused)}")
        used += [told.column for told in spreads.values()]
        made = {
            f"spread_{word}": cells.spread_between(chosen.pairs[word])
            for word in ("open", "close")
            if word in chosen.pairs
        }
        unit: SpreadUnit | None = "price" if made else None
        time: SpreadTime = "close" if "spread_close" in made else "open" if made else "unknown"
        main = made.get("spread_close", made.get("spread_open"))
        for name, told in spreads.items():
            columns[name] = told.values
            if name == "spread":
                main, unit, time = told.values, told.unit, told.time
        columns |= made | ({} if main is None else {"spread": main})
        return cls(columns, used, unit, time)


@dataclass(frozen=True)
class _ToldSpread:
    """A column of spreads in price units."""

    column: str
    values: Floats
    unit: SpreadUnit
    time: SpreadTime


def _told_spreads(cells: _Cells, rest: "pl.DataFrame", *, is_in_points: bool) -> dict[str, _ToldSpread]:
    """The file's own columns of spreads: `spread`, and those at open and close if they say so."""
    times = {name: time for name, time in spread_times(rest.columns).items() if not rest[name].is_null().all()}
    told = {name: _told_spread(cells, name, time, is_in_points=is_in_points) for name, time in times.items()}
    found = {f"spread_{each.time}": each for each in told.values() if each.time in ("open", "close")}
    by_time = {each.time: each for each in told.values()}
    order: tuple[SpreadTime, ...] = ("unknown", "close", "average", "minimum", "open")
    main = next((by_time[time] for time in order if time in by_time), None)
    return found | ({} if main is None else {"spread": main})


def _told_spread(cells: _Cells, name: str, time: SpreadTime, *, is_in_points: bool) -> _ToldSpread:
    """In price units: whole numbers beside decimal prices are points of the prices' last digit."""
    values = cells.numbers(name)
    present = values[np.isfinite(values)]
    is_whole = bool((present == np.round(present)).all())
    if not is_in_points and not (is_whole and cells.digits != 0):
        return _ToldSpread(name, values, "price", time)
    if cells.point is None:
        cells.doubts.append(f"`{name}` may be in points, but the prices' last digit is not told; it is left as it is")
        return _ToldSpread(name, values, "price", time)
    cells.notes.append(f"`{name}` is in points of {cells.point:.10g}")
    return _ToldSpread(name, values * cells.point, "points", time)


def _volume(cells: _Cells, name: str) -> Floats:
    import polars as pl

    column = cells.frame[name]
    if column.dtype == pl.String and not cells.is_marked:
        mark, _ = numbers.decimal_mark([column], [], separator=cells.separator, usual=None)
        if mark is None:
            raise cells.fail(0, f"`{name}` has a point or comma that may be of thousands; write it without")
        return numbers.amounts(column, mark).fill_null(float("nan")).to_numpy().copy()
    return cells.numbers(name, parse=numbers.amounts)


def _finite_or_nan(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)
