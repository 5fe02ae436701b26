"""Arrow: batches of windows for `/predict/batch`, and tables of features that another service answers with.

What is received is what was sent, row by row; what is no Arrow stream, or one that says it has more than it holds, is
refused.
"""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from chaos.parsers.promise import mutations, promise
from common_lib.exceptions import DataValidationError, UpstreamError
from ml_workbench_service.contracts.batches import BatchTask, packed, unpacked
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.tables import TableFormat, sent
from ml_workbench_service.integrations.feature_store.remote_format import Asked, tables_of_arrow, tables_of_json
from ml_workbench_service.integrations.feature_store.table_format import columns_of_tables, json_of
from ml_workbench_service.integrations.table_files import open_sent, write_table
from ml_workbench_service.runtime.batch_stream import answer_batch

FEATURES = ("return_1", "rsi_14")
TASK = BatchTask(features=FEATURES, columns=(("row", "number"),))
KINDS = ("values", "list", "large_list", "fixed")
PIECES = st.integers(1, 400)


@dataclass
class _OtherEnd:
    """The service's side of the exchange: gives the body in pieces, and answers each row with its place."""

    body: bytes
    piece: int
    chunks: list[tuple[dict[str, Any], list[bytes]]] = field(default_factory=list)
    num_rows: int = 0

    def more(self) -> bytes:
        """The next piece."""
        piece, self.body = self.body[: self.piece], self.body[self.piece :]
        return piece

    def answered(self, chunk: bytes) -> bytes:
        """A number a row, in order."""
        head, buffers = unpacked(chunk)
        self.chunks.append((head, [bytes(each) for each in buffers]))
        places = np.arange(self.num_rows, self.num_rows + head["num"], dtype="<f8")
        self.num_rows += head["num"]
        return packed({"texts": {}, "coded": {}}, [places.tobytes()])


@dataclass(frozen=True)
class _Sent:
    """Rows of windows, or of bars, and how they are written."""

    kind: str
    windows: list[list[float]]  # of each row; with one value each where rows are bars
    symbols: list[str | None]
    prices: list[float | None]
    rows_of_a_batch: int
    compression: str | None
    is_coded: bool

    def stream(self) -> bytes:
        """An Arrow IPC stream."""
        types = {"values": pa.float64(), "list": pa.list_(pa.float64()), "large_list": pa.large_list(pa.float64())}
        columns: dict[str, Any] = {}
        for name in FEATURES:
            if self.kind == "values":
                columns[name] = pa.array([each[0] for each in self.windows], types["values"])
            else:
                fixed = pa.list_(pa.float64(), len(self.windows[0]) if self.windows else 1)
                columns[name] = pa.array(self.windows, types.get(self.kind, fixed))
        symbols = pa.array(self.symbols, pa.string())
        columns["symbol"] = symbols.dictionary_encode() if self.is_coded else symbols
        columns["price"] = pa.array(self.prices, pa.float64())
        table, out = pa.table(columns), io.BytesIO()
        options = pa.ipc.IpcWriteOptions(compression=self.compression)
        with pa.ipc.new_stream(out, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=self.rows_of_a_batch)
        return out.getvalue()


FLOATS = st.floats(-1e15, 1e15, allow_subnormal=True)


@st.composite
def _sent(draw: st.DrawFn) -> _Sent:
    kind, num = draw(st.sampled_from(KINDS)), draw(st.integers(0, 12))
    lengths = (
        st.just(1) if kind == "values" else st.just(draw(st.integers(1, 5))) if kind == "fixed" else st.integers(0, 5)
    )
    windows = [
        draw(st.lists(FLOATS, min_size=length, max_size=length)) for length in (draw(lengths) for _ in range(num))
    ]
    symbols = draw(st.lists(st.sampled_from(["EUR/USD", "gbpusd", "", None, "é" * 40]), min_size=num, max_size=num))
    prices = draw(st.lists(st.none() | FLOATS, min_size=num, max_size=num))
    compression = draw(st.sampled_from([None, "zstd", "lz4"]))
    return _Sent(kind, windows, symbols, prices, draw(st.integers(1, 5)), compression, draw(st.booleans()))


def _rows_answered(answer: bytes) -> list[float]:
    found: list[float] = pa.ipc.open_stream(answer).read_all()["row"].to_pylist()
    return found


