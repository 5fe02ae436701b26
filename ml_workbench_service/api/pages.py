"""Pagination and filters of lists: `limit`, an opaque cursor that names the last item seen, and `symbol`."""

import base64
import binascii
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated, TypeVar

from fastapi import Depends, Query

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import normal_symbol
from ml_workbench_service.contracts.strict_numbers import whole_number

Limit = Annotated[int, Query(ge=1, le=200, description="At most this many.")]
Cursor = Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")]
Item = TypeVar("Item")


async def _normal_symbol(
    symbol: Annotated[str | None, Query(max_length=16, examples=["EUR/USD"])] = None,
) -> str | None:
    """As the service spells it."""
    try:
        return None if symbol is None else normal_symbol(symbol)
    except ValueError as error:
        raise DataValidationError.at("query.symbol", f"{error}") from error


Symbol = Annotated[str | None, Depends(_normal_symbol)]
"""One symbol whose items are wanted; None: those of every symbol."""


def page(
    items: Sequence[Item],
    *,
    limit: int,
    cursor: str | None,
    name: Callable[[Item], str],
    keep: Callable[[Item], bool] = lambda _: True,
) -> tuple[tuple[Item, ...], str | None]:
    """The kept items after the one that the cursor names, and the next cursor where more follow.

    The cursor's place is looked up before filtering, so that an item which leaves the filter between two pages (a
    deployment that ended, say) takes nothing along.

    Raises:
        DataValidationError: the cursor is not one of this list.
    """
    begin = 0 if cursor is None else _after(cursor, [name(item) for item in items])
    kept = list(islice(filter(keep, islice(items, begin, None)), limit + 1))  # no further than the page needs
    chosen = tuple(kept[:limit])
    return chosen, cursor_of(name(chosen[-1])) if len(kept) > limit else None


def cursor_of(name: str) -> str:
    """The cursor that names the last item of a page."""
    return base64.urlsafe_b64encode(name.encode()).decode()


def named_by(cursor: str) -> str:
    """The item that a cursor names.

    Raises:
        DataValidationError: it names none.
    """
    try:
        return base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise _foreign() from error


def numbered(number: int | None) -> str | None:
    """The cursor of a list whose items are numbered and paged where they are stored; None: nothing follows."""
    return None if number is None else cursor_of(str(number))


def number_of(cursor: str | None) -> int | None:
    """The inverse of `numbered`.

    Raises:
        DataValidationError: the cursor is not one of such a list.
    """
    if cursor is None:
        return None
    number = whole_number(named_by(cursor))
    if number is None:
        raise _foreign()
    return number


def _after(cursor: str, names: Sequence[str]) -> int:
    try:
        return names.index(named_by(cursor)) + 1
    except ValueError as error:
        raise _foreign() from error


def _foreign() -> DataValidationError:
    return DataValidationError.at("query.cursor", "not a cursor of this list; start without one")
