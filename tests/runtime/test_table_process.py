"""The table process: rows in four formats, started when needed, ended when idle, replaced when lost."""

import asyncio
import csv
import io
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest

from common_lib.exceptions import SeriesNotFoundError, UnavailableError
from ml_workbench_service.contracts.series import columns_of
from ml_workbench_service.contracts.tables import NO_TIME, ROWS, StoredTable, TableFormat, Values, sent
from ml_workbench_service.runtime import table_process
from ml_workbench_service.runtime.table_process import TableProcess

NUM_ROWS = 30_000
FIRST_MS = 1_735_689_600_000
STREAMED = (TableFormat.CSV, TableFormat.ARROW, TableFormat.PARQUET)


def write_rows(file: Path, num_rows: int) -> pl.DataFrame:
    """A version's rows: a few of the validation part, then those of the test part."""
    chance = np.random.default_rng(3)
    moments = FIRST_MS + 3_600_000 * np.arange(num_rows)
    frame = pl.DataFrame(
        {
            "part": ["validation"] * 10 + ["test"] * (num_rows - 10),
            "as_of": pl.Series(moments).cast(pl.Datetime("ms", "UTC")),
            "symbol": ["EUR/USD"] * num_rows,
            "price": chance.normal(1.1, 0.1, num_rows),
            "realised": pl.Series([None, *chance.normal(0, 0.001, num_rows - 1).tolist()], dtype=pl.Float64),
            "position": pl.Series(chance.integers(-1, 2, num_rows)).cast(pl.Int8),
            "p_up": chance.uniform(size=num_rows),
            "status": ["ok"] * num_rows,
        }
    )
    frame.write_parquet(file, row_group_size=7_000)
    return frame


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredTable, pl.DataFrame]:
    """The test part of a file, and what is in it."""
    file = tmp_path_factory.mktemp("rows") / "evaluation.parquet"
    frame = write_rows(file, NUM_ROWS)
    return StoredTable(row="version", path=str(file), part="test"), frame.filter(pl.col("part") == "test")


def make(folder: Path, *, idle_s: float = 300.0) -> TableProcess:
    environment = {**os.environ, "STATE_DIR": str(folder), "LOG_DIR": str(folder / "logs")}
    return TableProcess(environment, folder / "table_process.log", idle_s=idle_s)


@pytest.fixture
async def tables(tmp_path: Path) -> AsyncIterator[TableProcess]:
    """One that stays."""
    process = make(tmp_path)
    yield process
    await process.close()


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def frame_of(plain: bytes, format: TableFormat) -> pl.DataFrame:
    if format is TableFormat.ARROW:
        return pl.read_ipc_stream(io.BytesIO(plain))
    if format is TableFormat.PARQUET:
        return pl.read_parquet(io.BytesIO(plain))
    found = pl.read_csv(plain, infer_schema_length=None)
    moments = found["as_of"].str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="ms", time_zone="UTC")
    return found.with_columns(moments, pl.col("position").cast(pl.Int64))


async def test_every_format_has_the_same_rows_to_the_bit(
    tables: TableProcess, stored: tuple[StoredTable, pl.DataFrame]
) -> None:
    table, frame = stored
    wanted = frame.drop("part").with_columns(pl.col("position").cast(pl.Int64))
    for format in STREAMED:
        found = frame_of(await whole(tables.stream(table, format)), format)
        order = [name for name in (each.name for each in columns_of(ROWS["version"])) if name in wanted.columns]
        assert found.columns == [*order, "p_up"], format
        assert found.select(sorted(found.columns)).equals(wanted.select(sorted(wanted.columns))), format
        stretch = frame_of(await whole(tables.stream(table, format, first=20_000, limit=7)), format)
        assert stretch.equals(found[20_000:20_007]), format
    head, page = await tables.page(table, first=29_988, limit=50)
    assert head.num_rows == NUM_ROWS - 10
    rows = json.loads(page)
    assert [row["as_of"] for row in rows] == frame["as_of"][29_988:].dt.strftime("%Y-%m-%dT%H:%M:%SZ").to_list()
    assert [row["p_up"] for row in rows] == frame["p_up"][29_988:].to_list()


async def test_a_part_that_was_not_kept_is_said(tables: TableProcess, stored: tuple[StoredTable, pl.DataFrame]) -> None:
    missing = stored[0].model_copy(update={"part": "calibration"})
    with pytest.raises(SeriesNotFoundError, match="calibration"):
        await tables.page(missing, first=0, limit=5)
    with pytest.raises(SeriesNotFoundError, match="train it again"):
        await whole(tables.stream(missing, TableFormat.CSV))