@promise("batches in Arrow: a round trip", st.tuples(_sent(), PIECES))
def batch_round_trip(case: tuple[_Sent, int]) -> None:
    """Every value of every row arrives to the bit, in its order, and each row has its answer."""
    rows, piece = case
    other = _OtherEnd(rows.stream(), piece)
    try:
        answer = b"".join(answer_batch(TASK, other))
    except DataValidationError as error:
        assert rows.is_coded, error
        assert any(each is not None and len(each.encode()) > 64 for each in rows.symbols), error
        return
    assert _rows_answered(answer) == [*range(len(rows.windows))]
    symbols = [each for head, _ in other.chunks for each in head["texts"]["symbol"]]
    assert symbols == rows.symbols
    prices, windows = [], {name: [] for name in FEATURES}
    for head, buffers in other.chunks:
        waiting = iter(buffers)
        prices += np.frombuffer(next(waiting), "<f8").tolist()
        for name, kind in head["features"]:
            lengths = np.frombuffer(next(waiting), "<i4") if kind == "lists" else np.ones(head["num"], "<i4")
            values = np.frombuffer(next(waiting), "<f8")
            windows[name] += (
                [each.tolist() for each in np.split(values, np.cumsum(lengths)[:-1])] if len(lengths) else []
            )
    assert [None if np.isnan(each) else each for each in prices] == rows.prices
    assert all(found == rows.windows for found in windows.values())


_VALID = [
    _Sent(kind, [[0.5, 1.5], [2.5, -1.0]], ["EUR/USD", None], [1.1, None], 1, compression, is_coded).stream()
    for kind in KINDS
    for compression, is_coded in ((None, True), ("zstd", False))
]


@promise("batches in Arrow: any bytes", st.tuples(st.binary(max_size=200) | mutations(_VALID), PIECES))
def batch_of_any_bytes(case: tuple[bytes, int]) -> None:
    """Answers to the rows that there are, or a sentence; never more rows than bytes could hold."""
    body, piece = case
    other = _OtherEnd(body, piece)
    try:
        answer = b"".join(answer_batch(TASK, other))
    except DataValidationError as error:
        assert error.message
        return
    assert len(_rows_answered(answer)) == other.num_rows <= 1_000 + 8 * len(body) * 100


ASKED = Asked(("EUR/USD", "GBP/USD"), "1h", FEATURES)
_FIRST_MS = 1_700_000_000_000 // 3_600_000 * 3_600_000


@st.composite
def _tables(draw: st.DrawFn) -> list[FeatureTable]:
    made = []
    for symbol in ASKED.symbols:
        num = draw(st.integers(1, 8))
        opened = _FIRST_MS + 3_600_000 * np.cumsum(draw(st.lists(st.integers(1, 5), min_size=num, max_size=num)))
        values = st.lists(FLOATS | st.just(float("nan")), min_size=num, max_size=num).map(np.array)
        columns = {name: draw(values) for name in FEATURES}
        late = 3_600_000 + np.array(draw(st.lists(st.integers(0, 10**6), min_size=num, max_size=num)))
        made.append(
            FeatureTable(symbol, "1h", opened, opened + late, columns, data_source="ecb_daily", calendar="fixings")
        )
    return made


def _arrow_of(tables: list[FeatureTable]) -> bytes:
    columns = sent("feature", columns_of_tables(tables), num_rows=sum(map(len, tables)))
    out = io.BytesIO()
    write_table(open_sent(columns.table, columns.buffers), TableFormat.ARROW, out)
    return out.getvalue()


@promise("tables of features: a round trip", _tables())
def features_round_trip(tables: list[FeatureTable]) -> None:
    """What one service of ours writes, in JSON or Arrow, another one reads: to the bit, marks included."""
    for found in (
        tables_of_arrow(_arrow_of(tables), ASKED),
        tables_of_json(json_of(tables, is_batch=True), ASKED, is_batch=True),
    ):
        for read, wanted in zip(found, tables, strict=True):
            assert (read.symbol, read.calendar, read.data_source) == (wanted.symbol, "fixings", "ecb_daily")
            assert read.opened_ms.tolist() == wanted.opened_ms.tolist()
            assert read.available_at_ms.tolist() == wanted.available_at_ms.tolist()
            for name in FEATURES:
                assert np.array_equal(read.columns[name], wanted.columns[name], equal_nan=True)


def _a_table(symbol: str) -> FeatureTable:
    opened = _FIRST_MS + 3_600_000 * np.arange(3)
    return FeatureTable(
        symbol, "1h", opened, opened + 3_600_000, {name: np.arange(3.0) for name in FEATURES}, "ecb_daily"
    )


_ANSWERS = [_a_table(symbol) for symbol in ASKED.symbols]


@promise(
    "tables of features: any bytes",
    st.binary(max_size=200) | mutations([_arrow_of(_ANSWERS), json_of(_ANSWERS, is_batch=True)]),
)
def features_of_any_bytes(body: bytes) -> None:
    """Tables that keep the contract, or the error that names the other service."""
    for read in (tables_of_arrow, lambda content, asked: tables_of_json(content, asked, is_batch=True)):
        try:
            tables = read(body, ASKED)
        except UpstreamError as error:
            assert "Feature Store" in error.message
            continue
        assert [each.symbol for each in tables] == list(ASKED.symbols)
        for each in tables:
            assert np.all(np.diff(each.opened_ms) > 0)
            assert all(len(column) == len(each) and not np.isinf(column).any() for column in each.columns.values())
