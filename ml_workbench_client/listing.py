"""Lists: lazily, page by page, however long they are."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from common_lib.exceptions import PlatformError
from ml_workbench_client.display import MOST_ROWS
from ml_workbench_client.frames import Rows
from ml_workbench_client.plans import Async, Emit, Flow, M, Plan, Sync, operation
from ml_workbench_client.routes import Route
from ml_workbench_client.sending import Link, Resource, read
from ml_workbench_client.wire import Now

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
PAGE = 200
"""The service's longest page."""


def listed(*routes: Route) -> Callable[[F], F]:
    """Says of a method that makes a `Listing`, or another object, which operations of the service it is for."""

    def mark(function: F) -> F:
        function.routes = routes  # type: ignore[attr-defined]
        return function

    return mark


class Listing(Resource[M], Generic[M, T]):
    """What a list holds. `for each in …` (`async for`) asks for one page after the other; `all()` for everything."""

    def __init__(
        self, link: Link, route: Route, contract: type[T], *, query: Mapping[str, str], limit: int | None = None,
        path: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(link)
        self._route, self._contract, self._query, self._limit = route, contract, dict(query), limit
        self._path = dict(path or {})

    def __iter__(self: "Listing[Sync, T]") -> Iterator[T]:
        if not isinstance(self._carrier, Now):
            raise TypeError("this list belongs to an AsyncWorkbench; write `async for`, or `await ….all()`")
        iterator: Iterator[T] = self._carrier.iterate(Flow(self._emitting()))
        return iterator

    def __aiter__(self: "Listing[Async, T]") -> AsyncIterator[T]:
        if isinstance(self._carrier, Now):
            raise TypeError("this list belongs to a Workbench; write `for`, or use AsyncWorkbench")
        iterator: AsyncIterator[T] = self._carrier.iterate(Flow(self._emitting()))
        return iterator

    @operation()
    def all(self) -> Plan[Rows[T]]:
        """Everything, as rows that show themselves as a table and become frames."""
        return (yield from self._rows(self._limit))

    @operation()
    def first(self, num: int) -> Plan[Rows[T]]:
        """So many from the beginning."""
        return (yield from self._rows(num))

    def _rows(self, limit: int | None) -> Plan[Rows[T]]:
        rows: Rows[T] = Rows()
        cursor: str | None = None
        while limit is None or len(rows) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(rows))
            page, cursor = yield from self._page(cursor, size)
            rows += page
            if cursor is None:
                break
        return rows

    def _emitting(self) -> Plan[None]:
        left, cursor = self._limit, None
        while left is None or left > 0:
            page, cursor = yield from self._page(cursor, PAGE if left is None else min(PAGE, left))
            for each in page:
                yield Emit(each)
            left = None if left is None else left - len(page)
            if cursor is None:
                return

    def _page(self, cursor: str | None, size: int) -> Plan[tuple[list[T], str | None]]:
        asked = {**self._query, "limit": str(size), **({} if cursor is None else {"cursor": cursor})}
        answer = yield from self._ask(self._route, query=asked, **self._path)
        found = json.loads(answer.content)
        key = self._route.path.rpartition("/")[2].replace("-", "_")
        return [read(self._contract, each) for each in found[key]], found.get("next_cursor")

    def __repr__(self) -> str:
        asked = "&".join(f"{name}={value}" for name, value in self._query.items())
        return f"<Listing {self._route.path}{'?' if asked else ''}{asked}: iterate, or all()>"

    def _repr_html_(self) -> str | None:
        if not isinstance(self._carrier, Now):
            return None
        try:
            return self._carrier.run(self._rows(min(self._limit or MOST_ROWS, MOST_ROWS)))._repr_html_()
        except PlatformError:
            return None
