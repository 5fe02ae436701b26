"""Many windows in one request: rows a second of `/predict/batch` in Arrow and JSON, beside onnxruntime and single ones.

    python -m benchmarks.batches

1,000 windows of 32 rows and 4 features a request, one connection, the version and the settings of
`benchmarks/serving.py`; single requests over one connection and over 32. The control is onnxruntime alone on 1,000
windows that lie scaled in memory. `enqueue=never` is measured beside everything on. Service and control on core 0;
load, redis-server, agent and the process that reads tables on core 1. Interleaved rounds; the answers are compared
first.
"""

import http.client
import io
import json
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.serving import (
    KEY,
    OTHER_CORE,
    SERVER_CORE,
    Served,
    given_to_controls,
    ours,
    pin,
    published,
    window,
)
from benchmarks.training_speed import Contestant
from tools.interleaved_rounds import WORKPLACE, Goal, Rounds, conclude, show

NUM_ROUNDS, SECONDS, NUM_ROWS = 5, 3.0, 1_000
ALONE = "onnxruntime alone"
ARROW, ARROW_NEVER = "Arrow", "Arrow, enqueue=never"
JSON, JSON_NEVER = "JSON batch", "JSON batch, enqueue=never"
SINGLE, SINGLE_32 = "single JSON, one connection", "single JSON, 32 connections"
OF_ALONE, OF_SINGLE = 0.8, 3.0
STREAM = "application/vnd.apache.arrow.stream"


def arrow_of(item: dict[str, Any], num_rows: int) -> bytes:
    """So many windows as one record batch."""
    lookback = len(item["features"]["macd"])
    columns: dict[str, Any] = {"symbol": pa.array([item["symbol"]] * num_rows), "price": [item["price"]] * num_rows}
    for name, values in item["features"].items():
        flat = pa.array(np.tile(np.array(values), num_rows))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, lookback)
    batch, out = pa.RecordBatch.from_pydict(columns), io.BytesIO()
    with pa.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)
    return out.getvalue()


class Asker:
    """One connection that asks the same again and again."""

    def __init__(self, served: Served, body: bytes, media_type: str, query: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=300)
        self._path, self._body = f"{served.path}/batch{query}", body
        self._headers = {"Content-Type": media_type, "X-API-Key": KEY}

    def ask(self) -> bytes:
        """One answer; ends the benchmark where the service refuses."""
        self._connection.request("POST", self._path, self._body, self._headers)
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{self._path} answered {answer.status} {said[:400].decode()}")
        return said

    def per_s(self, seconds: float, num_rows: int) -> float:
        """Rows a second."""
        self._connection.close()  # the service has, since the last turn
        self.ask()
        num, begun = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begun) < seconds:
            self.ask()
            num += num_rows
        return num / elapsed

    def close(self) -> None:
        """Gives the connection back."""
        self._connection.close()


def compare(askers: dict[str, Asker], num_rows: int) -> None:
    """Ends the benchmark where Arrow and JSON do not say the same of every row."""
    (wanted,) = {each["outputs"]["price_change_1h"] for each in json.loads(askers[JSON_NEVER].ask())["predictions"]}
    found = pa.ipc.open_stream(askers[ARROW_NEVER].ask()).read_all()["outputs.price_change_1h"].to_pylist()
    if set(found) != {wanted} or len(found) != num_rows:
        raise SystemExit(f"Arrow says {set(found)} of {len(found)} rows, JSON {wanted} of {num_rows}")


def measure(
    served: Served, askers: dict[str, Asker], given: Path, item: dict[str, Any], *, num_rounds: int, seconds: float,
    num_rows: int,
) -> Rounds:  # fmt: skip
    """Turns of all in changing order; rows a second."""
    found = Rounds(bigger_is_better=True)
    this, rows = Path(sys.executable), np.array(list(item["features"].values())).T.tolist()
    with closing(Contestant(this, "batch_inference")) as alone, closing(Contestant(this, "closed_loop_load")) as load:
        for process, core in ((alone, SERVER_CORE), (load, OTHER_CORE)):
            pin([psutil.Process(process.pid)], core)
        single = {"port": served.port, "head": served.head, "body": served.body}
        turns = {
            ALONE: lambda: alone.turn(folder=str(given), rows=rows, num_rows=num_rows, seconds=seconds)["per_s"],
            SINGLE: lambda: load.turn(**single, num_connections=1, seconds=seconds)["per_s"],
            SINGLE_32: lambda: load.turn(**single, num_connections=32, seconds=seconds)["per_s"],
            **{name: (lambda each=each: each.per_s(seconds, num_rows)) for name, each in askers.items()},
        }
        for number in range(num_rounds + 1):
            for name in list(turns)[:: 1 if number % 2 else -1]:
                figure = turns[name]()
                if number:  # the first round warms up
                    found.add(name, figure)
    return found


def main(*, num_rounds: int = NUM_ROUNDS, seconds: float = SECONDS, num_rows: int = NUM_ROWS) -> None:
    """Measures the rounds and prints the table."""
    folder = WORKPLACE / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    model_id = published(folder)
    given = given_to_controls(folder, model_id)
    item = {"symbol": "EUR/USD", "timeframe": "1h", "features": window(), "price": 1.1021}
    many, arrow = json.dumps({"items": [item] * num_rows}).encode(), arrow_of(item, num_rows)
    with ExitStack() as stack:
        served = stack.enter_context(ours(folder / "batches", folder / "registry", model_id, json.dumps(item)))
        kinds = {
            ARROW: (arrow, STREAM, ""),
            ARROW_NEVER: (arrow, STREAM, "?enqueue=never"),
            JSON: (many, "application/json", ""),
            JSON_NEVER: (many, "application/json", "?enqueue=never"),
        }
        askers = {name: stack.enter_context(closing(Asker(served, *each))) for name, each in kinds.items()}
        compare(askers, num_rows)
        pin(psutil.Process(served.pid).children(recursive=True), OTHER_CORE)  # the tables' process is there now
        pin([psutil.Process()], OTHER_CORE)
        found = measure(
            served, askers, given, item, num_rounds=num_rounds, seconds=seconds, num_rows=num_rows
        )  # fmt: skip
    rows = [
        [name, f"{found.median(name):,.0f}", f"{found.times_better(name, ALONE):.2f}",
         f"{found.times_better(name, SINGLE):.1f}", f"{found.times_better(name, SINGLE_32):.1f}"]
        for name in found.figures
    ]  # fmt: skip
    show(f"Rows a second, {num_rows:,} a request", ["", "/s", "of alone", "of single", "of single, 32"], rows)
    goals = [
        Goal("Arrow of onnxruntime alone", found.times_better(ARROW, ALONE), OF_ALONE),
        Goal("Arrow of single requests, one connection", found.times_better(ARROW, SINGLE), OF_SINGLE),
        Goal("Arrow of single requests, 32 connections", found.times_better(ARROW, SINGLE_32), OF_SINGLE),
        Goal("JSON batch of single requests, one connection", found.times_better(JSON, SINGLE), OF_SINGLE),
    ]
    conclude("batches", goals, {"rows_per_s": found.figures})


if __name__ == "__main__":
    main()