async def test_columns_that_come_along_keep_what_is_missing_and_what_needs_quotes(tables: TableProcess) -> None:
    columns = [
        Values("number", "integer", np.array([0.0, 1.0])),
        Values("state", "text", ["complete", None]),
        Values("value", "number", np.array([np.nan, -0.0])),
        Values("started_at", "time", np.array([FIRST_MS + 1, NO_TIME])),
        Values("message", "text", 'a "quoted", text'),
        Values("params.rate", "number", np.array([1e-300, np.inf])),
    ]
    table = sent("trial", columns, num_rows=2)
    plain = (await whole(tables.stream(table, TableFormat.CSV))).decode()
    rows = list(csv.DictReader(io.StringIO(plain)))
    assert rows[0]["started_at"] == "2025-01-01T00:00:00.001Z"
    assert (rows[0]["value"], rows[1]["started_at"], rows[1]["state"], rows[1]["params.rate"]) == ("", "", "", "")
    assert (rows[0]["message"], float(rows[0]["params.rate"])) == ('a "quoted", text', 1e-300)
    frame = frame_of(await whole(tables.stream(table, TableFormat.ARROW)), TableFormat.ARROW)
    assert frame["value"].to_list() == [None, 0.0]
    assert frame["number"].to_list() == [0, 1]


async def test_it_ends_when_idle_and_is_started_again(tmp_path: Path, stored: tuple[StoredTable, pl.DataFrame]) -> None:
    tables = make(tmp_path, idle_s=0.05)
    assert tables.pid is None
    first, _ = await tables.page(stored[0], first=0, limit=1)
    while tables.pid is not None:
        await asyncio.sleep(0.01)
    again, _ = await tables.page(stored[0], first=0, limit=1)
    assert again == first
    await tables.close()
    assert tables.pid is None
    with pytest.raises(UnavailableError, match="stopping"):
        await tables.page(stored[0], first=0, limit=1)


async def test_one_that_is_lost_is_followed_by_another_for_the_same_table(
    tables: TableProcess, stored: tuple[StoredTable, pl.DataFrame]
) -> None:
    await tables.page(stored[0], first=0, limit=1)
    lost = tables.pid
    assert lost is not None
    os.kill(lost, signal.SIGSTOP)  # so that it cannot begin to answer
    asking = asyncio.create_task(tables.page(stored[0], first=0, limit=3))
    await asyncio.sleep(0)
    os.kill(lost, signal.SIGKILL)
    _, page = await asking
    assert len(json.loads(page)) == 3
    assert tables.pid not in (None, lost)


async def test_one_that_dies_in_the_middle_breaks_the_table_off_with_when_to_ask_again(
    tables: TableProcess, stored: tuple[StoredTable, pl.DataFrame]
) -> None:
    pieces = tables.stream(stored[0], TableFormat.CSV)
    assert len(await anext(pieces)) >= table_process.HELD_BACK_BYTES
    assert tables.pid is not None
    os.kill(tables.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="in the middle") as caught:
        await whole(pieces)
    assert caught.value.retry_after_s
    assert (await tables.page(stored[0], first=0, limit=1))[0].num_rows == NUM_ROWS - 10


async def test_more_than_wait_for_a_place_are_turned_away(
    tables: TableProcess, stored: tuple[StoredTable, pl.DataFrame]
) -> None:
    await tables.page(stored[0], first=0, limit=1)
    assert tables.pid is not None
    os.kill(tables.pid, signal.SIGSTOP)
    most = table_process.MOST_AT_ONCE + table_process.MOST_WAITING
    asking = [asyncio.create_task(tables.page(stored[0], first=0, limit=1)) for _ in range(most)]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match="too many tables") as caught:
        await tables.page(stored[0], first=0, limit=1)
    assert caught.value.retry_after_s
    os.kill(tables.pid, signal.SIGCONT)
    assert {head.num_rows for head, _ in await asyncio.gather(*asking)} == {NUM_ROWS - 10}


async def test_a_client_that_takes_nothing_loses_its_place(
    tables: TableProcess, stored: tuple[StoredTable, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_process, "STALLED_S", 0.05)
    held = [tables.stream(stored[0], TableFormat.CSV) for _ in range(table_process.MOST_AT_ONCE)]
    for pieces in held:
        await anext(pieces)
    assert (await tables.page(stored[0], first=0, limit=1))[0].num_rows == NUM_ROWS - 10
    with pytest.raises(UnavailableError):  # whose place it was: that of who took nothing for the longest
        await whole(held[0])
    for pieces in held[1:]:
        await pieces.aclose()


@pytest.mark.more
async def test_a_million_rows_stream_with_bounded_memory(tables: TableProcess, tmp_path: Path) -> None:
    """Memory while the last of a million rows is written is that of the first ones, not that of a million."""
    file = tmp_path / "evaluation.parquet"
    write_rows(file, 1_000_000).clear()
    table = StoredTable(row="version", path=str(file), part="test")
    await tables.page(table, first=0, limit=1)
    assert tables.pid is not None
    child, own = psutil.Process(tables.pid), psutil.Process()
    before, own_before, most, num_bytes = child.memory_info().rss, own.memory_info().rss, 0, 0
    for format in STREAMED:
        async for piece in tables.stream(table, format):
            num_bytes += len(piece)
            most = max(most, child.memory_info().rss)
    assert num_bytes > 100_000_000
    assert most - before < 120_000_000
    assert own.memory_info().rss - own_before < 60_000_000
