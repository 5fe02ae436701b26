"""What a worker elsewhere says of its job: that it begins and lives, how far it is, what came of trials."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from ml_workbench_service.api.elsewhere import files, market
from ml_workbench_service.api.elsewhere.attempts import Attempt, AttemptDep, DeskDep, bearer, body_as, granted_folder
from ml_workbench_service.api.elsewhere.files import sweep
from ml_workbench_service.api.elsewhere.log_questions import answered
from ml_workbench_service.api.jobs import JobIdPath
from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.contracts.jobs import JobEvent
from ml_workbench_service.contracts.work_elsewhere import (
    Heard,
    JobToken,
    JobView,
    LogAnswer,
    LogQuestion,
    PostedEvents,
    TokenExchange,
)
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.jobs.process_record import ProcessRecord

router = APIRouter(prefix="/jobs/{job_id}/worker", include_in_schema=False)
router.include_router(files.router)
router.include_router(market.router)


async def _beginning(job_id: JobIdPath, request: Request, desk: DeskDep) -> tuple[JobFolder, str]:
    """Whoever begins has a one-time token, which `exchange` looks at."""
    token = bearer(request)
    return await asyncio.to_thread(granted_folder, desk, job_id), token


@router.put("/token")
async def begin(asking: Annotated[tuple[JobFolder, str], Depends(_beginning)], request: Request) -> JobToken:
    """A worker begins: its one-time token for one that is good for this attempt."""
    folder, one_time = asking
    asked = await body_as(request, TokenExchange)

    def exchange() -> JobToken:
        token, attempt = folder.grant.exchange(one_time, asked.nonce)
        with folder.grant.held(token):
            process = ProcessRecord.model_validate(asked.model_dump(exclude={"nonce"}))
            sweep(folder.path)
            folder.record_worker(attempt, process)
            folder.beat()
        return JobToken(token=token, attempt=attempt)

    return await asyncio.to_thread(exchange)


@router.get("")
async def show(attempt: AttemptDep) -> JobView:
    """The request, and how far the job is."""
    return await asyncio.to_thread(_view, attempt)


@router.put("/beat")
async def beat(attempt: AttemptDep) -> Heard:
    """A sign of life."""

    def touch() -> Heard:
        attempt.folder.beat()
        return _heard(attempt.folder, 0)

    return await attempt.change(touch)


@router.put("/events")
async def add_events(attempt: AttemptDep, request: Request) -> Heard:
    """Events in order, by their numbers; those that are here already are left out."""
    posted = await body_as(request, PostedEvents)
    return await attempt.change(lambda: _added(attempt.folder, posted.events))


@router.put("/trials")
async def add_trial(attempt: AttemptDep, request: Request) -> Heard:
    """An experiment's trial that begins or has ended, on disk when this answers."""
    record = await body_as(request, TrialRecord)

    def append() -> Heard:
        attempt.folder.checkpoint.mkdir(exist_ok=True)
        attempt.folder.trials.append(record)
        return _heard(attempt.folder, 0)

    return await attempt.change(append)


@router.put("/log")
async def ask_log(attempt: AttemptDep, request: Request) -> LogAnswer:
    """A call of the multiple-testing log; an evaluation is on disk when this answers."""
    question = await body_as(request, LogQuestion)
    return await attempt.change(lambda: answered(question, attempt.workbench.multiple_testing, attempt.folder.id))


def _view(attempt: Attempt) -> JobView:
    events = attempt.folder.events()
    return JobView(
        spec=attempt.folder.spec, job=attempt.folder.job(), attempt=attempt.number,
        last_seq=events[-1].seq if events else 0,
    )  # fmt: skip


def _added(folder: JobFolder, events: tuple[JobEvent, ...]) -> Heard:
    return _heard(folder, folder.append_numbered(events))


def _heard(folder: JobFolder, last_seq: int) -> Heard:
    return Heard(last_seq=last_seq, cancel_requested=folder.cancel_requested)
