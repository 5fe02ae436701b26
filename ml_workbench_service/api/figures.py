"""`/models/{id}/versions/{v}/figures` and `…/report`: what a version achieved, to be looked at.

The table process draws; the service passes on what it sends, so that its memory does not grow with rows or pages.
"""

import asyncio
import logging
import zlib
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import ValidationError

from common_lib.exceptions import JobNotFoundError
from ml_workbench_figures import figures_for
from ml_workbench_figures.figure import Source, figure_named
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.models import VersionPath
from ml_workbench_service.api.predictions import ModelIdPath
from ml_workbench_service.api.tables.answering import passed_on
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.figures import (
    FigureDescription,
    FigureList,
    FigureTask,
    FigureTheme,
    SentFigureTask,
)
from ml_workbench_service.contracts.importance import ImportanceReport
from ml_workbench_service.contracts.jobs import JobKind, JobStatus
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.learning.bundle.manifest import EVALUATION_FILE
from ml_workbench_service.workflows.draw_figures import by_column
from ml_workbench_service.workflows.read_curves import read_curves

router = APIRouter(prefix="/models/{model_id}/versions/{version}", tags=["figures"])
log = logging.getLogger(__name__)
FigureName = Annotated[str, Path(pattern=r"^[a-z][a-z_]{0,63}$", description="Such as equity; the list names all.")]


@router.get("/figures", summary="List a version's figures", responses=failures(404, 409))
async def list_figures(model_id: ModelIdPath, version: VersionPath, service: AppStateDep) -> FigureList:
    """Every figure of a version, and whether it says something of this one: by its type and what is traded on it."""
    task = await asyncio.to_thread(_task, service, model_id, version, None, None)
    tables: dict[Source, object] = {
        "rows": task.rows_path,
        "curves": task.curves,
        "importance": task.importance,
        "measured_importance": task.measured_importance,
    }
    has = [name for name, table in tables.items() if table]
    place = f"/api/v1/models/{model_id}/versions/{version}"
    return FigureList(
        model_id=model_id,
        version=version,
        figures=tuple(
            FigureDescription(
                name=each.name, title=each.title, about=each.about, applies=each.applies, why_not=each.why_not,
                href=f"{place}/figures/{each.name}",
            )
            for each in figures_for(task.card, has=has)
        ),
        report_href=f"{place}/report",
    )  # fmt: skip


@router.get(
    "/figures/{name}",
    summary="Draw a figure",
    response_class=Response,
    responses={
        200: {
            "description": "A figure as Plotly reads it; its caption as sentences in `layout.meta.caption`.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        **failures(404, 409, 503),
    },
)
async def draw_figure(
    model_id: ModelIdPath,
    version: VersionPath,
    name: FigureName,
    service: AppStateDep,
    theme: Annotated[FigureTheme, Query(description="Colours for a light or a dark page.")] = "light",
) -> Response:
    """A figure of the version; where something is missing, one that says so in a sentence."""
    figure_named(name, subject="version")
    task = await asyncio.to_thread(_task, service, model_id, version, name, theme)
    return await drawn(service, task)


@router.get(
    "/report",
    summary="Read a version's report",
    response_class=Response,
    responses={
        200: {
            "description": "A page that opens without network.",
            "content": {"text/html": {"schema": {"type": "string"}, "example": "<!doctype html>…"}},
        },
        **failures(404, 409, 503),
    },
)
async def read_report(
    model_id: ModelIdPath,
    version: VersionPath,
    service: AppStateDep,
    theme: Annotated[
        FigureTheme | None, Query(description="Colours to begin with; unless sent, the reader's own setting.")
    ] = None,
) -> Response:
    """Every figure of the version on one page, with verdict and reasons, costs, certificate and lineage."""
    task = await asyncio.to_thread(_task, service, model_id, version, None, theme)
    return await drawn(service, task, "text/html; charset=utf-8")


async def drawn(service: AppState, task: FigureTask | SentFigureTask, media_type: str = "application/json") -> Response:
    """What the table process draws."""
    headers = {"ETag": _tag(task)} if isinstance(task, FigureTask) else None
    return await passed_on(service.tables.draw(task), media_type, headers)


def _tag(task: FigureTask) -> str:
    """A version never changes; what was measured of it since may."""
    found = task.measured_importance
    measured = "" if found is None else f"-{zlib.crc32(found.model_dump_json().encode()):08x}"
    return f'"{task.card.digest}{measured}"'


def _task(service: AppState, model_id: str, version: str, name: str | None, theme: FigureTheme | None) -> FigureTask:
    registry = service.workbench.registry
    card = registry.card(model_id, version)
    path = registry.file(model_id, version, EVALUATION_FILE)
    curves, importance = _of_its_job(service, card)
    return FigureTask(
        card=card, rows_path=None if path is None else str(path), name=name, theme=theme, curves=curves,
        importance=importance, measured_importance=_measured(service, card),
    )  # fmt: skip


def _measured(service: AppState, card: ModelCard) -> ImportanceReport | None:
    """What the newest importance job of the version found that went well; its part is its asker's choice."""
    for folder in reversed(list(service.store.folders())):
        order = folder.spec.request
        if folder.spec.kind is not JobKind.IMPORTANCE:
            continue
        if (order.get("model_id"), order.get("version")) != (card.id, card.version):
            continue
        try:
            job = folder.job()
            if job.status is JobStatus.SUCCEEDED:
                return ImportanceReport.model_validate(job.result)
        except (JobNotFoundError, ValidationError) as error:  # deleted meanwhile, or its event log is damaged
            log.warning("the importance job %s is passed over: %s", folder.id, error)
    return None


def _of_its_job(service: AppState, card: ModelCard) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """The training's course, or the importance that its search found; nothing where the job is gone."""
    try:
        folder = service.store.folder(card.lineage.job_id)
    except JobNotFoundError:
        return {}, {}
    if folder.spec.kind is JobKind.EXPERIMENT:
        return {}, dict((folder.job().result or {}).get("importance", {}))
    return by_column(read_curves(folder).rows), {}
