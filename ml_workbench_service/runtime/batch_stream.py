"""Arrow streams of windows, in the table process: decoded a chunk at a time, and their answers encoded.

    helper → service    N more of the body, please · W a chunk of windows · then the answer's bytes
    service → helper    B bytes of the body (none: it has ended) · A the chunk's answers

One side speaks at a time, so neither holds more than a chunk. The encoded answers lie in a file without a name until
the last of the body was read: most clients read nothing while they send, and would wait for us as we for them.
"""

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError, UnavailableError
from ml_workbench_service.contracts.batches import (
    ABOUT_ROWS,
    NO_TIME,
    NUMBER_COLUMNS,
    ROWS_OF_A_CHUNK,
    TEXT_COLUMNS,
    TIME_COLUMN,
    BatchTask,
    packed,
    unpacked,
)
from ml_workbench_service.runtime.unfolding import unfolded_size

MOST_MESSAGE_BYTES = 64 * 1024 * 1024
MOST_ROWS_A_BYTE, FEW_ROWS = 8, 1_000
"""A row has at least a bit: what says more of them, in columns without any bytes, would be answered for ever."""
LONGEST_TEXT = 64
IN_MEMORY_BYTES = 4 * 1024 * 1024
PIECE_BYTES = 256 * 1024
TIME = pa.timestamp("ms", tz="UTC")
TYPES = {"time": TIME, "text": pa.string(), "number": pa.float64(), "positions": pa.list_(pa.float64(), 3)}
Chunk = tuple[dict[str, Any], list[bytes]]


class Service(Protocol):
    """The other end."""

    def more(self) -> bytes:
        """Some of the body; nothing at its end."""
        ...

    def answered(self, chunk: bytes) -> bytes:
        """The answers to a chunk."""
        ...


class _Body(io.RawIOBase):
    """The body as a file that is read once; holds what one read was too short for."""

    def __init__(self, more: Callable[[], bytes]) -> None:
        self._more = more
        self._left = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size > MOST_MESSAGE_BYTES:
            raise DataValidationError.at("body", "a record batch has at most 64 MiB; send the rows in more of them")
        parts, num = [self._left], len(self._left)
        while num < size and (piece := self._more()):
            parts.append(piece)
            num += len(piece)
        whole = b"".join(parts)
        self._left = whole[size:]
        return whole[:size]


class _Checked(io.RawIOBase):
    """The messages of a body, each passed on once it is known to unfold to no more than it may."""

    def __init__(self, body: _Body) -> None:
        self._messages = pa.ipc.MessageReader.open_stream(pa.PythonFile(body, mode="r"))
        self._left = memoryview(b"")
        self._num_kept = 0  # bytes of dictionaries, which stay for all batches

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts: list[bytes | memoryview] = []
        wanted = size
        while wanted > 0:
            if not self._left and not self._next():
                break
            parts.append(self._left[:wanted])
            self._left = self._left[wanted:]
            wanted -= len(parts[-1])
        return b"".join(parts)

    def _next(self) -> bool:
        try:
            message = self._messages.read_next_message()
        except StopIteration:
            return False
        body = memoryview(message.body) if message.body is not None else memoryview(b"")
        num_bytes, num_rows = unfolded_size(message.metadata.to_pybytes(), body)
        self._num_kept += num_bytes if message.type == "dictionary" else 0
        if max(num_bytes, self._num_kept) > MOST_MESSAGE_BYTES or num_rows > MOST_ROWS_A_BYTE * num_bytes + FEW_ROWS:
            raise DataValidationError.at(
                "body", "a record batch has at most 64 MiB once it is decompressed; send the rows in more of them"
            )
        self._left = memoryview(message.serialize())
        return True


def answer_batch(task: BatchTask, service: Service) -> Iterator[bytes]:
    """The answers as an Arrow stream, once all of the body has been answered.

    Raises:
        DataValidationError: no Arrow stream, or columns that nobody knows.
        UnavailableError: the disk has no room for the answers.
    """
    schema = pa.schema([pa.field(name, TYPES[kind]) for name, kind in task.columns])
    with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as spool:
        try:
            with pa.ipc.new_stream(pa.PythonFile(spool, mode="w"), schema) as writer:
                for chunk in _chunks(task, service):
                    writer.write_batch(_encoded(task, schema, *unpacked(service.answered(packed(*chunk)))))
            spool.seek(0)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise UnavailableError(
                "the answers found no room on the disk for temporary files; make room, or send fewer rows at a time"
            ) from error
        while piece := spool.read(PIECE_BYTES):
            yield piece


