"""The records of a run as columns, and what they are written as: JSON, queue entries, columns of a table.

A record is made only for whoever needs one; it is the same to the bit as that of a question asked alone
(tests/serving/runs/test_answers.py holds every way to the one that `PredictionRecord` itself takes).
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np

from ml_workbench_service.contracts.contract import Contract, constructed, to_ms
from ml_workbench_service.contracts.deployment import MONITORED_SHARE, MonitoringLevel
from ml_workbench_service.contracts.entries import SEPARATOR, written_as
from ml_workbench_service.contracts.market import Bools, Floats32, Ints
from ml_workbench_service.contracts.outcomes import Answered
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.runs.columns import (
    ABSENT,
    Coded,
    Column,
    Moments,
    Nested,
    Numbers,
    Texts,
    Words,
    joined,
    object_of,
)

RunEntry = tuple[tuple[str, ...], bytes | None]
"""A record as an entry: the names of its fields, and their values, each ended by the separator; None where a text has
the separator in it, so that the record is written by itself."""


@dataclass(frozen=True)
class RecordRun:
    """The records of questions that one version answered together, in their order.

    Attributes:
        columns: by the fields of `PredictionRecord`, in its order.
        last_rows: (N, F) the newest rows as the network read them, or none, by each row's place.
        bar_volatility: ex-ante standard deviation of one bar's log return.
        reference_price: of each row's symbol.
    """

    columns: Mapping[str, Column]
    last_rows: "LastRows"
    bar_volatility: Numbers
    reference_price: Coded

    @classmethod
    def of(cls, answers: Sequence[Answered]) -> "RecordRun":
        """Of answers that were made one by one."""
        each_N, records = np.arange(len(answers)), [each.record for each in answers]
        columns: dict[str, Column] = {
            name: Coded(tuple([getattr(record, name) for record in records]), each_N)
            for name in PredictionRecord.model_fields
        }
        columns["prediction_id"] = Words([each.prediction_id for each in records])
        columns["as_of"] = Moments(np.array([to_ms(each.as_of) for each in records]))
        inputs = [each.last_row_F for each in answers]
        rows = [each for each in inputs if each is not None]
        is_there_N = np.array([each is not None for each in inputs])
        return cls(
            columns,
            LastRows(np.array(rows), np.where(is_there_N, np.cumsum(is_there_N) - 1, ABSENT)),
            Numbers(np.array([each.bar_volatility for each in answers], dtype=np.float64)),
            Coded(tuple([each.reference_price for each in answers]), each_N),
        )

    def __len__(self) -> int:
        return len(self.prediction_ids)

    @property
    def prediction_ids(self) -> Sequence[str]:
        """Each row's."""
        ids = self.columns["prediction_id"]
        assert isinstance(ids, Words)
        return ids.words

    @property
    def as_of_ms(self) -> list[int]:
        """Each row's moment."""
        found = self.columns["as_of"]
        assert isinstance(found, Moments)
        moments: list[int] = found.ms_N.tolist()
        return moments

    def coded(self, name: str) -> Coded:
        """A column of few different values."""
        found = self.columns[name]
        assert isinstance(found, Coded), f"{name} has few different values"
        return found

    def record(self, number: int) -> PredictionRecord:
        """One row's."""
        return constructed(PredictionRecord, {name: each.value(number) for name, each in self.columns.items()})

    def records(self) -> list[PredictionRecord]:
        """All of them."""
        names, columns = tuple(self.columns), [each.values() for each in self.columns.values()]
        return [
            constructed(PredictionRecord, dict(zip(names, values, strict=True)))
            for values in zip(*columns, strict=True)
        ]  # fmt: skip

    def answered(self, number: int) -> Answered:
        """One row's record with what the ledger keeps beside it."""
        return Answered(
            self.record(number), self.last_rows.of(number), self.bar_volatility.value(number),
            self.reference_price.value(number),
        )  # fmt: skip

    @cached_property
    def bodies(self) -> list[bytes]:
        """Each record as JSON, as its class writes it."""
        found = joined(object_of(self.columns))
        return [found] * len(self) if isinstance(found, bytes) else found

    @cached_property
    def entries(self) -> list[RunEntry]:
        """Each record as an entry of a stream, as `contracts.entries.row` writes it."""
        gaps_N = self._gaps()
        patterns = [0] if isinstance(gaps_N, int) else np.unique(gaps_N).tolist()
        if len(patterns) == 1:
            return self._entries_alike()
        found: list[RunEntry | None] = [None] * len(self)
        for pattern in patterns:
            places = np.flatnonzero(gaps_N == pattern)
            for place, entry in zip(places.tolist(), self.taken(places)._entries_alike(), strict=True):
                found[place] = entry
        return [each for each in found if each is not None]

    def taken(self, places: Ints) -> "RecordRun":
        """The rows at these places."""
        return RecordRun(
            {name: each.taken(places) for name, each in self.columns.items()},
            self.last_rows.taken(places),
            self.bar_volatility.taken(places),
            self.reference_price.taken(places),
        )

    def with_correlation_ids(self, ids: Sequence[str]) -> "RecordRun":
        """The same, where each row was asked by a request of its own."""
        metadata = self.columns["metadata"]
        assert isinstance(metadata, Nested), "columns that were not made one by one"
        fields = {**metadata.fields, "correlation_id": Words(ids)}
        return replace(self, columns={**self.columns, "metadata": replace(metadata, fields=fields)})

    def column(self, path: str) -> Column:
        """The column of a field, its path with dots: of a nested field nothing where what it is in is not there."""
        name, _, rest = path.partition(".")
        found, is_there_N = self.columns[name], None
        while rest:
            if isinstance(found, Coded):
                return _attribute(found, rest)
            assert isinstance(found, Nested), "a path leads through contracts"
            is_there_N = found.is_there_N
            name, _, rest = (rest, "", "") if found.kind is None else rest.partition(".")
            found = found.fields[name]
        if is_there_N is None or is_there_N is True:
            return found
        return found.where(np.full(len(self), False) if is_there_N is False else is_there_N)

    def is_monitored(self, level: MonitoringLevel) -> Bools:
        """(N,) which rows the level's sample has; as `contracts.deployment.is_monitored` says of each."""
        found = self._monitored.get(level)
        if found is None:
            share = MONITORED_SHARE[level]
            if share >= 1.0:
                found = np.ones(len(self), dtype=np.bool_)
            else:
                hashes = [zlib.crc32(each.encode()) for each in self.prediction_ids]
                found = np.array(hashes, dtype=np.int64) < share * 2**32
            self._monitored[level] = found
        return found

    @cached_property
    def _monitored(self) -> dict[MonitoringLevel, Bools]:
        return {}

    def rows(self) -> "list[RunRow]":
        """One for each."""
        ids, symbols = self.prediction_ids, self.columns["symbol"].values()
        return [RunRow(self, *each) for each in zip(range(len(self)), ids, symbols, strict=True)]

    def _gaps(self) -> Ints | int:
        """Which fields have nothing, a bit for each, by row; one number where all rows are alike."""
        found: Ints | int = 0
        for place, each in enumerate(self.columns.values()):
            missing = each.missing()
            if isinstance(missing, np.ndarray):
                found = found + (missing.astype(np.int64) << place)
        return found

    def _entries_alike(self) -> list[RunEntry]:
        """Of rows that have the same fields."""
        pieces: list[Texts] = []
        names = [name for name, column in self.columns.items() if not np.all(column.missing())]
        for name in names:
            field = _field(name, self.columns[name])
            if field is None:
                return [((), None)] * len(self)
            pieces += [field, SEPARATOR]
        found, shape = joined(pieces), tuple(names)
        return list(zip(repeat(shape, len(self)), repeat(found) if isinstance(found, bytes) else found))  # noqa: B905


