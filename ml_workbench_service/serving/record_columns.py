"""Columns of prediction records: every field of the one record, nested keys with dots between, for tables and tensors.

They are read off the contract, so that a field which joins the record is a column of every protocol. `outputs` has one
column for each of the version's outputs. Lists of words have commas between; lists of objects are JSON.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from operator import attrgetter
from types import NoneType
from typing import Any, Literal, get_args

import numpy as np
from pydantic_core import to_json

from ml_workbench_service.contracts.contract import Contract, iso
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.contracts.prediction import ActionsByPosition, PredictionRecord

RecordKind = Literal["time", "text", "number", "positions"]


@dataclass(frozen=True)
class RecordColumn:
    """One column: `positions` are three numbers a record, one for each position that may be held."""

    name: str
    kind: RecordKind
    value_of: Callable[[PredictionRecord], Any]

    def numbers(self, records: Sequence[PredictionRecord]) -> Floats:
        """(N,) or, of positions, (N, 3); NaN where a record has none."""
        if self.kind == "positions":
            none = (np.nan,) * 3
            return np.array([self.value_of(each) or none for each in records], dtype=np.float64).reshape(-1, 3)
        return np.array([self.value_of(each) for each in records], dtype=np.float64)  # None becomes NaN

    def texts(self, records: Sequence[PredictionRecord]) -> list[str]:
        """N texts, empty where a record has none; moments as in JSON."""
        return [text_of(self.value_of(each)) for each in records]


@lru_cache(maxsize=64)
def record_columns(outputs: tuple[str, ...]) -> tuple[RecordColumn, ...]:
    """The columns of a version's records, in the record's order.

    Args:
        outputs: names of the version's outputs.
    """
    return tuple(_columns(PredictionRecord, "", outputs))


def _columns(kind: type[Contract], prefix: str, outputs: tuple[str, ...]) -> Iterator[RecordColumn]:
    for name, field in kind.model_fields.items():
        path, inner = f"{prefix}{name}", _stripped(field.annotation)
        if path == "outputs":
            for each in outputs:
                yield RecordColumn(f"outputs.{each}", "number", partial(_output, each))
        elif isinstance(inner, type) and issubclass(inner, Contract):
            yield from _columns(inner, f"{path}.", outputs)
        else:
            yield RecordColumn(path, _kind(inner), _getter(path))


def _output(name: str, record: PredictionRecord) -> float | None:
    return record.outputs.get(name)


def _stripped(annotation: Any) -> Any:
    """A type without what says that it may be null; the first of several."""
    if annotation == ActionsByPosition:
        return annotation
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if NoneType in get_args(annotation) or hasattr(annotation, "__metadata__"):
        return _stripped(parts[0])
    return annotation


def _kind(inner: Any) -> RecordKind:
    if inner == ActionsByPosition:
        return "positions"
    if inner is datetime:
        return "time"
    return "number" if inner in (float, int) else "text"


def _getter(path: str) -> Callable[[PredictionRecord], Any]:
    """The value at a path; None where something on the way is null."""
    if "." not in path:
        return attrgetter(path)
    parent, _, last = path.rpartition(".")
    above, of = _getter(parent), attrgetter(last)

    def get(record: PredictionRecord) -> Any:
        holder = above(record)
        return None if holder is None else of(holder)

    return get


def text_of(value: Any) -> str:
    """A value as a text: empty where there is none; moments as in JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, tuple) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return to_json(value).decode()
