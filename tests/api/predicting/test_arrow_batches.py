"""`/predict/batch` in Arrow: the records of a JSON batch to the bit, rows that fail alone, and a large body in little
memory."""

import io
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pytest

from tests.api.conftest import Guarded
from tests.api.predicting.test_predictions import FEATURES, NOON, body
from tests.conftest import registry_of
from tests.integrations.bundles import copy_version
from tests.service_process import ServiceProcess

ARROW = "application/vnd.apache.arrow.stream"
SAME = {"X-Correlation-ID": "the-same"}


@pytest.fixture(scope="module")
def model(service: ServiceProcess) -> str:
    """In float32, where windows may share a run."""
    root = registry_of(service)
    copy_version(root / "small" / "1.0.0", root, "arrow", "1.0.0", precision="fp32")
    return "/api/v1/models/arrow/predict"


def stream(table: pa.Table, *, rows: int = 1_000) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return out.getvalue()


def send(client: httpx.Client, model: str, content: Any, **headers: str) -> httpx.Response:
    return client.post(f"{model}/batch", content=content, headers={"Content-Type": ARROW, **SAME, **headers})


def rows_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The answer's rows, with moments as texts."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(answer.content).read_all()
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        for name, value in row.items():
            if hasattr(value, "isoformat"):
                row[name] = value.isoformat().replace("+00:00", "Z")
    return rows


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record by columns, without what differs from call to call."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and all(isinstance(each, str) for each in value):
            found[f"{prefix}{name}"] = ",".join(value) or None
        else:
            found[f"{prefix}{name}"] = value
    return {name: value for name, value in found.items() if name != "prediction_id"}


def agree(rows: list[dict[str, Any]], records: list[dict[str, Any]]) -> None:
    """Each row says what its record says; what a record has not, its row has not either."""
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert row.pop("error") is None
        assert row.pop("error_code") is None
        del row["prediction_id"]
        said = {name: value for name, value in flat(record).items() if value is not None}
        assert {name: value for name, value in row.items() if value is not None} == said


def requests() -> list[dict[str, Any]]:
    return [
        body(
            "GBP/USD" if hour % 3 else "EUR/USD",
            as_of=NOON - timedelta(hours=hour),
            last=24 - hour % 2,
            price=1.2 + hour,
        )
        for hour in range(9)
    ]


def windows(asked: list[dict[str, Any]], kind: pa.DataType) -> pa.Table:
    columns: dict[str, Any] = {
        "symbol": pa.array([each["symbol"] for each in asked]).dictionary_encode(),
        "as_of": pa.array([each["as_of"] for each in asked]).cast(pa.timestamp("us", tz="UTC")),
        "price": pa.array([each["price"] for each in asked]),
    }
    for name in FEATURES:
        columns[name] = pa.array([each["features"][name] for each in asked], kind)
    return pa.table(columns)


@pytest.mark.parametrize("rows", [2, 1_000])
@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float64())])
def test_windows_are_answered_as_a_json_batch_is(api: httpx.Client, model: str, kind: pa.DataType, rows: int) -> None:
    asked = requests()
    answer = api.post(f"{model}/batch", json={"items": asked}, headers=SAME)
    agree(rows_of(send(api, model, stream(windows(asked, kind), rows=rows))), answer.json()["predictions"])


def test_windows_of_one_length_may_be_fixed_and_in_single_precision(api: httpx.Client, model: str) -> None:
    asked = [each for each in requests() if len(each["features"]["macd"]) == 24]
    for each in asked:
        each["features"] = {
            name: np.float32(values).astype(float).tolist() for name, values in each["features"].items()
        }
    answer = api.post(f"{model}/batch", json={"items": asked}, headers=SAME)
    sent = stream(windows(asked, pa.list_(pa.float32(), 24)))
    agree(rows_of(send(api, model, sent)), answer.json()["predictions"])


def test_bars_are_cut_into_windows_over_the_borders_of_batches(api: httpx.Client, model: str) -> None:
    whole = {symbol: body(symbol, last=60)["features"] for symbol in ("EUR/USD", "GBP/USD")}
    order = [(symbol, bar) for bar in range(60) for symbol in whole]
    table = pa.table({
        "symbol": [symbol for symbol, _ in order],
        **{name: [whole[symbol][name][bar] for symbol, bar in order] for name in FEATURES},
    })  # fmt: skip
    rows = rows_of(send(api, model, stream(table, rows=7)))
    items = [
        {
            "symbol": symbol,
            "timeframe": "1h",
            "features": {name: whole[symbol][name][max(bar - 23, 0) : bar + 1] for name in FEATURES},
        }
        for symbol, bar in order
    ]
    records = api.post(f"{model}/batch", json={"items": items}, headers=SAME).json()["predictions"]
    failed = [place for place, each in enumerate(records) if "error_code" in each]
    assert failed == [0, 1, 2, 3]  # min_window is 3
    for place in failed:
        assert rows[place]["error"] == records[place]["message"]
        assert rows[place]["error_code"] == records[place]["error_code"]
        assert rows[place]["prediction"] is None
    agree(
        [each for place, each in enumerate(rows) if place not in failed],
        [each for place, each in enumerate(records) if place not in failed],
    )


