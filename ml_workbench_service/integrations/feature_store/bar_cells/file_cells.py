"""The cells of one file, with the one decimal mark that its prices have: columns of numbers, prices, own columns.

Legend: N rows.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.integrations.feature_store.bar_cells import marks
from ml_workbench_service.integrations.feature_store.bar_cells.headers import Heading
from ml_workbench_service.integrations.feature_store.bar_cells.marks import Mark
from ml_workbench_service.integrations.feature_store.bar_cells.prices import PRICES, PriceColumns, between, mean_of
from ml_workbench_service.integrations.feature_store.bar_names import usual_price
from ml_workbench_service.integrations.feature_store.bar_times import Fail

if TYPE_CHECKING:
    import polars as pl

MOST_SHOWN = 40
"""Characters of a cell that an error quotes."""


@dataclass(frozen=True)
class FileCells:
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
        known_mark: Mark | None,
        separator: str,
        fail: Fail,
    ) -> "FileCells":
        """The file's cells, once its decimal mark is decided.

        Args:
            known_mark: the program's own, where it has one.

        Raises:
            DataValidationError: prices can be read in two ways; names file and line.
        """
        import polars as pl

        names = list(
            dict.fromkeys([*chosen.taken.values(), *(name for pair in chosen.pairs.values() for name in pair)])
        )
        text = [name for name in frame.columns if frame[name].dtype == pl.String]
        frame = frame.with_columns(marks.stripped(frame[name]) for name in text)
        prices = [frame[name] for name in names if name in text]
        others = [frame[name] for name in text if name not in names]
        mark, why = _mark(path, prices, others, separator=separator, known=known_mark, fail=fail)
        is_marked = any(column.str.contains("[.,]").any() for column in prices)
        told = [
            marks.written_digits(frame[name], mark)
            if name in text
            else marks.float_digits(frame[name].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy())
            for name in names
        ]
        known = [count for count in told if count is not None]
        digits = max(known) if known and len(known) == len(told) else None
        doubts = [why] if why == marks.BY_SEPARATOR else []
        notes = [why] if why and not doubts else []
        return cls(frame, mark, is_marked, digits, separator, fail, notes, doubts)

    @property
    def point(self) -> float | None:
        """The smallest step that the prices are written in: 0.00001 for five digits."""
        return None if self.digits is None else float(10.0**-self.digits)

    def numbers(
        self, name: str, *, parse: "Callable[[pl.Series, Mark], pl.Series]" = marks.numbers, mark: Mark | None = None
    ) -> Floats:
        """(N,) a column; empty cells are NaN, anything else that is no number is an error."""
        import polars as pl

        column = self.frame[name]
        if column.dtype != pl.String:
            if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
                raise self.fail(0, f"`{name}` is not a number")
            return column.cast(pl.Float64).fill_null(float("nan")).to_numpy().copy()
        mark = mark or self.mark
        values = parse(column, mark)
        bad = column.is_not_null() & values.is_null() & ~column.is_in(["-", "--"])
        if bad.any():
            row = int(bad.arg_max() or 0)
            other: Mark = "," if mark == "." else "."
            is_other = not bool(marks.misfits(column.slice(row, 1), other)[0])
            word = {".": "point", ",": "comma"}[mark]
            what = f" with a decimal {word}" if is_other else f": {str(column[row])[:MOST_SHOWN]!r}"
            raise self.fail(row, f"`{name}` is not a number{what}")
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
                if by_name[name].is_foreign:
                    self.notes.append(f"`{by_name[name].written}` is not read: its name has no Latin letter")
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
            return finite(column.cast(pl.Float64)), False
        mark = self._own_mark(column)
        if mark is None:
            return None, False
        values = marks.numbers(column, mark)
        bad = column.is_not_null() & values.is_null()
        if not bad.any():
            return finite(values), False
        if 2 * int(bad.sum()) > int(column.is_not_null().sum()):
            return None, True
        where = self.fail(int(bad.arg_max() or 0), f"`{name}` is no number").message
        self.doubts.append(f"a column is not read: {where}")
        return None, False

    def _own_mark(self, column: "pl.Series") -> Mark | None:
        """The prices' own, or what a column says where they show none; None where it says another, or nothing."""
        if self.is_marked:
            other: Mark = "," if self.mark == "." else "."
            if marks.fits(column, self.mark) or not marks.fits(column, other):
                return self.mark
            self.doubts.append(f"`{column.name}` is not read: its decimal mark is not that of the prices")
            return None
        mark = self.mark_alone(column)
        if mark is None:
            self.doubts.append(f"`{column.name}` is not read: its point or comma may be a decimal mark or of thousands")
        return mark

    def mark_alone(self, column: "pl.Series") -> Mark | None:
        """The decimal mark of a column beside prices that show none; None where it cannot be told."""
        has_commas = column.str.contains(",", literal=True).any()
        return marks.decimal_mark([column], [], separator=self.separator if has_commas else "", usual=None)[0]


def finite(values: "pl.Series") -> Floats:
    """(N,) NaN where a number is missing or infinite."""
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
    if not prices or (known is not None and all(marks.fits(column, known) for column in prices)):
        return known or ".", ""
    mark, why = marks.decimal_mark(prices, others, separator=separator, usual=usual_price(path.name))
    if mark is not None:
        return mark, why
    column = next(each for each in prices if marks.is_either(each))
    row = int(column.str.contains("[.,]").arg_max() or 0)
    cell = str(column[row])
    raise fail(
        row,
        f"`{column.name}` is {cell}, which can be read as {re.sub('[.,]', '', cell)} or {cell.replace(',', '.')}, and "
        "nothing in the file tells which; write prices without a mark for thousands, or with four digits or more "
        "after the decimal mark",
    )
