"""Writes feature tables as a Feature Store Service answers them: what `remote_format` reads, marks included.

    JSON   {"symbol", "timeframe", "timestamps": […], "available_at": […], "features": {name: […]}, "data_source",
           "calendar", "fill", "warnings"}, or {"results": [that, …]}
    Arrow  one stream of `symbol`, `timestamp`, `available_at`, the three marks, `warnings`, and each feature's column

Legend: N bars.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from ml_workbench_service.contracts.market import FeatureTable, Ints

ARROW = "application/vnd.apache.arrow.stream"
MARKS = ("data_source", "calendar", "fill", "warnings")
"""What a table says of itself beside its columns; texts, in Arrow a column each."""


def iso_texts(moments_ms: Ints) -> list[str]:
    """(N,) ISO 8601 in UTC, fractions only where there are any."""
    unit = "s" if np.all(moments_ms % 1000 == 0) else "ms"
    texts = np.datetime_as_string(moments_ms.astype("datetime64[ms]").astype(f"datetime64[{unit}]"))
    return [f"{text}Z" for text in texts.tolist()]


def json_of(tables: Sequence[FeatureTable], *, is_batch: bool) -> bytes:
    """The batch answer, or that of the one symbol; missing values are null."""
    results = [_result(table) for table in tables]
    return orjson.dumps({"results": results} if is_batch else results[0], option=orjson.OPT_SERIALIZE_NUMPY)


def arrow_of(tables: Sequence[FeatureTable]) -> bytes:
    """An Arrow IPC stream with the tables one after the other; a column that one of them lacks is null there."""
    import polars as pl

    frames = []
    for table in tables:
        marks = _marks(table) | {"warnings": ",".join(table.warnings)}
        times = {"timestamp": table.opened_ms, "available_at": table.available_at_ms}
        columns = [pl.Series("symbol", [table.symbol]).new_from_index(0, len(table))]
        columns += [pl.Series(name, moments).cast(pl.Datetime("ms", "UTC")) for name, moments in times.items()]
        columns += [pl.Series(name, [text]).new_from_index(0, len(table)) for name, text in marks.items()]
        taken = {column.name for column in columns}
        columns += [
            pl.Series(name, np.asarray(values), nan_to_null=True)
            for name, values in table.columns.items()
            if name not in taken
        ]
        frames.append(pl.DataFrame(columns))
    buffer = io.BytesIO()
    pl.concat(frames, how="diagonal").write_ipc_stream(buffer)
    return buffer.getvalue()


def _result(table: FeatureTable) -> dict[str, Any]:
    return {
        "symbol": table.symbol,
        "timeframe": table.timeframe,
        "timestamps": iso_texts(table.opened_ms),
        "available_at": iso_texts(table.available_at_ms),
        "features": {name: np.ascontiguousarray(values) for name, values in table.columns.items()},
        **_marks(table),
        "warnings": list(table.warnings),
    }


def _marks(table: FeatureTable) -> dict[str, str]:
    return {"data_source": table.data_source, "calendar": table.calendar, "fill": table.fill}
