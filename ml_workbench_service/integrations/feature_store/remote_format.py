"""Reads a Feature Store's answer, and believes nothing: every length, name, time and number is checked.

    JSON   {"results": [{"symbol", "timeframe", "timestamps": […], "features": {name: […]}, "available_at": […]?}]}
    Arrow  one stream of columns `symbol`, `timestamp` (UTC), `available_at`?, and a column for each feature

Another service of ours also marks what the bars are (`data_source`, `calendar`, `fill`, `warnings`): simulated prices
stay simulated, and a day without a fixing is no gap there.

Missing is null and stays missing; NaN, infinities, text and booleans are nonsense. Legend: N bars.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import orjson
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError, UpstreamError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, normal_symbol, normal_timeframe, to_ms
from ml_workbench_service.contracts.market import FeatureDescription, FeatureTable, Floats, Ints
from ml_workbench_service.contracts.reading_reports import SeriesList
from ml_workbench_service.integrations.feature_store.table_format import MARKS
from ml_workbench_service.market.features.indicators import describe
from ml_workbench_service.market.features.tables import SYNTHETIC_RANGE

DATA_SOURCE = "feature_store"
_KNOWN_MARKS: Mapping[str, tuple[str, ...]] = {
    "data_source": ("ecb_daily", "simulated"),
    "calendar": ("fx", "fixings"),
    "fill": ("next_open", "next_close"),
}
"""A user's file behind the server is a feature store's data here; the sample stays what it is."""
_EARLIEST_MS, _LATEST_MS = 0, 4_102_444_800_000  # 1970 to 2100


@dataclass(frozen=True)
class Asked:
    """What the answer must hold."""

    symbols: tuple[str, ...]
    timeframe: str
    features: tuple[str, ...]


def nonsense(what: str) -> UpstreamError:
    """The error about an answer that breaks the contract."""
    return UpstreamError(
        f"the Feature Store's answer breaks its contract: {what}; check FEATURE_STORE_URL and its server"
    )


def tables_of_json(body: bytes, asked: Asked, *, is_batch: bool) -> list[FeatureTable]:
    """Tables in the order asked, from the batch answer or from the answer for one symbol.

    Raises:
        UpstreamError: whatever is not the contract, by name.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise nonsense("it is not JSON, or holds NaN or Infinity") from error
    if not isinstance(answer, dict):
        raise nonsense("it is not an object")
    results = answer.get("results") if is_batch else [{"symbol": asked.symbols[0], **answer}]
    if not isinstance(results, list):
        raise nonsense("`results` is not a list")
    tables: dict[str, FeatureTable] = {}
    for position, result in enumerate(results):
        if not isinstance(result, dict):
            raise nonsense(f"results[{position}] is not an object")
        symbol = _symbol(result.get("symbol"))
        if symbol in tables:
            raise nonsense(f"{symbol} comes twice")
        if symbol in asked.symbols:
            tables[symbol] = _table(symbol, result, asked)
    return _in_order(tables, asked)


def tables_of_arrow(body: bytes, asked: Asked) -> list[FeatureTable]:
    """Tables in the order asked, from an Arrow IPC stream; raises UpstreamError like `tables_of_json`."""
    import polars as pl

    try:
        frame = pl.read_ipc_stream(io.BytesIO(body))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise nonsense("it is not an Arrow IPC stream") from error
    absent = [name for name in ("symbol", "timestamp", *asked.features) if name not in frame.columns]
    if absent:
        raise nonsense(f"column {absent[0]} is missing")
    for name in ("timestamp", "available_at"):
        if name in frame.columns and getattr(frame.schema[name], "time_zone", None) is None:
            raise nonsense(f"`{name}` is not a time with a zone")
    if not all(frame.schema[name].is_numeric() or frame.schema[name] == pl.Null for name in asked.features):
        raise nonsense("a feature is not a column of numbers")
    tables: dict[str, FeatureTable] = {}
    for (written,), part in frame.group_by("symbol", maintain_order=True):
        symbol = _symbol(written)
        if symbol in tables:
            raise nonsense(f"{symbol} comes twice")
        if symbol in asked.symbols:
            columns = {name: _of_series(name, part[name]) for name in asked.features}
            available = part["available_at"].dt.epoch("ms").to_list() if "available_at" in part.columns else None
            opened = part["timestamp"].dt.epoch("ms").to_list()
            table = _checked_table(symbol, _moments(opened, "timestamp"), columns, available, asked)
            first = {name: part[name][0] for name in MARKS if part.schema.get(name) == pl.String}
            warnings = str(first.pop("warnings", "") or "").split(",")
            tables[symbol] = _marked(table, {**first, "warnings": [each for each in warnings if each]})
    return _in_order(tables, asked)


def descriptions_of_json(body: bytes) -> list[FeatureDescription]:
    """What `GET /api/v1/features` lists: descriptions, or names alone; raises UpstreamError for anything else."""
    known = {described.example: described for described in describe()}
    described = []
    try:
        for entry in orjson.loads(body)["features"]:
            if isinstance(entry, str):
                other = FeatureDescription(name=entry, example=entry, kind="stationary", description="Of the server.")
                described.append(known.get(entry, other))
            else:
                described.append(FeatureDescription.model_validate(entry))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise nonsense("`GET /api/v1/features` lists no features") from error
    return described


def series_of_json(body: bytes) -> SeriesList:
    """One page of `GET /api/v1/series`; raises UpstreamError for anything else."""
    try:
        return SeriesList.model_validate_json(body)
    except ValidationError as error:
        raise nonsense("`GET /api/v1/series` lists no series") from error


