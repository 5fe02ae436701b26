"""Tables in Arrow: reads them a stretch at a time, writes them as JSON, CSV, Arrow or Parquet, with bounded memory.

Only the table process loads this. A table is a schema and a function that gives its rows from any place on, in batches
of at most `ROWS_AT_ONCE`; nothing holds more than a batch, and a Parquet file one group of rows, at a time.

Times are in UTC, to the millisecond; in JSON and CSV as ISO 8601 with `Z`. Numbers that are not finite are missing.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from common_lib.exceptions import SeriesNotFoundError, StateDamagedError
from ml_workbench_service.contracts.series import Column, ColumnKind, EvaluatedPart, columns_of
from ml_workbench_service.contracts.tables import NO_TIME, ROWS, RowName, SentTable, TableFormat, TableHead, described
from ml_workbench_service.jobs.guarded_reading import NONSENSE, SET_ASIDE, name_of

ROWS_AT_ONCE = 16_384
ROWS_OF_A_GROUP = 65_536
"""Of a Parquet file that is written: what its reader must hold at once."""
TIME = pa.timestamp("ms", tz="UTC")
TYPES: Mapping[ColumnKind, pa.DataType] = {
    "time": TIME, "text": pa.string(), "number": pa.float64(), "integer": pa.int64(),
    "boolean": pa.bool_(),
}  # fmt: skip


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> object:
        """Takes some; waits while nobody takes them away."""
        ...


@dataclass(frozen=True)
class Table:
    """Rows to come.

    Attributes:
        schema: of every batch.
        batches: rows from a place on, at most so many (None: all that are left).
        num_rows: None where only reading tells.
    """

    schema: pa.Schema
    batches: Callable[[int, int | None], Iterator[pa.RecordBatch]]
    num_rows: int | None

    @property
    def head(self) -> TableHead:
        """What is known before the rows."""
        columns = tuple((field.name, _kind_of(field.type)) for field in self.schema)
        return TableHead(columns=columns, num_rows=self.num_rows)


def schema_of(row: RowName, columns: Sequence[tuple[str, ColumnKind]]) -> pa.Schema:
    """Columns with their unit and meaning, which Arrow and Parquet carry along."""
    return pa.schema([_field(each) for each in described(row, columns)])


def _field(column: Column) -> pa.Field:
    about = {"unit": column.unit, "meaning": column.meaning}
    return pa.field(column.name, TYPES[column.kind], metadata=about)


def _kind_of(kind: pa.DataType) -> ColumnKind:
    if pa.types.is_timestamp(kind):
        return "time"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_boolean(kind):
        return "boolean"
    return "number" if pa.types.is_floating(kind) else "text"


@contextmanager
def sound_rows(path: Path) -> Iterator[None]:
    """Says of a file whose rows are read within that it is damaged, whatever the reader of Parquet says.

    Raises:
        StateDamagedError: it is.
    """
    try:
        yield
    except ConnectionError:  # who asked has gone away
        raise
    except (pa.ArrowException, OSError, MemoryError, *NONSENSE) as error:
        SET_ASIDE.note(path, f"its rows cannot be read ({type(error).__name__})")
        raise StateDamagedError(
            f"the rows of {name_of(path)} cannot be read; restore the file from a backup, or make it again"
        ) from error


def open_stored(path: Path, row: RowName, part: EvaluatedPart | None) -> Table:
    """Rows of a Parquet file: those of one part, in the order of the row's columns, further ones behind them.

    Raises:
        SeriesNotFoundError: the file has no rows of that part.
    """
    file = pa.parquet.ParquetFile(path)
    names = [name for name in file.schema_arrow.names if name != "part"]
    first, num_rows = (0, file.metadata.num_rows) if part is None else _span_of(file, part)
    kinds: dict[str, ColumnKind] = {each.name: each.kind for each in columns_of(ROWS[row])}
    ordered = [name for name in kinds if name in names] + [name for name in names if name not in kinds]
    columns = [(name, kinds.get(name, "number")) for name in ordered]
    schema = schema_of(row, columns)

    def batches(begin: int, limit: int | None) -> Iterator[pa.RecordBatch]:
        end = num_rows if limit is None else min(num_rows, begin + limit)
        for batch in _rows(file, ordered, first + begin, first + end):
            yield pa.RecordBatch.from_arrays([batch[each.name].cast(each.type) for each in schema], schema=schema)

    return Table(schema, batches, num_rows)


def _span_of(file: pa.parquet.ParquetFile, part: EvaluatedPart) -> tuple[int, int]:
    """Where a part's rows begin, and how many there are: they lie together."""
    place, first, found = 0, 0, 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=["part"]):
        here = np.asarray(pc.equal(batch["part"].cast(pa.string()), part).to_numpy(zero_copy_only=False))
        if here.any():
            first = first if found else place + int(here.argmax())
            found += int(here.sum())
        place += len(here)
    if not found:
        raise SeriesNotFoundError(
            f"this version kept no rows of its {part} part; train it again to have them, or ask for `part=test`"
        )
    return first, found