class RunRow:
    """A row of a run in a record's place, on its way out and into the queue."""

    __slots__ = ("number", "prediction_id", "run", "symbol")

    def __init__(self, run: RecordRun, number: int, prediction_id: str, symbol: str) -> None:
        self.run, self.number, self.prediction_id, self.symbol = run, number, prediction_id, symbol

    @property
    def body(self) -> bytes:
        """As JSON; those of the whole run are written with the first."""
        return self.run.bodies[self.number]

    @property
    def entry(self) -> RunEntry:
        """As an entry; those of the whole run are written with the first."""
        return self.run.entries[self.number]

    @property
    def record(self) -> PredictionRecord:
        """The record itself."""
        return self.run.record(self.number)


@dataclass(frozen=True)
class LastRows:
    """The newest rows of the windows that a network was asked, in groups of one length.

    Attributes:
        rows_MF: of those that were asked.
        places_N: each row's among them; `columns.ABSENT` where the symbol is unknown.
    """

    rows_MF: Floats32
    places_N: Ints

    def of(self, number: int) -> Floats32 | None:
        """One row's."""
        place = int(self.places_N[number])
        return None if place < 0 else self.rows_MF[place]

    def all(self) -> list[Floats32 | None]:
        """Each row's."""
        return [None if place < 0 else self.rows_MF[place] for place in self.places_N.tolist()]

    def taken(self, places: Ints) -> "LastRows":
        """The rows at these places."""
        return LastRows(self.rows_MF, self.places_N[places])


def _attribute(column: Coded, path: str) -> Coded:
    def read(value: Any) -> Any:
        for name in path.split("."):
            value = None if value is None else getattr(value, name)
        return value

    if column.choices and all(isinstance(each, dict) for each in column.choices):  # outputs, whose names may have dots
        return column.mapped(lambda value: value.get(path))

    return column.mapped(read)


def _field(name: str, column: Column) -> Texts | None:
    """A field's values as an entry has them: texts and moments as they are, everything else as JSON.

    None where a text holds the separator.
    """
    written = written_as(PredictionRecord)[name]
    if written == "json":
        return column.texts()
    if isinstance(column, Words):
        return [each.encode() for each in column.words]
    if isinstance(column, Coded) and written == "text":
        if any(each is not None and SEPARATOR.decode() in each for each in column.choices):
            return None
        return column.plain_texts()
    quoted = column.texts()
    return quoted[1:-1] if isinstance(quoted, bytes) else [each[1:-1] for each in quoted]


def same_everywhere(values: Mapping[str, Any], num: int) -> dict[str, Column]:
    """A column for each of values that all rows share."""
    return {name: Coded.same(value, num) for name, value in values.items()}


def in_order(kind: type[Contract], columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns in the order of the contract's fields; a field without one is a fault of ours."""
    return {name: columns[name] for name in kind.model_fields}
