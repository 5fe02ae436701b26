"""`/jobs`: how long work goes, as a document or as a stream of server-sent events; and its end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from common_lib.exceptions import LogNotFoundError
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.pages import Cursor, Limit
from ml_workbench_service.api.submission import accepted
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.jobs import DeletedJob, Job, JobAccepted, JobKind, JobList, JobStatus
from ml_workbench_service.contracts.strict_numbers import whole_number

router = APIRouter(prefix="/jobs", tags=["jobs"])
JobIdPath = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="`job_id` of the 202.")]

LOG_ANSWER: dict[str, Any] = {
    "text/plain": {
        "schema": {"type": "string"},
        "example": "2025-03-05T12:00:00.102Z INFO    ml_workbench_service.runtime.job_worker: attempt 1 begins\n",
    }
}


async def _existing(job_id: JobIdPath, service: AppStateDep) -> str:
    """A stream's status is sent before its first event, so whether the job exists is asked before."""
    return (await asyncio.to_thread(service.store.folder, job_id)).id


@router.get("", summary="List the jobs", responses=failures())
async def list_jobs(
    service: AppStateDep,
    kind: JobKind | None = None,
    status: JobStatus | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> JobList:
    """Newest first."""
    return await asyncio.to_thread(service.store.page, kind=kind, status=status, limit=limit, cursor=cursor)


@router.get("/{job_id}", summary="Show a job", responses=failures(404))
async def show_job(job_id: JobIdPath, service: AppStateDep) -> Job:
    """Status, progress with the newest figures, and the result or the error. A failed job is a 200."""
    return await asyncio.to_thread(service.store.get, job_id)


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    responses=failures(404),
    response_class=EventSourceResponse,
)
async def follow_job(
    job_id: Annotated[str, Depends(_existing)],
    service: AppStateDep,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: all so far, then each as it comes, up to the final one. `Last-Event-ID` continues."""
    after = whole_number(last_event_id or "") or 0
    async for event in service.supervisor.follow(job_id, after, stopping=service.stopping):
        yield ServerSentEvent(
            id=str(event.seq), event=event.type, data={"at": event.model_dump(mode="json")["at"], **event.data}
        )


@router.get(
    "/{job_id}/log",
    summary="Read a job's log",
    response_class=PlainTextResponse,
    responses={200: {"description": "Its last lines.", "content": LOG_ANSWER}, **failures(404)},
)
async def read_job_log(
    job_id: JobIdPath,
    service: AppStateDep,
    tail: Annotated[int, Query(ge=1, le=10_000, description="So many lines, the last ones.")] = 200,
) -> PlainTextResponse:
    """What the job's worker printed, while it runs and afterwards: the last lines, 256 KiB of them at most.

    Keys and passwords of the service's environment, and those in addresses, are replaced by `***`.
    """
    return PlainTextResponse(await asyncio.to_thread(_log, service, job_id, tail))


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    summary="Cancel a job",
    responses=failures(404, 503),
    response_model_exclude_unset=True,
)
async def cancel_job(job_id: JobIdPath, service: AppStateDep, response: Response) -> JobAccepted:
    """Asks the worker to stop: gracefully, after a while by force. Idempotent; a finished job stays as it is."""
    return accepted(await service.supervisor.cancel(job_id), response)


@router.delete(
    "/{job_id}",
    summary="Delete a job",
    responses=failures(404, 409, 503),
    response_model_exclude={"idempotency_key", "body_digest"},
)
async def delete_job(job_id: JobIdPath, service: AppStateDep) -> DeletedJob:
    """Frees an ended job's folder: its log, request and checkpoint. Idempotent.

    What it published stays, and so do the multiple-testing log, the trials counted in it, predictions and MLflow's run.
    """
    return await service.supervisor.delete(job_id)


def _log(service: AppState, job_id: str, tail: int) -> str:
    folder = service.store.folder(job_id)
    found = folder.log_lines(tail)
    if found is None:
        status = folder.job().status
        reason = "never had a worker" if status.is_final else "no worker has begun with it; ask again once it runs"
        raise LogNotFoundError(f"{job_id} has no log: it is {status.value}, and {reason}")
    return found
