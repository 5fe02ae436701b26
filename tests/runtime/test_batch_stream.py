"""Arrow streams as they come: cut anywhere, damaged anywhere, a client that leaves."""

import io
import random
from datetime import UTC, datetime

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
