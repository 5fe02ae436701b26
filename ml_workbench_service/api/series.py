"""`/series`: which bars there are, how each file of them was read, and which files are not."""

import asyncio

from fastapi import APIRouter

from ml_workbench_service.api.app_state import AppStateDep
from ml_workbench_service.api.pages import Cursor, Limit, Symbol, page
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.reading_reports import Series, SeriesList

router = APIRouter(prefix="/series", tags=["catalogue"])


@router.get("", summary="List the series of bars", responses=failures(502, 504))
async def list_series(service: AppStateDep, symbol: Symbol, limit: Limit = 50, cursor: Cursor = None) -> SeriesList:
    """The reading report of each file of bars, or of each series of another source: rows used and dropped, clock,
    price side, units, doubts. The first page also names the files that give no bars, with the reason."""
    found = await asyncio.to_thread(service.workbench.feature_store.series)
    chosen, next_cursor = page(
        found.series, limit=limit, cursor=cursor, name=_name, keep=lambda each: symbol in (None, each.symbol)
    )
    return SeriesList(series=chosen, ignored=found.ignored if cursor is None else (), next_cursor=next_cursor)


def _name(series: Series) -> str:
    return f"{series.origin} {series.symbol} {series.timeframe}"