def _chunks(task: BatchTask, service: Service) -> Iterator[Chunk]:
    try:
        with pa.ipc.open_stream(pa.PythonFile(_Checked(_Body(service.more)), mode="r")) as reader:
            names = _checked(task, reader.schema.names)
            for batch in reader:
                batch.validate(full=True)
                for place in range(0, len(batch), ROWS_OF_A_CHUNK):
                    yield _decoded(batch.slice(place, ROWS_OF_A_CHUNK), names)
    except ConnectionError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # OSError: pyarrow's word for a stream cut short
        raise DataValidationError.at(
            "body", f"the body is no Arrow IPC stream that can be read: {_short(error)}"
        ) from error


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else "it broke off"


def _checked(task: BatchTask, names: Sequence[str]) -> list[str]:
    """The features among the columns; raises DataValidationError for a column that nobody knows, or that is twice."""
    known = {*task.features, *ABOUT_ROWS}
    for name in names:
        if name not in known:
            near = close_names(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join([*ABOUT_ROWS, *task.features])}"
            raise DataValidationError.at(f"body.{name[:64]}", f"this column is not known; {advice}")
        if names.count(name) > 1:
            raise DataValidationError.at(f"body.{name}", f"{name} is there twice; send it once")
    return [name for name in names if name in task.features]


def _decoded(batch: pa.RecordBatch, features: Sequence[str]) -> Chunk:
    said = [name for name in batch.schema.names if name not in features]
    head: dict[str, Any] = {"num": len(batch), "texts": {}, "numbers": [], "has_as_of": False, "features": []}
    buffers: list[bytes] = []
    for name in (each for each in TEXT_COLUMNS if each in said):
        head["texts"][name] = _texts(name, batch[name])
    for name in (each for each in NUMBER_COLUMNS if each in said):
        head["numbers"].append(name)
        buffers.append(_numbers(batch[name]))
    if TIME_COLUMN in said:
        head["has_as_of"] = True
        buffers.append(_moments(batch[TIME_COLUMN]))
    for name in features:
        column = batch[name]
        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if is_list or pa.types.is_fixed_size_list(column.type):
            head["features"].append([name, "lists"])
            buffers += _lists(name, column)
        else:
            head["features"].append([name, "values"])
            buffers.append(_numbers(column))
    return head, buffers


def _texts(name: str, column: pa.Array) -> list[str | None]:
    if pa.types.is_dictionary(column.type):  # one long text could stand in every row
        longest = pc.max(pc.binary_length(column.dictionary.cast(pa.string()))).as_py() or 0
        if longest > LONGEST_TEXT:
            raise DataValidationError.at(f"body.{name}", f"{name} has texts of over {LONGEST_TEXT} bytes")
    return list(column.cast(pa.string()).to_pylist())


def _lists(name: str, column: pa.Array) -> list[bytes]:
    """How long each row's list is, and all values."""
    if column.null_count and pa.types.is_fixed_size_list(column.type):
        raise DataValidationError.at(f"body.{name}", f"{name} has rows without a list; leave those rows out")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return [np.ascontiguousarray(lengths, dtype="<i4").tobytes(), _numbers(column.flatten())]


def _numbers(column: pa.Array) -> bytes:
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def _moments(column: pa.Array) -> bytes:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.timestamp("us", tz="UTC"))
    if not pa.types.is_timestamp(column.type) or column.type.tz is None:
        raise DataValidationError.at("body.as_of", "as_of is a timestamp with a time zone; write it in UTC")
    plain = column.cast(pa.timestamp("ms", tz="UTC"), safe=False).cast(pa.int64())
    return np.ascontiguousarray(pc.fill_null(plain, NO_TIME).to_numpy(zero_copy_only=False), dtype="<i8").tobytes()


def _threes(plain: pa.Array) -> pa.Array:
    """Three numbers a row, or none."""
    is_null = plain.is_null().to_numpy(zero_copy_only=False).reshape(-1, 3).all(axis=1)
    return pa.FixedSizeListArray.from_arrays(plain, 3, mask=pa.array(is_null))


def _encoded(task: BatchTask, schema: pa.Schema, head: dict[str, Any], buffers: Sequence[memoryview]) -> pa.RecordBatch:
    waiting = iter(buffers)
    arrays = []
    for name, kind in task.columns:
        if name in head["coded"]:
            choices = pa.array(head["coded"][name], pa.string())
            arrays.append(choices.take(pa.array(np.frombuffer(next(waiting), "<i4"))))
        elif kind == "text":
            arrays.append(pa.array(head["texts"][name], pa.string()))
        elif kind == "time":
            moments = np.frombuffer(next(waiting), "<i8")
            arrays.append(pa.array(moments, pa.int64(), mask=moments == NO_TIME).cast(TIME))
        else:
            values = np.frombuffer(next(waiting), "<f8")
            plain = pa.array(values, pa.float64(), mask=~np.isfinite(values))
            arrays.append(plain if kind == "number" else _threes(plain))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
