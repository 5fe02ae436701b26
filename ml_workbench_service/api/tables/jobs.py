"""`/jobs/{id}/curves` and `/jobs/{id}/series`: how a training went, and what a replay said and earned, row by row."""

import asyncio

from fastapi import APIRouter, Response

from common_lib.exceptions import ConflictError, SeriesNotFoundError
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.jobs import JobIdPath
from ml_workbench_service.api.tables.answering import AskedTable, answer_rows, answer_stored, table_of
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.contracts.series import Curves, ReplaySeries
from ml_workbench_service.contracts.tables import StoredTable
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.workflows.read_curves import LearningCurves, read_curves

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get(
    "/{job_id}/curves",
    summary="Read a training's curves",
    response_class=Response,
    responses={**table_of(Curves), **failures(404, 406, 503)},
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
    responses={**table_of(ReplaySeries), **failures(404, 406, 409, 503)},
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
