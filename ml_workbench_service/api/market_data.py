"""`/features/{symbol}`, `/features/batch`, `/labels/{symbol}`: the store's values, point in time, for whoever checks.

One service can so be the feature store of another, named by its address: the Feature Store contract in JSON and Arrow.
"""

import asyncio
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Depends, Path, Query, Response
from pydantic import ValidationError

from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.tables.answering import AcceptedFormat, disposition, passed_on, table_of
from ml_workbench_service.contracts.contract import Contract, MarketDatetime
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.feature_names import split_features
from ml_workbench_service.contracts.feature_sets import is_reference
from ml_workbench_service.contracts.market_data import (
    BAR_COLUMNS,
    FeatureBatch,
    FeatureRequest,
    FeatureSeries,
    LabelRequest,
    LabelSeries,
)
from ml_workbench_service.contracts.rejections import of_pydantic
from ml_workbench_service.contracts.tables import FeatureTask, LabelTask, MarketTask, TableFormat
from ml_workbench_service.workflows.read_features import selected_sets

EXAMPLE = {
    "symbols": ["EUR/USD", "GBP/USD"],
    "timeframe": "1h",
    "features": ["close", "rsi_14", "zscore(close, 50)"],
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
    return await _answer_features(service, body, format, is_batch=True)


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
        str,
        Query(
            max_length=8192,
            description="Names and expressions with commas between; default: the bars' own columns.",
        ),
    ] = ",".join(BAR_COLUMNS),
) -> Response:
    """Bars and features as of a moment, with when each row was known; a bar that is forming is left out."""
    names = split_features(features)
    wanted = {"symbols": [symbol], "timeframe": timeframe, "features": names, **asdict(asked)}
    return await _answer_features(service, _checked(FeatureRequest, wanted), format, is_batch=False)


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
    name = f"{request.symbol.replace('/', '')}-{request.target}-labels"
    return await _answer(service, LabelTask(request=request, now=service.workbench.clock.now()), format, name=name)


async def _answer_features(
    service: AppState, request: FeatureRequest, format: TableFormat, *, is_batch: bool
) -> Response:
    selected: dict[str, tuple[str, ...]] = {}
    if any(map(is_reference, request.features)):
        selected = await asyncio.to_thread(selected_sets, request, service.workbench.registry)
    task = FeatureTask(request=request, selected=selected, is_batch=is_batch, now=service.workbench.clock.now())
    name = "-".join([*(symbol.replace("/", "") for symbol in request.symbols[:4]), request.timeframe])
    return await _answer(service, task, format, name=name)


def _checked(contract: type[Wanted], values: dict[str, Any]) -> Wanted:
    """The contract of a path and a query; raises DataValidationError."""
    try:
        return contract.model_validate(values)
    except ValidationError as error:
        raise of_pydantic(error, contract, prefix="query") from error


async def _answer(service: AppState, task: MarketTask, format: TableFormat, *, name: str) -> Response:
    """What the table process reads: the store's libraries and the table itself stay out of this one."""
    pieces = service.tables.read_market(task, format)
    if format is TableFormat.JSON:
        return await passed_on(pieces, format.value)
    return await passed_on(pieces, format.value, {"Content-Disposition": disposition(name, format)})
