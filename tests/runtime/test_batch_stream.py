"""Arrow streams as they come: cut anywhere, damaged anywhere, a client that leaves."""

import io
import random
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.batches import BatchTask
from ml_workbench_service.runtime.batch_stream import answer_batch

TASK = BatchTask(features=("macd", "rsi_14"), columns=(("prediction", "number"),))
TABLE = pa.table(
    {
        "symbol": ["EUR/USD"] * 5, "macd": [[1.0, 2.0]] * 5, "rsi_14": [[3.0, 4.0]] * 5, "price": [1.1] * 5,
        "as_of": pa.array([datetime(2030, 3, 6, tzinfo=UTC)] * 5, pa.timestamp("ms", tz="UTC")),
    }
)  # fmt: skip


class Leaves:
    """A service whose body ends after these bytes, and that is gone once rows were asked of it."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def more(self) -> bytes:
        piece, self._content = self._content[:100], self._content[100:]
        return piece

    def answered(self, chunk: bytes) -> bytes:
        raise ConnectionResetError(f"after {len(chunk)} bytes")


def stream(compression: str | None) -> bytes:
    whole = io.BytesIO()
    with pa.ipc.new_stream(whole, TABLE.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(TABLE)
    return whole.getvalue()


def outcome(content: bytes) -> str:
    """`read` where rows came through; anything but that and a refusal of the body is raised."""
    try:
        return f"answered {len(list(answer_batch(TASK, Leaves(content))))}"
    except ConnectionResetError:
        return "read"
    except DataValidationError:
        return "refused"


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_stream_that_is_cut_or_damaged_is_refused_and_no_disk_is_blamed(compression: str | None) -> None:
    whole, chance = stream(compression), random.Random(3)
    assert outcome(whole) == "read"
    found = {outcome(whole[:length]) for length in range(0, len(whole), 3)}
    for _ in range(1_500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        found.add(outcome(bytes(damaged)))
    assert {"read", "refused"} <= found


def test_a_client_that_leaves_is_no_damaged_stream() -> None:
    class Gone(Leaves):
        def more(self) -> bytes:
            raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        list(answer_batch(TASK, Gone(b"")))


def written(table: pa.Table, compression: str | None = "zstd") -> bytes:
    whole = io.BytesIO()
    with pa.ipc.new_stream(whole, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return whole.getvalue()


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_batch_that_unfolds_to_more_than_it_may_is_refused_before_it_does(compression: str) -> None:
    allowed = pa.table({"macd": pa.array(np.zeros(8_000_000))})
    content = written(allowed, compression)
    assert len(content) < 1_000_000
    assert outcome(content) == "read"
    too_much = written(pa.table({"macd": pa.array(np.zeros(9_000_000))}), compression)
    del allowed
    before = pa.total_allocated_bytes()
    assert outcome(too_much) == "refused"
    assert pa.total_allocated_bytes() - before < 10_000_000


def test_rows_without_bytes_are_not_answered_for_ever() -> None:
    nothing = pa.record_batch([pa.nulls(50_000_000)], names=["macd"])
    assert outcome(written(pa.Table.from_batches([nothing]))) == "refused"


def test_one_long_text_does_not_stand_in_every_row() -> None:
    symbols = pa.DictionaryArray.from_arrays(pa.array([0] * 5, pa.int32()), pa.array(["x" * 1_000_000]))
    assert outcome(written(TABLE.set_column(0, "symbol", symbols))) == "refused"
    short = pa.DictionaryArray.from_arrays(pa.array([0] * 5, pa.int32()), pa.array(["EUR/USD"]))
    assert outcome(written(TABLE.set_column(0, "symbol", short))) == "read"