def refusal(status: int, body: bytes) -> DataValidationError | UpstreamError:
    """The error behind a status that is not 200: the asker's fault at 404 and 422, else the server's."""
    if status in (404, 422):
        said = _message(body)
        reason = f": {said}" if said else "; GET /api/v1/features lists what it has"
        problem = f"the Feature Store does not serve these symbols or features{reason}"
        return DataValidationError.at("features", problem, code="refused")
    if status in (401, 403):
        return UpstreamError(
            "the Feature Store refuses this service's key; set FEATURE_STORE_API_KEY to one that it knows"
        )
    if 300 <= status < 400:
        return UpstreamError("the Feature Store redirects elsewhere; set FEATURE_STORE_URL to its final address")
    return UpstreamError(
        f"the Feature Store answered with status {status}; look into its log", details={"status": status}
    )


def _message(body: bytes) -> str:
    """The human sentence of a platform error, if the body is one."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    message = said.get("message") if isinstance(said, Mapping) else None
    return "".join(filter(str.isprintable, message))[:300] if isinstance(message, str) else ""


def _in_order(tables: Mapping[str, FeatureTable], asked: Asked) -> list[FeatureTable]:
    absent = [symbol for symbol in asked.symbols if symbol not in tables]
    if absent:
        raise nonsense(f"{absent[0]} was asked for and is missing")
    return [tables[symbol] for symbol in asked.symbols]


def _symbol(written: object) -> str:
    try:
        return normal_symbol(written)
    except ValueError as error:
        raise nonsense("a result has no readable symbol") from error


def _table(symbol: str, result: Mapping[str, Any], asked: Asked) -> FeatureTable:
    try:
        timeframe = normal_timeframe(result.get("timeframe", asked.timeframe))
    except ValueError as error:
        raise nonsense(f"the timeframe of {symbol} is none") from error
    if timeframe != asked.timeframe:
        raise nonsense(f"{symbol} comes in {timeframe} instead of {asked.timeframe}")
    timestamps, features = result.get("timestamps"), result.get("features")
    if not isinstance(timestamps, list) or not isinstance(features, dict):
        raise nonsense(f"{symbol} lacks `timestamps` or `features`")
    absent = [name for name in asked.features if name not in features]
    if absent:
        raise nonsense(f"feature {absent[0]} of {symbol} is missing")
    columns = {name: _of_list(name, features[name]) for name in asked.features}
    opened = _moments([_iso_ms(text, "timestamps") for text in timestamps], "timestamps")
    available = result.get("available_at")
    if available is not None and not isinstance(available, list):
        raise nonsense("`available_at` is not a list")
    known = (
        None if available is None else [None if text is None else _iso_ms(text, "available_at") for text in available]
    )
    return _marked(_checked_table(symbol, opened, columns, known, asked), result)


def _checked_table(
    symbol: str, opened: Ints, columns: dict[str, Floats], available: Sequence[int | None] | None, asked: Asked
) -> FeatureTable:
    for name, column in columns.items():
        if len(column) != len(opened):
            raise nonsense(f"feature {name} of {symbol} has {len(column)} values for {len(opened)} timestamps")
    if np.any(np.diff(opened) <= 0):
        raise nonsense(f"the timestamps of {symbol} do not increase")
    known = opened + TIMEFRAMES_MS[asked.timeframe]
    if available is not None:
        if len(available) != len(opened):
            raise nonsense(f"`available_at` of {symbol} has {len(available)} values for {len(opened)} timestamps")
        known = np.maximum(known, _moments([0 if moment is None else moment for moment in available], "available_at"))
    declares_times = available is not None and None not in available
    return FeatureTable(
        symbol, asked.timeframe, opened, known, columns, data_source=DATA_SOURCE, declares_times=declares_times
    )


def _marked(table: FeatureTable, marks: Mapping[str, Any]) -> FeatureTable:
    """The table with what the server says of its bars; what we do not know is passed over."""
    said: dict[str, Any] = {name: marks[name] for name in _KNOWN_MARKS if marks.get(name) in _KNOWN_MARKS[name]}
    warnings = marks.get("warnings")
    if isinstance(warnings, list) and SYNTHETIC_RANGE in warnings:
        said["warnings"] = (SYNTHETIC_RANGE,)
    return replace(table, **said)


def _iso_ms(text: object, where: str) -> int:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise nonsense(f"`{where}` holds something that is not a time in ISO 8601 with its zone")
    return to_ms(moment)


def _moments(values: Sequence[int | None], where: str) -> Ints:
    if any(value is None or not _EARLIEST_MS <= value < _LATEST_MS for value in values):
        raise nonsense(f"`{where}` holds an empty time, or one outside 1970 to 2100")
    return np.array(values, dtype=np.int64)


def _of_list(name: str, values: object) -> Floats:
    if not isinstance(values, list) or not set(map(type, values)) <= {float, int, type(None)}:
        raise nonsense(f"feature {name} is not a list of numbers and nulls")
    return _finite(name, np.array(values, dtype=np.float64), values.count(None))


def _of_series(name: str, column: Any) -> Floats:
    import polars as pl

    values = column.cast(pl.Float64)
    return _finite(name, values.fill_null(float("nan")).to_numpy().copy(), values.null_count())


def _finite(name: str, column: Floats, num_missing: int) -> Floats:
    if int(np.sum(~np.isfinite(column))) != num_missing:
        raise nonsense(f"feature {name} holds NaN or Infinity; missing is null")
    return column
