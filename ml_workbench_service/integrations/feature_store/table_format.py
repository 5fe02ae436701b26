"""Writes feature tables as a Feature Store Service answers them: what `remote_format` reads, marks included.

    JSON   {"symbol", "timeframe", "timestamps": […], "available_at": […], "features": {name: […]}, "data_source",
           "calendar", "fill", "warnings"}, or {"results": [that, …]}
    Arrow  one stream of `symbol`, `timestamp`, `available_at`, the three marks, `warnings`, and each feature's column;
           CSV and Parquet have the same columns, and the table process writes all three

Legend: N bars.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from ml_workbench_service.contracts.market import FeatureTable, Floats, Ints
from ml_workbench_service.contracts.tables import TableFormat, Values

ARROW = TableFormat.ARROW.value
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


def columns_of_tables(tables: Sequence[FeatureTable]) -> list[Values]:
    """The tables one after the other, column by column; one that a table lacks is missing there."""
    texts = {"symbol": [table.symbol for table in tables]}
    for name in MARKS:
        texts[name] = [(_marks(table) | {"warnings": ",".join(table.warnings)})[name] for table in tables]
    times = {
        "timestamp": np.concatenate([table.opened_ms for table in tables]),
        "available_at": np.concatenate([table.available_at_ms for table in tables]),
    }
    columns = [_repeated("symbol", texts["symbol"], tables)]
    columns += [Values(name, "time", moments) for name, moments in times.items()]
    columns += [_repeated(name, texts[name], tables) for name in MARKS]
    taken = {column.name for column in columns}
    names = dict.fromkeys(name for table in tables for name in table.columns if name not in taken)
    columns += [Values(name, "number", np.concatenate([_own(table, name) for table in tables])) for name in names]
    return columns


def _own(table: FeatureTable, name: str) -> Floats:
    values = table.columns.get(name)
    return np.full(len(table), np.nan) if values is None else np.asarray(values, dtype=np.float64)


def _repeated(name: str, texts: Sequence[str], tables: Sequence[FeatureTable]) -> Values:
    """One text a table."""
    if len(set(texts)) == 1:
        return Values(name, "text", texts[0])
    every = [text for text, table in zip(texts, tables, strict=True) for _ in range(len(table))]
    return Values(name, "text", every)


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