def _rows(file: pa.parquet.ParquetFile, names: list[str], begin: int, end: int) -> Iterator[pa.RecordBatch]:
    """The rows from `begin` up to `end`; groups of rows that lie outside are not read."""
    place = 0
    for group in range(file.num_row_groups):
        num = file.metadata.row_group(group).num_rows
        if place < end and place + num > begin:
            at = place
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=names):
                low, high = max(begin - at, 0), min(end - at, len(batch))
                if low < high:
                    yield batch.slice(low, high - low)
                at += len(batch)
        place += num


def open_sent(table: SentTable, buffers: Sequence[bytes]) -> Table:
    """A table that came along with the order."""
    schema = schema_of(table.row, [(each.name, each.kind) for each in table.columns])
    waiting, arrays = iter(buffers), []
    for column, field in zip(table.columns, schema, strict=True):
        if column.same is not None:
            arrays.append(pa.repeat(pa.scalar(column.same, pa.string()), table.num_rows))
        elif column.texts is not None:
            arrays.append(pa.array(column.texts, pa.string()))
        else:
            arrays.append(_numbers(next(waiting), field.type))
    whole = pa.RecordBatch.from_arrays(arrays, schema=schema)

    def batches(begin: int, limit: int | None) -> Iterator[pa.RecordBatch]:
        end = table.num_rows if limit is None else min(table.num_rows, begin + limit)
        for place in range(begin, end, ROWS_AT_ONCE):
            yield whole.slice(place, min(ROWS_AT_ONCE, end - place))

    return Table(schema, batches, table.num_rows)


