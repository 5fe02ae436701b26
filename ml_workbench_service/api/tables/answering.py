"""Answering with a table: `Accept` chooses among JSON (a page), CSV, Arrow and Parquet (the whole, or a stretch).

JSON of rows that lie in a file, and everything but JSON, comes from the table process; rows that the service has in
memory are written as JSON here.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
import orjson
from fastapi import Depends, Header, Query, Response
from fastapi.responses import StreamingResponse

from common_lib.exceptions import NotAcceptableError
from ml_workbench_service.api.pages import Cursor, number_of, numbered
from ml_workbench_service.contracts.contract import Contract, to_ms
from ml_workbench_service.contracts.runners import TableReader
from ml_workbench_service.contracts.series import ColumnKind, columns_of
from ml_workbench_service.contracts.tables import (
    NO_TIME,
    ROWS,
    AnyTable,
    RowName,
    Sent,
    TableFormat,
    TableHead,
    Values,
    described,
    sent,
)

ROWS_OF_A_PAGE = 50
SUFFIX = {TableFormat.CSV: "csv", TableFormat.ARROW: "arrows", TableFormat.PARQUET: "parquet"}
FORMATS = ", ".join(TableFormat)


@dataclass(frozen=True)
class Asked:
    """How much of a table is asked for, and as what; `limit` None: a page of JSON, all of another format."""

    format: TableFormat
    first: int
    limit: int | None


def format_of(accept: str) -> TableFormat:
    """The format that the caller likes best; JSON where all are welcome.

    Raises:
        NotAcceptableError: none of the four is.
    """
    liked: list[tuple[float, TableFormat]] = []
    for place, offer in enumerate(accept.split(",")):
        kind, _, parameters = offer.strip().partition(";")
        found = _of_range(kind.strip().lower())
        weight = _weight(parameters)
        if found is not None and weight > 0:
            liked.append((-weight + place * 1e-9, found))
    if not liked:
        raise NotAcceptableError(
            f"a table comes as {FORMATS}; send one of them as Accept",
            details={"formats": [each.value for each in TableFormat]},
        )
    return min(liked)[1]


def _of_range(kind: str) -> TableFormat | None:
    if kind in ("", "*/*", "application/*"):
        return TableFormat.JSON
    if kind == "text/*":
        return TableFormat.CSV
    return next((each for each in TableFormat if each.value == kind), None)


def _weight(parameters: str) -> float:
    """The quality of RFC 9110; what cannot be read counts as 1."""
    for each in parameters.split(";"):
        name, _, value = each.partition("=")
        if name.strip().lower() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 1.0
    return 1.0


async def accepted(accept: Annotated[str, Header(description=f"One of {FORMATS}.")] = TableFormat.JSON) -> TableFormat:
    """The format asked for."""
    return format_of(accept)


AcceptedFormat = Annotated[TableFormat, Depends(accepted)]


async def _asked(
    format: AcceptedFormat,
    limit: Annotated[
        int | None, Query(ge=1, le=200, description="At most this many rows; JSON: 50 unless it is sent, else all.")
    ] = None,
    cursor: Cursor = None,
) -> Asked:
    return Asked(format, number_of(cursor) or 0, limit)


AskedTable = Annotated[Asked, Depends(_asked)]


def table_of(model: type[Contract]) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that answers with a table: its 200 in the four formats."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = {
        TableFormat.JSON.value: {},
        TableFormat.CSV.value: {"schema": {"type": "string", "description": "A header, then a line for each row."}},
        TableFormat.ARROW.value: binary,
        TableFormat.PARQUET.value: binary,
    }
    return {200: {"model": model, "description": "The table.", "content": content}}


async def answer_stored(
    reader: TableReader, table: AnyTable, asked: Asked, *, about: Mapping[str, Any], name: str
) -> Response:
    """Of a table that the table process reads; `about` stands beside the rows in JSON, `name` names a file of it."""
    if asked.format is not TableFormat.JSON:
        return await streamed(reader, table, asked, name=name)
    limit = asked.limit or ROWS_OF_A_PAGE
    head, rows = await reader.page(table, first=asked.first, limit=limit)
    return Response(
        composed(table.row, head, rows, first=asked.first, limit=limit, about=about), media_type=TableFormat.JSON.value
    )


async def answer_rows(
    reader: TableReader,
    row: RowName,
    rows: Sequence[Mapping[str, Any]],
    asked: Asked,
    *,
    about: Mapping[str, Any],
    name: str,
    page: Mapping[str, Any] | None = None,
) -> Response:
    """Of rows in memory, each by its columns' names; further columns are those that any row has.

    Args:
        page: `num_rows` and `next_cursor` of rows that were chosen where they lie, and are a page as they stand.
    """
    columns = _columns(row, rows)
    if asked.format is not TableFormat.JSON:
        values = [Values(each, kind, _values([one.get(each) for one in rows], kind)) for each, kind in columns]
        return await streamed(reader, sent(row, values, num_rows=len(rows)), asked, name=name)
    limit = asked.limit or ROWS_OF_A_PAGE
    shown = [
        {each: _as_text(one.get(each)) if kind == "time" else one.get(each) for each, kind in columns}
        for one in rows[asked.first : asked.first + limit]
    ]
    plain = orjson.dumps(shown)
    head = TableHead(columns=tuple(columns), num_rows=len(rows))
    text = composed(row, head, plain, first=asked.first, limit=limit, about=about, page=page)
    return Response(text, media_type=TableFormat.JSON.value)


async def streamed(reader: TableReader, table: AnyTable | Sent, asked: Asked, *, name: str) -> Response:
    """All rows, or a stretch, in a format other than JSON; errors before the first bytes are the answer."""
    pieces = reader.stream(table, asked.format, first=asked.first, limit=asked.limit)
    return await passed_on(pieces, asked.format.value, {"Content-Disposition": disposition(name, asked.format)})


def disposition(name: str, format: TableFormat) -> str:
    """The header that names a file of the table."""
    return f'attachment; filename="{name}.{SUFFIX[format]}"'


async def passed_on(
    pieces: AsyncIterator[bytes], media_type: str, headers: Mapping[str, str] | None = None
) -> StreamingResponse:
    """What the table process sends, as it comes; an error before the first bytes is the answer."""
    first = await anext(pieces, b"")
    return StreamingResponse(_chained(first, pieces), media_type=media_type, headers=headers)


async def _chained(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for each in others:
        yield each


def composed(
    row: RowName, head: TableHead, rows: bytes, *, first: int, limit: int, about: Mapping[str, Any],
    page: Mapping[str, Any] | None = None,
) -> bytes:  # fmt: skip
    """A page: what is said of the table, then the rows as they were written."""
    num_rows = head.num_rows or 0
    following = first + limit
    plain = {
        **about,
        "columns": [each.model_dump() for each in described(row, head.columns)],
        "num_rows": num_rows,
        "next_cursor": numbered(following) if following < num_rows else None,
        **(page or {}),
    }
    return orjson.dumps(plain)[:-1] + b',"rows":' + rows + b"}"


def _columns(row: RowName, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ColumnKind]]:
    fixed: list[tuple[str, ColumnKind]] = [(each.name, each.kind) for each in columns_of(ROWS[row])]
    known = {name for name, _ in fixed}
    further = dict.fromkeys(name for one in rows for name in one if name not in known)
    return [*fixed, *((name, _kind([one.get(name) for one in rows])) for name in further)]


def _as_text(moment: datetime | None) -> str | None:
    """To the millisecond, as in every other format; fractions only where there are any."""
    if moment is None:
        return None
    timespec = "milliseconds" if moment.microsecond >= 1000 else "seconds"
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def _kind(values: Sequence[Any]) -> ColumnKind:
    is_number = all(each is None or (isinstance(each, int | float) and not isinstance(each, bool)) for each in values)
    return "number" if is_number else "text"


def _values(values: Sequence[Any], kind: ColumnKind) -> Any:
    if kind == "time":
        return np.array([NO_TIME if each is None else to_ms(each) for each in values], dtype=np.int64)
    if kind == "text":
        return [each if each is None or isinstance(each, str) else orjson.dumps(each).decode() for each in values]
    return np.array([np.nan if each is None else each for each in values], dtype=np.float64)
