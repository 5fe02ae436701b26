"""Bars for a worker elsewhere, which makes its features itself; ready-made columns where there are no bars.

Whatever is handed out is seen by the witness first, as a local worker's store shows it.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
import orjson
from fastapi import APIRouter, Query, Request, Response

from common_lib.exceptions import DataValidationError, NotFoundError
from ml_workbench_service.access.operations import ARROW, BYTES
from ml_workbench_service.api.elsewhere.attempts import AttemptDep, body_as
from ml_workbench_service.contracts.market import Bars, BarSource, FeatureStore, Witnessing, recomputing
from ml_workbench_service.contracts.work_elsewhere import ColumnsAsked, StoreFacts, WitnessQuestion
from ml_workbench_service.elsewhere.bars_wire import bars_to_arrow
from ml_workbench_service.integrations.replicas.features import table_to_wire

router = APIRouter()


@runtime_checkable
class HasBars(Protocol):
    """A feature store that makes its columns from bars."""

    source: BarSource

    def whole_bars(self, symbol: str, timeframe: str, own: Sequence[str] = ()) -> Bars:
        """A series."""
        ...


@router.get("/store")
async def show_store(attempt: AttemptDep) -> StoreFacts:
    """What there is to make features from."""
    return await asyncio.to_thread(_facts, _columns(attempt.workbench.feature_store))


@router.get("/bars")
async def read_bars(
    attempt: AttemptDep,
    symbol: Annotated[str, Query(max_length=16)],
    timeframe: Annotated[str, Query(max_length=8)],
    own: Annotated[list[str], Query(max_length=256)] = [],  # noqa: B006
) -> Response:
    """A series whole, as an Arrow stream."""
    store = _columns(attempt.workbench.feature_store)
    if not isinstance(store, HasBars):
        raise NotFoundError("this feature store has no bars; ask for its columns")
    payload = await asyncio.to_thread(lambda: bars_to_arrow(store.whole_bars(symbol, timeframe, own)))
    return Response(payload, media_type=ARROW)


@router.put("/columns")
async def read_columns(attempt: AttemptDep, request: Request) -> Response:
    """Ready-made columns."""
    asked = await body_as(request, ColumnsAsked)

    def fetch() -> bytes:
        tables = _columns(attempt.workbench.feature_store).fetch(**asked.model_dump())
        return orjson.dumps([table_to_wire(each) for each in tables])

    return Response(await asyncio.to_thread(fetch), media_type="application/json")


@router.put("/witness")
async def ask_witness(attempt: AttemptDep, request: Request) -> Response:
    """When values of a ready-made column were first seen: int64 milliseconds, one a row."""
    asked = await body_as(request, WitnessQuestion)
    store = _columns(attempt.workbench.feature_store)
    witness = store.witness if isinstance(store, Witnessing) else None
    if witness is None:
        raise NotFoundError("nobody watches the columns of this feature store")
    opened_ms = np.frombuffer(asked.opened_ms, dtype="<i8").astype(np.int64)
    values_N = np.frombuffer(asked.values, dtype="<f8").astype(np.float64)
    if len(opened_ms) != len(values_N):
        raise DataValidationError.at("body.values", "there is a value for each bar")
    series = (asked.symbol, asked.timeframe)
    seen_ms = await asyncio.to_thread(
        lambda: witness.seen_ms(series, asked.column, opened_ms=opened_ms, values_N=values_N)
    )
    return Response(np.ascontiguousarray(seen_ms, dtype="<i8").tobytes(), media_type=BYTES)


def _columns(store: FeatureStore) -> FeatureStore:
    """The store behind expressions, which a worker evaluates itself."""
    behind: FeatureStore = getattr(store, "columns", store)
    return behind


def _facts(store: FeatureStore) -> StoreFacts:
    has_bars = isinstance(store, HasBars) and recomputing(store) is not None
    check = store.check()
    is_remote = check.mode == "remote"
    return StoreFacts(
        makes_columns=has_bars,
        by_request=has_bars and is_remote,
        own_columns=tuple(store.source.own_columns()) if isinstance(store, HasBars) else (),
        described=tuple(store.describe()) if is_remote else (),
        now_ms=store.source.now_ms() if isinstance(store, HasBars) and has_bars else store.now_ms(),
        is_witnessed=isinstance(store, Witnessing) and store.witness is not None,
        check=check,
    )