def _numbers(plain: bytes, kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        moments = np.frombuffer(plain, "<i8")
        return pa.array(moments, pa.int64(), mask=moments == NO_TIME).cast(kind)
    values = np.frombuffer(plain, "<f8")
    return pa.array(values, pa.float64(), mask=~np.isfinite(values)).cast(kind)


def page_of(table: Table, first: int, limit: int) -> bytes:
    """Some rows as a JSON array of objects."""
    rows: list[dict[str, Any]] = []
    for batch in table.batches(first, limit):
        texts = [_as_texts(column) if pa.types.is_timestamp(column.type) else column for column in batch.columns]
        values = [column.to_pylist() for column in texts]
        rows += [dict(zip(batch.schema.names, each, strict=True)) for each in zip(*values, strict=True)]
    return orjson.dumps(rows)  # which writes what is not finite as null


def _as_texts(moments: pa.Array) -> pa.Array:
    """ISO 8601 in UTC with `Z`; fractions only where a moment has some."""
    plain = pc.fill_null(moments.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    whole = np.datetime_as_string(plain.astype("datetime64[ms]").astype("datetime64[s]"))
    texts = np.char.add(whole, "Z").astype(object)
    fine = plain % 1000 != 0
    if fine.any():
        texts[fine] = np.char.add(np.datetime_as_string(plain[fine].astype("datetime64[ms]")), "Z")
    return pa.array(texts, pa.string(), mask=moments.is_null().to_numpy(zero_copy_only=False))


class TableEncoding:
    """One format to stream in; registers by being defined."""

    format: ClassVar[TableFormat]
    kinds: ClassVar[dict[TableFormat, type["TableEncoding"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.kinds[cls.format] = cls

    def __init__(self, schema: pa.Schema, sink: Sink) -> None:
        self._schema, self._sink = schema, sink

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Some rows more."""

    @abstractmethod
    def close(self) -> None:
        """What stands behind the last row."""


class CsvEncoding(TableEncoding):
    """RFC 4180 with a header line; text is quoted where it must be, missing cells are empty."""

    format = TableFormat.CSV

    def __init__(self, schema: pa.Schema, sink: Sink) -> None:
        super().__init__(schema, sink)
        sink.write((",".join(map(_quoted, schema.names)) + "\n").encode())

    def write(self, batch: pa.RecordBatch) -> None:
        """Times as text, everything else as pyarrow writes it: numbers in as many digits as they need."""
        plain = [_as_texts(each) if pa.types.is_timestamp(each.type) else _finite(each) for each in batch.columns]
        options = pa.csv.WriteOptions(include_header=False, quoting_style="needed")
        out = pa.BufferOutputStream()
        pa.csv.write_csv(pa.RecordBatch.from_arrays(plain, names=batch.schema.names), out, options)
        self._sink.write(out.getvalue().to_pybytes())

    def close(self) -> None:
        """Nothing."""


class _Sunk:
    """A file of which only writing is known, as pyarrow asks for one."""

    closed = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._place = 0

    def write(self, data: bytes) -> int:
        self._sink.write(bytes(data))
        self._place += len(data)
        return len(data)

    def tell(self) -> int:
        return self._place

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class ArrowEncoding(TableEncoding):
    """An Arrow IPC stream."""

    format = TableFormat.ARROW

    def __init__(self, schema: pa.Schema, sink: Sink) -> None:
        super().__init__(schema, sink)
        self._writer = pa.ipc.new_stream(pa.PythonFile(_Sunk(sink), mode="w"), schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """A record batch."""
        self._writer.write_batch(batch)

    def close(self) -> None:
        """The end of the stream."""
        self._writer.close()


class ParquetEncoding(TableEncoding):
    """A Parquet file, zstd; a group of rows at a time is held until it is full."""

    format = TableFormat.PARQUET

    def __init__(self, schema: pa.Schema, sink: Sink) -> None:
        super().__init__(schema, sink)
        self._writer = pa.parquet.ParquetWriter(pa.PythonFile(_Sunk(sink), mode="w"), schema, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Rows of the group at hand."""
        self._waiting.append(batch)
        self._num_waiting += len(batch)
        if self._num_waiting >= ROWS_OF_A_GROUP:
            self._write_group()

    def close(self) -> None:
        """The last group, and the footer."""
        if self._waiting:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting, self._num_waiting = [], 0


def _finite(values: pa.Array) -> pa.Array:
    """Numbers that are none are missing."""
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(each in name for each in ',"\n\r') else name


def write_table(table: Table, format: TableFormat, sink: Sink, *, first: int = 0, limit: int | None = None) -> None:
    """The rows in that format, one batch after the other."""
    encoding = TableEncoding.kinds[format](table.schema, sink)
    for batch in table.batches(first, limit):
        encoding.write(batch)
    encoding.close()


def read_columns(table: Table, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of these columns that the table has, whole: numbers with NaN, milliseconds, texts as objects."""
    wanted = [name for name in names if name in table.schema.names]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    for batch in table.batches(0, None):
        for name in wanted:
            parts[name].append(_plain(batch[name]))
    return {name: np.concatenate(each) if each else np.empty(0) for name, each in parts.items()}


def _plain(column: pa.Array) -> np.ndarray:
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))
    if pa.types.is_string(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
