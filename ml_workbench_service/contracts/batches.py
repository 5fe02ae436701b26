"""Batches of windows in Arrow: what the service and its table process hand one another, as bytes.

A chunk or its answers are `!I`, the length of a head in JSON, the head, and the columns that it names one behind the
other. Columns of few different texts are their choices, in the head, and `<i4` places; columns of numbers `<f8` with
NaN where there is none, moments `<i8` milliseconds with `NO_TIME`.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
from pydantic import Field

from ml_workbench_service.contracts.contract import Contract

ROWS_OF_A_CHUNK = 1_000
TEXT_COLUMNS, NUMBER_COLUMNS, TIME_COLUMN = ("symbol", "timeframe"), ("price", "position"), "as_of"
ABOUT_ROWS = (*TEXT_COLUMNS, TIME_COLUMN, *NUMBER_COLUMNS)
AnswerKind = Literal["time", "text", "number", "positions"]
NO_TIME = int(np.iinfo(np.int64).min)
"""A missing moment among milliseconds."""
_LENGTH = struct.Struct("!I")


class BatchTask(Contract):
    """An Arrow stream to be answered: which columns hold features, and what the answers' columns are."""

    kind: Literal["batch"] = "batch"
    features: tuple[str, ...] = Field(description="Names that a column of values, or of lists of them, may have.")
    columns: tuple[tuple[str, AnswerKind], ...]


def packed(head: Mapping[str, Any], buffers: Sequence[bytes]) -> bytes:
    """A head and its columns."""
    plain = orjson.dumps({**head, "sizes": [len(each) for each in buffers]})
    return b"".join([_LENGTH.pack(len(plain)), plain, *buffers])


def unpacked(data: bytes) -> tuple[dict[str, Any], list[memoryview]]:
    """The same again."""
    (length,) = _LENGTH.unpack_from(data)
    place = _LENGTH.size + length
    head = orjson.loads(data[_LENGTH.size : place])
    view, buffers = memoryview(data), []
    for size in head.pop("sizes"):
        buffers.append(view[place : place + size])
        place += size
    return head, buffers
