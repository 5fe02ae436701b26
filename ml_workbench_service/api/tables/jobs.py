"""`/jobs/{id}/curves` and `/jobs/{id}/series`: how a training went, and what a replay said and earned, row by row."""

import asyncio
from typing import Any

from fastapi import APIRouter, Response

from common_lib.exceptions import ConflictError, SeriesNotFoundError
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.jobs import JobIdPath
from ml_workbench_service.api.queries import KnownQueries
from ml_workbench_service.api.tables.answering import AskedTable, answer_rows, answer_stored, table_of
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.contracts.series import Curves, ReplaySeries, columns_of
from ml_workbench_service.contracts.tables import ROWS, StoredTable
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.workflows.read_curves import LearningCurves, read_curves

CURVES_EXAMPLE: dict[str, Any] = {
    "job_id": "20260102T030405-abcdef12",
    "num_steps": 2,
    "is_thinned": False,
    "warnings": [],
    "columns": [each.model_dump() for each in columns_of(ROWS["curve"])],
    "num_rows": 2,
    "next_cursor": None,
    "rows": [
        {
            "at": "2026-01-02T03:04:15Z", "seed": 0, "epoch": 1, "train_loss": 1.02, "validation_loss": 0.99,
            "learning_rate": 0.001,
        }
    ],
}  # fmt: skip
SERIES_EXAMPLE: dict[str, Any] = {
    "job_id": "20260102T030405-abcdef12",
    "model_id": "small",
    "version": "1.0.0",
    "warnings": [],
    "columns": [each.model_dump() for each in columns_of(ROWS["replay"]) if each.name != "action"],
    "num_rows": 500,
    "next_cursor": "NTA=",
    "rows": [
        {
            "as_of": "2025-01-06T09:00:00Z", "symbol": "EUR/USD", "price": 1.0312, "realised": 0.00041,
            "prediction": 0.0009, "lower": -0.0011, "upper": 0.0029, "direction": "buy", "confidence": 0.58,
            "status": "ok", "position": 1, "gross": 0.00041, "cost": 0.00006, "net": 0.00035, "equity": 0.00035,
            "prediction_id": "5f2c0d7e3c9b4a0e8d6f1a2b3c4d5e6f",
        }
    ],
}  # fmt: skip
router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/curves",
    summary="Read a training's curves",
    response_class=Response,
    dependencies=[KnownQueries],
    responses={**table_of(Curves, CURVES_EXAMPLE), **failures(404, 406, 503)},
)
async def read_job_curves(job_id: JobIdPath, service: AppStateDep, asked: AskedTable) -> Response:
    """Loss of every seed after each epoch, on the training and the validation part, while it runs and afterwards.

    A training that reported more than 2,000 steps is thinned evenly, and says so.
    """
    curves = await asyncio.to_thread(_curves, service, job_id)
    left_out = f"{len(curves.rows)} of {curves.num_steps} steps are shown, evenly"
    about = {
        "job_id": job_id,
        "num_steps": curves.num_steps,
        "is_thinned": curves.is_thinned,
        "warnings": [left_out] if curves.is_thinned else [],
    }
    return await answer_rows(service.tables, "curve", curves.rows, asked, about=about, name=f"{job_id}-curves")


@router.get(
    "/{job_id}/series",
    summary="Read a replay's rows",
    response_class=Response,
    dependencies=[KnownQueries],
    responses={**table_of(ReplaySeries, SERIES_EXAMPLE), **failures(404, 406, 409, 503)},
)
async def read_job_series(job_id: JobIdPath, service: AppStateDep, asked: AskedTable) -> Response:
    """What a replay answered at every bar, the position that its signal held there, and the reward of that step."""
    folder, warnings = await asyncio.to_thread(_replayed, service, job_id)
    spec = folder.spec
    about = {
        "job_id": job_id,
        "model_id": spec.request["model_id"],
        "version": spec.plan["version"],
        "warnings": warnings,
    }
    table = StoredTable(row="replay", path=str(folder.series))
    return await answer_stored(service.tables, table, asked, about=about, name=f"{job_id}-series")


def _curves(service: AppState, job_id: str) -> LearningCurves:
    folder = service.store.folder(job_id)
    kind = folder.spec.kind
    if kind is JobKind.EXPERIMENT:
        raise SeriesNotFoundError(
            f"{job_id} is an experiment, whose trials have a curve each: GET /api/v1/experiments/{job_id}"
        )
    if kind is not JobKind.TRAIN:
        raise SeriesNotFoundError(f"{job_id} is a {kind.value}, which trains nothing; ask for a training's curves")
    return read_curves(folder)


def _replayed(service: AppState, job_id: str) -> tuple[JobFolder, list[str]]:
    """The folder of a replay that kept its rows, and what is to be said of them."""
    folder = service.store.folder(job_id)
    if folder.spec.kind is not JobKind.REPLAY:
        raise SeriesNotFoundError(
            f"{job_id} is no replay but of kind {folder.spec.kind.value}; a version's rows are at "
            "GET /api/v1/models/{model_id}/versions/{version}/series"
        )
    job = folder.job()
    if not job.status.is_final:
        raise ConflictError(f"{job_id} is still {job.status.value}; its rows are there once it has ended")
    if not folder.series.is_file():
        raise SeriesNotFoundError(
            f"{job_id} kept no rows: it ended before its last bar, or was made before replays kept them; replay again"
        )
    return folder, list(job.warnings)
