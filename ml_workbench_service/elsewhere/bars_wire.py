"""Bars as an Arrow stream: one series whole, to the bit, with what it says of itself in the schema's metadata.

opened_ms, available_at_ms      int64, milliseconds since the epoch
open, high, low, close          float64
extra:<name>                    float64, each further column
metadata `bars`                 JSON of the rest of `contracts.market.Bars`
"""

from dataclasses import fields
from typing import Any

import numpy as np
import orjson

from ml_workbench_service.contracts.market import Bars
from ml_workbench_service.contracts.reading_reports import ReadingReport

TIMES = ("opened_ms", "available_at_ms")
PRICES = ("open", "high", "low", "close")
EXTRA = "extra:"
ABOUT = b"bars"
PLAIN = (
    "symbol", "timeframe", "data_source", "calendar", "fill", "synthetic_range", "price_side", "spread_time",
    "declares_times",
)  # fmt: skip


def bars_to_arrow(bars: Bars) -> bytes:
    """As `bars_of_arrow` reads it."""
    import pyarrow as pa

    assert {each.name for each in fields(Bars)} == {*TIMES, *PRICES, *PLAIN, "extra", "reports"}
    about = {name: getattr(bars, name) for name in PLAIN}
    about["reports"] = [each.model_dump(mode="json") for each in bars.reports]
    columns: dict[str, Any] = {name: pa.array(getattr(bars, name), pa.int64()) for name in TIMES}
    columns |= {name: pa.array(getattr(bars, name), pa.float64()) for name in PRICES}
    columns |= {f"{EXTRA}{name}": pa.array(values, pa.float64()) for name, values in bars.extra.items()}
    table = pa.table(columns).replace_schema_metadata({ABOUT: orjson.dumps(about)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def bars_of_arrow(payload: bytes) -> Bars:
    """The same series again."""
    import pyarrow as pa

    table = pa.ipc.open_stream(payload).read_all()
    about = orjson.loads(table.schema.metadata[ABOUT])
    about["reports"] = tuple(ReadingReport.model_validate(each) for each in about["reports"])

    def column(name: str) -> np.ndarray:
        return np.array(table.column(name).to_numpy())

    columns: dict[str, Any] = {name: column(name) for name in (*TIMES, *PRICES)}
    return Bars(
        **about,
        **columns,
        extra={name.removeprefix(EXTRA): column(name) for name in table.column_names if name.startswith(EXTRA)},
    )
