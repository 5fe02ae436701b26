"""Decimal and thousands marks: decided over whole columns, and alike for all prices of a file; never cell by cell.

`2,650.10` and `1.310,50` say it themselves, and so does any cell in which a mark is not followed by three digits. A
column of nothing but `2,655` or `15.817` can be read in two ways that differ by a thousand. Then decides what else
stands in the file, then what such an instrument usually costs, then the separator: in a file separated by commas the
decimal mark is the point. Where nothing does, the file is refused.

Legend: text columns are stripped, empty cells null; `.` and `,` name the decimal mark.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ml_workbench_service.contracts.market import Floats

if TYPE_CHECKING:
    import polars as pl

Mark = Literal[".", ","]
MARKS: tuple[Mark, ...] = (".", ",")
MOST_DIGITS = 8  # after the decimal mark; a price with more is the noise of a computation
_GROUPS = " '\u00a0\u202f\u2019"  # marks of thousands beside point and comma
BY_SEPARATOR = "its prices have a decimal point, as is usual in a file separated by commas; nothing else tells it"
_OTHER: dict[Mark, Mark] = {".": ",", ",": "."}
_EITHER = r"^[+-]?[1-9]\d{0,2}[.,]\d{3}$"
_SAMPLED_ROWS = 1000
_FEWEST_TELLING = 20  # marked cells, each with three digits, beside unmarked ones: then the mark is of thousands
_USUAL_DECADES = 1.5  # half of what the two readings differ by
_SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9}


def _pattern(mark: Mark) -> str:
    """Digits, or groups of three with one and the same mark between, and what follows the decimal mark."""
    groups = "|".join(rf"(?:{re.escape(each)}\d{{3}})+" for each in (_OTHER[mark], *_GROUPS))
    number = rf"(?:\d+|[1-9]\d{{0,2}}(?:{groups}))(?:[{mark}]\d*)?|[{mark}]\d+"
    return rf"^[+-]?(?:{number})(?:[eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$"


_PATTERNS: dict[Mark, str] = {mark: _pattern(mark) for mark in MARKS}


def stripped(column: "pl.Series") -> "pl.Series":
    """The cells without blanks around them; what held nothing else is null."""
    text = column.str.strip_chars()
    return text.set(text == "", None)


def misfits(column: "pl.Series", mark: Mark) -> "pl.Series":
    """(N,) whether a cell is no number with that decimal mark."""
    return ~column.str.contains(_PATTERNS[mark]).fill_null(True)


def fits(column: "pl.Series", mark: Mark) -> bool:
    """Whether every cell is a number with that decimal mark."""
    return not (misfits(column.head(_SAMPLED_ROWS), mark).any() or misfits(column, mark).any())


def is_either(column: "pl.Series") -> bool:
    """Whether the two marks read different numbers from the column, and both can be meant."""
    if not all(fits(column.head(_SAMPLED_ROWS), mark) for mark in MARKS):
        return False
    return bool(column.str.contains(_EITHER).any()) and all(fits(column, mark) for mark in MARKS)


def numbers(column: "pl.Series", mark: Mark) -> "pl.Series":
    """Float64; null where the cell is none."""
    import polars as pl

    text = column
    if text.str.contains(f"[{_OTHER[mark]}{_GROUPS}]").any():
        text = text.str.replace_all(f"[{_OTHER[mark]}{_GROUPS}]", "")
    if mark == ",":
        text = text.str.replace(",", ".", literal=True)
    return text.cast(pl.Float64, strict=False).set(misfits(column, mark), None)


def decimal_mark(
    prices: Sequence["pl.Series"], others: Sequence["pl.Series"], *, separator: str, usual: float | None
) -> tuple[Mark | None, str]:
    """The decimal mark of a file's prices and why, in words; None where it cannot be told.

    Args:
        others: further columns of the file, some of which may be no numbers.
        usual: what such an instrument costs, by order of magnitude.
    """
    possible = [mark for mark in MARKS if all(fits(column, mark) for column in prices)]
    if len(possible) == 1:
        return possible[0], "" if possible[0] == "." else "its prices have a decimal comma"
    if not possible:
        bad = {mark: sum(int(misfits(column, mark).sum()) for column in prices) for mark in MARKS}
        return min(MARKS, key=lambda mark: bad[mark]), ""
    if not any(is_either(column) for column in prices):
        return ".", ""
    mark, why = (
        _of_the_rest(others) or _usual_mark(prices, usual) or _whole_mark(prices) or _conventional_mark(separator)
    )
    if mark is None or why == BY_SEPARATOR:
        return mark, why
    shown: Mark = "," if any(column.str.contains(",", literal=True).any() for column in prices) else "."
    use = f"decimal {_word(mark)}" if shown == mark else f"{_word(shown)} for thousands"
    return mark, f"its prices have a {use}: {why}"


def _of_the_rest(others: Sequence["pl.Series"]) -> tuple[Mark | None, str] | None:
    told: dict[Mark, str] = {}
    for column in others:
        possible = [mark for mark in MARKS if fits(column, mark)]
        if len(possible) == 1:
            told.setdefault(possible[0], column.name)
    if len(told) != 1:
        return None
    mark, name = next(iter(told.items()))
    return mark, f"`{name}` shows it"


def _usual_mark(prices: Sequence["pl.Series"], usual: float | None) -> tuple[Mark | None, str] | None:
    if usual is None:
        return None
    medians = {mark: numbers(prices[0], mark).median() for mark in MARKS}
    near = [
        mark
        for mark, value in medians.items()
        if isinstance(value, float) and value > 0 and abs(math.log10(value / usual)) < _USUAL_DECADES
    ]
    if len(near) != 1:
        return None
    return near[0], f"such an instrument costs about {usual:,.4g}"


def _whole_mark(prices: Sequence["pl.Series"]) -> tuple[Mark | None, str] | None:
    """Of thousands, if numbers under a thousand stand there without a mark."""
    num_marked = sum(int(column.str.contains(_EITHER).sum()) for column in prices)
    if num_marked < _FEWEST_TELLING or not any(column.str.contains(r"^\d{1,3}$").any() for column in prices):
        return None
    comma = any(column.str.contains(",", literal=True).any() for column in prices)
    mark: Mark = "." if comma else ","
    return mark, "smaller ones stand there without it"


def _conventional_mark(separator: str) -> tuple[Mark | None, str]:
    if separator == ",":
        return ".", BY_SEPARATOR
    return None, ""


def _word(mark: Mark) -> str:
    return "point" if mark == "." else "comma"


def amounts(column: "pl.Series", mark: Mark) -> "pl.Series":
    """Numbers that may be cut short: `125.4K`, `3.2M`; a dash is none."""
    text = column.set(column.is_in(["-", "--"]), None)
    unit = text.str.extract(r"^[\d.,]+([KMBkmb])$", 1).str.to_uppercase()
    values = numbers(text.str.replace(r"[KMBkmb]$", ""), mark)
    return values * unit.replace_strict(_SUFFIXES, default=1.0)


def written_digits(column: "pl.Series", mark: Mark) -> int | None:
    """Most digits after the decimal mark; None where most cells have more than a price has."""
    digits = column.drop_nulls().str.extract(rf"[{mark}](\d*)$", 1).str.len_chars().fill_null(0).to_numpy()
    return _most(digits)


def float_digits(values: Floats) -> int | None:
    """Most decimal digits that the numbers need; None where most need more than a price has."""
    present = values[np.isfinite(values)][:_SAMPLED_ROWS]
    digits = np.full(len(present), MOST_DIGITS + 1)
    for count in range(MOST_DIGITS, -1, -1):
        digits[np.round(present, count) == present] = count
    return _most(digits)


def _most(digits: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> int | None:
    usual = digits[digits <= MOST_DIGITS]
    return int(usual.max()) if len(usual) and 2 * len(usual) >= len(digits) else None
