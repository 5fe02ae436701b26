"""Paging of lists: `limit`, and an opaque cursor that names the last item seen."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from common_lib.exceptions import DataValidationError

Limit = Annotated[int, Query(ge=1, le=200, description="At most this many.")]
Cursor = Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before.")]
Item = TypeVar("Item")


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
    kept = [item for item in items[begin:] if keep(item)]
    chosen = tuple(kept[:limit])
    return chosen, base64.urlsafe_b64encode(name(chosen[-1]).encode()).decode() if len(kept) > limit else None


def numbered(number: int | None) -> str | None:
    """The cursor of a list whose items are numbered and paged where they are stored; None: nothing follows."""
    return None if number is None else base64.urlsafe_b64encode(str(number).encode()).decode()


def number_of(cursor: str | None) -> int | None:
    """The inverse of `numbered`.

    Raises:
        DataValidationError: the cursor is not one of such a list.
    """
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise ValueError("no number")
    except (binascii.Error, ValueError) as error:
        raise _no_cursor() from error
    return int(text)


def _after(cursor: str, names: Sequence[str]) -> int:
    try:
        return names.index(base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()) + 1
    except (binascii.Error, ValueError) as error:
        raise _no_cursor() from error


def _no_cursor() -> DataValidationError:
    return DataValidationError.at("query.cursor", "not a cursor of this list; start without one")
