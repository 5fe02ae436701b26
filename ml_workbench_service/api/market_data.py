"""`/features/{symbol}`, `/features/batch`, `/labels/{symbol}`: the store's values, point in time, for whoever checks.

One service can so be the feature store of another, named by its address: the Feature Store contract in JSON and Arrow.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Body, Depends, Path, Query, Response
from pydantic import ValidationError

from common_lib.exceptions import DataValidationError
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.errors import of_pydantic
from ml_workbench_service.api.tables.answering import AcceptedFormat, Asked, streamed, table_of
from ml_workbench_service.contracts.contract import Contract, MarketDatetime, to_ms
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.market_data import (
    BAR_COLUMNS,
    FeatureBatch,
    FeatureRequest,
    FeatureSeries,
    LabelRequest,
    LabelSeries,
)
from ml_workbench_service.contracts.tables import NO_TIME, Sent, TableFormat, Values, sent
from ml_workbench_service.integrations.feature_store.table_format import columns_of_tables, json_of
from ml_workbench_service.workflows.read_labels import read_labels

MOST_CELLS = 5_000_000
"""Rows times columns of one answer; some 100 MB as JSON, and a moment of the API process."""
EXAMPLE = {
    "symbols": ["EUR/USD", "GBP/USD"],
    "timeframe": "1h",
    "features": ["close", "sma_20", "rsi_14"],
    "start_date": "2025-02-03T00:00:00Z",
    "end_date": "2025-02-04T00:00:00Z",
}
Wanted = TypeVar("Wanted", bound=Contract)
router = APIRouter(tags=["market data"])
SymbolPath = Annotated[
    str, Path(max_length=16, description="Such as EUR/USD, its slash encoded (%2F) or not.", examples=["EUR/USD"])
]
TimeframeQuery = Annotated[str, Query(max_length=16, description="Such as 1h or 1d.", examples=["1h"])]
Start = Annotated[MarketDatetime | None, Query(description="First bar opening; default: the first bar's.")]
End = Annotated[MarketDatetime | None, Query(description="Bar openings before this; default: all that are known.")]
AsOf = Annotated[MarketDatetime | None, Query(description="Only what was known at this moment; default: now.")]


@router.post(
    "/features/batch",
    summary="Read features of several symbols",
    response_class=Response,
    responses={**table_of(FeatureBatch), **failures(406, 413, 415, 502, 503, 504)},
)
async def read_feature_batch(
    body: Annotated[FeatureRequest, Body(examples=[EXAMPLE])],
    service: AppStateDep,
    format: AcceptedFormat,
) -> Response:
    """Bars and features as of a moment, one result a symbol in the order asked; a bar that is forming is left out."""
    return await _answer(service, body, format, is_batch=True)


@dataclass(frozen=True)
class Range:
    """Which bars are asked for, known when."""

    start_date: datetime | None
    end_date: datetime | None
    as_of: datetime | None


async def _range(start_date: Start = None, end_date: End = None, as_of: AsOf = None) -> Range:
    return Range(start_date, end_date, as_of)


@router.get(
    "/features/{symbol:path}",
    summary="Read features of a symbol",
    response_class=Response,
    responses={**table_of(FeatureSeries), **failures(406, 502, 503, 504)},
)
async def read_features(
    symbol: SymbolPath,
    service: AppStateDep,
    asked: Annotated[Range, Depends(_range)],
    format: AcceptedFormat,
    timeframe: TimeframeQuery,
    features: Annotated[
        str, Query(max_length=8192, description="Names with commas between; default: the bars' own columns.")
    ] = ",".join(BAR_COLUMNS),
) -> Response:
    """Bars and features as of a moment, with when each row was known; a bar that is forming is left out."""
    names = [name.strip() for name in features.split(",")]
    wanted = {"symbols": [symbol], "timeframe": timeframe, "features": names, **asdict(asked)}
    return await _answer(service, _checked(FeatureRequest, wanted), format, is_batch=False)


@dataclass(frozen=True)
class Labelled:
    """Which labels are asked for."""

    target: str
    timeframe: str | None
    k: float


async def _labelled(
    target: Annotated[str, Query(max_length=64, description="Such as price_change_1h.", examples=["price_change_1h"])],
    timeframe: Annotated[
        str | None, Query(max_length=16, description="Default: the target's own unit, else 1h.")
    ] = None,
    k: Annotated[float, Query(gt=0, le=20, description="Barriers of triple_barrier: `label.k` of a training.")] = 1.0,
) -> Labelled:
    return Labelled(target, timeframe, k)


@router.get(
    "/labels/{symbol:path}",
    summary="Read labels of a symbol",
    response_class=Response,
    responses={**table_of(LabelSeries), **failures(406, 502, 503, 504)},
)
async def list_labels(
    symbol: SymbolPath,
    service: AppStateDep,
    wanted: Annotated[Labelled, Depends(_labelled)],
    format: AcceptedFormat,
    start_date: Annotated[MarketDatetime, Query(description="First bar opening.")],
    end_date: Annotated[MarketDatetime, Query(description="Bar openings before this; later bars make no label.")],
    as_of: AsOf = None,
) -> Response:
    """What a training over this range would see as its target at each bar, and when each label is known."""
    moments = {"start_date": start_date, "end_date": end_date, "as_of": as_of}
    request = _checked(LabelRequest, {"symbol": symbol, **moments, **asdict(wanted)})

    labels = await asyncio.to_thread(read_labels, service.workbench.feature_store, request)
    if format is TableFormat.JSON:
        return Response(await asyncio.to_thread(labels.model_dump_json), media_type=format.value)
    name = f"{labels.symbol.replace('/', '')}-{labels.timeframe}-{labels.target}"
    table = sent("label", _label_columns(labels), num_rows=len(labels.labels))
    return await streamed(service.tables, table, Asked(format, 0, None), name=name)


def _label_columns(labels: LabelSeries) -> list[Values]:
    """One row an opening."""
    known = [NO_TIME if each is None else to_ms(each) for each in labels.available_at]
    return [
        Values("symbol", "text", labels.symbol),
        Values("timestamp", "time", np.array([to_ms(each) for each in labels.timestamps], dtype=np.int64)),
        Values("label", "number", np.array([np.nan if each is None else each for each in labels.labels])),
        Values("available_at", "time", np.array(known, dtype=np.int64)),
    ]


def _checked(contract: type[Wanted], values: dict[str, Any]) -> Wanted:
    """The contract of a path and a query; raises DataValidationError."""
    try:
        return contract.model_validate(values)
    except ValidationError as error:
        raise of_pydantic(error, contract, prefix="query") from error


async def _answer(service: AppState, request: FeatureRequest, format: TableFormat, *, is_batch: bool) -> Response:
    def work() -> Response | Sent:
        tables = service.workbench.feature_store.fetch(
            request.symbols,
            request.timeframe,
            start_ms=None if request.start_date is None else to_ms(request.start_date),
            end_ms=None if request.end_date is None else to_ms(request.end_date),
            features=request.features,
            as_of_ms=None if request.as_of is None else to_ms(request.as_of),
        )
        _check_size(tables)
        if format is TableFormat.JSON:
            return Response(json_of(tables, is_batch=is_batch), media_type=format.value)
        return sent("feature", columns_of_tables(tables), num_rows=sum(map(len, tables)))

    found = await asyncio.to_thread(work)
    if isinstance(found, Response):
        return found
    name = "-".join([*(symbol.replace("/", "") for symbol in request.symbols[:4]), request.timeframe])
    return await streamed(service.tables, found, Asked(format, 0, None), name=name)


def _check_size(tables: Sequence[FeatureTable]) -> None:
    num_cells = sum(len(table) * (2 + len(table.columns)) for table in tables)
    if num_cells > MOST_CELLS:
        raise DataValidationError.at(
            "start_date",
            f"this answer would hold {num_cells:,} values, and one holds {MOST_CELLS:,}; ask for a shorter range, "
            "fewer symbols or fewer features",
            code="too_long",
        )
