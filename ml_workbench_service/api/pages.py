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
    items: Sequence[Item], *, limit: int, cursor: str | None, name: Callable[[Item], str]
) -> tuple[tuple[Item, ...], str | None]:
    """The items after the one that the cursor names, and the next cursor where more follow.

    Raises:
        DataValidationError: the cursor is not one of ours.
    """
    begin = 0
    if cursor is not None:
        try:
            last = base64.urlsafe_b64decode(cursor.encode()).decode()
        except (binascii.Error, ValueError) as error:
            raise DataValidationError.at("query.cursor", "not a cursor of this list; start without one") from error
        names = [name(item) for item in items]
        begin = names.index(last) + 1 if last in names else len(items)
    chosen = tuple(items[begin : begin + limit])
    more = begin + limit < len(items)
    return chosen, base64.urlsafe_b64encode(name(chosen[-1]).encode()).decode() if more and chosen else None