def test_a_bad_row_fails_alone(api: httpx.Client, model: str) -> None:
    ones = [1.0] * 24
    columns = {name: [ones] * 7 for name in FEATURES} | {"macd": [*[ones] * 4, [*ones[1:], None], ones, [1.0]]}
    symbols = ["EUR/USD", "EUREUR", None, "EUR/USD", "EUR/USD", "USD/JPY", "EUR/USD"]
    table = pa.table({"symbol": symbols, "price": [1.1, 1.1, 1.1, -1.0, None, 1.1, 1.1], **columns})
    rows = rows_of(send(api, model, stream(table)))
    assert [each["error_code"] is None for each in rows] == [True, False, False, False, False, True, False]
    said = {1: "two different", 2: "say which", 3: "greater than 0", 4: "macd", 6: "same number"}
    for place, words in said.items():
        assert words in rows[place]["error"]
    assert "unknown_symbol" in rows[5]["abstain_reasons"]


@pytest.mark.parametrize("enqueue", ["best_effort", "guaranteed"])
def test_a_moment_that_cannot_be_fails_alone(api: httpx.Client, model: str, enqueue: str) -> None:
    moments = [None, 10**18, -(10**15), 10**13]
    columns = {name: [[1.0] * 24] * 4 for name in FEATURES}
    table = pa.table({"symbol": ["EUR/USD"] * 4, "as_of": pa.array(moments, pa.timestamp("ms", "UTC")), **columns})
    answer = api.post(
        f"{model}/batch", content=stream(table), headers={"Content-Type": ARROW, **SAME}, params={"enqueue": enqueue}
    )
    rows = rows_of(answer)
    assert ["1971 to 2099" in each["error"] for each in rows[1:]] == [True] * 3
    assert rows[0]["error_code"] == (None if enqueue == "best_effort" else "NOT_LIVE")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no Arrow IPC stream"),
        (b"{}", "no Arrow IPC stream"),
        (stream(pa.table({"sybmol": ["EUR/USD"]})), "did you mean symbol?"),
        (stream(pa.table({"macd": [[1.0]]}))[:-90], "no Arrow IPC stream"),
        (stream(pa.table({"macd": [[1.0]]}))[:-20], "no Arrow IPC stream"),
        (stream(pa.table({"macd": [1.0], "sma_20": [[1.0]]})), "a window a row"),
        (stream(pa.table({"as_of": pa.array([0], pa.timestamp("s"))})), "time zone"),
        (stream(pa.table({"macd": [["x"]]})), "no Arrow IPC stream"),
    ],
)
def test_a_body_that_is_none_is_refused(api: httpx.Client, model: str, content: bytes, words: str) -> None:
    answer = send(api, model, content)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["message"]


def test_the_model_and_the_key_are_checked_as_ever(api: httpx.Client, guarded: Guarded) -> None:
    content = stream(windows(requests(), pa.list_(pa.float64())))
    assert send(api, "/api/v1/models/nobody/predict", content).status_code == 404
    stranger = httpx.Client(base_url=guarded.service.url, timeout=60.0)
    assert send(stranger, "/api/v1/models/small/predict", content).status_code == 401
    assert api.post("/api/v1/models/small/predict", content=content, headers={"Content-Type": ARROW}).status_code == 415
    stranger.close()


@pytest.mark.more
def test_a_year_of_twenty_pairs_takes_little_memory(service: ServiceProcess, model: str) -> None:
    """124,000 windows in one request, twice: the second makes neither process larger."""
    num_bars, pairs = 6_200, [f"EUR/{a}{b}D" for a in "ABCD" for b in "VWXYZ"]
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    chance = np.random.default_rng(7)

    def year() -> Iterator[bytes]:
        out = io.BytesIO()
        schema = pa.schema([("symbol", pa.string()), *((name, pa.float64()) for name in FEATURES)])
        with pa.ipc.new_stream(out, schema) as writer:
            for _ in range(num_bars // 100):
                num = 100 * len(pairs)
                columns = {"symbol": pairs * 100, **{name: chance.uniform(1, 2, num) for name in FEATURES}}
                writer.write_batch(pa.record_batch(columns, schema=schema))
                yield out.getvalue()
                out.seek(0)
                out.truncate()
        yield out.getvalue()

    sizes = []
    for _ in range(3):
        with service.client.stream(
            "POST", f"{model}/batch", content=year(), headers={"Content-Type": ARROW}, params={"enqueue": "never"},
            timeout=1_200,
        ) as answer:  # fmt: skip
            assert answer.status_code == 200
            num_bytes = sum(map(len, answer.iter_bytes()))
        assert num_bytes > 20_000_000
        helpers = [each for each in process.children() if "table_worker" in json.dumps(each.cmdline())]
        sizes.append(tuple(sum(each.memory_info().rss for each in group) for group in ([process], helpers)))
    for first, later in zip(sizes[0], sizes[2], strict=True):
        assert later - first < 40_000_000, sizes
