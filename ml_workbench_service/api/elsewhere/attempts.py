"""Attempts: who speaks below `/jobs/{job_id}/worker`, by the token of one attempt at one job.

The door lets everybody through to these operations (`access.operations`); here a token is looked at before a byte of
the body is read. It opens nothing else: elsewhere it is no key. Whatever an attempt changes is done within `held`, so
that one that was followed by another changes nothing.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from pydantic import ValidationError

from common_lib.exceptions import AuthenticationError, DataValidationError, JobNotFoundError
from common_lib.storage import check_there_now
from ml_workbench_service.api.app_state import service
from ml_workbench_service.api.jobs import JobIdPath
from ml_workbench_service.contracts.contract import AnyContract
from ml_workbench_service.jobs.durable_files import sync_folder
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.jobs.worker_grant import ended
from ml_workbench_service.learning.bundle.manifest import sync
from ml_workbench_service.resources import Workbench

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Desk:
    """What these routes work with."""

    store: JobStore
    workbench: Workbench


async def desk(request: Request) -> Desk:
    """The running service's; 503 while it starts or stops."""
    running = await service(request)
    return Desk(running.store, running.workbench)


DeskDep = Annotated[Desk, Depends(desk)]


@dataclass(frozen=True)
class Attempt:
    """One attempt at one job, whose token was right as the request came."""

    folder: JobFolder
    token: str
    number: int
    workbench: Workbench

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody follows this attempt meanwhile; raises AuthenticationError where somebody has."""
        with self.folder.grant.held(self.token):
            yield

    async def change(self, work: Callable[[], Answer]) -> Answer:
        """Does that within `held`, in a thread."""

        def held() -> Answer:
            with self.held():
                return work()

        return await asyncio.to_thread(held)


async def attempt(job_id: JobIdPath, request: Request, desk: DeskDep) -> Attempt:
    """Whose token came along; raises AuthenticationError where it is good for nothing here, or there is no such job."""
    token = bearer(request)
    folder = await asyncio.to_thread(granted_folder, desk, job_id)
    number = await asyncio.to_thread(folder.grant.check, token)
    return Attempt(folder, token, number, desk.workbench)


AttemptDep = Annotated[Attempt, Depends(attempt)]


def granted_folder(desk: Desk, job_id: str) -> JobFolder:
    """The job's folder; whoever has no token learns nothing of which jobs there are."""
    try:
        return desk.store.folder(job_id)
    except JobNotFoundError as error:
        check_there_now(desk.store.root)
        raise ended(job_id) from error


def bearer(request: Request) -> str:
    """The token of the header; raises AuthenticationError where there is none."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise AuthenticationError("a job's worker sends its token in the header `Authorization: Bearer …`")
    return token.strip()


async def body_as(request: Request, kind: type[AnyContract]) -> AnyContract:
    """The body, read now; raises DataValidationError where it is no such thing."""
    body = await request.body()
    try:
        return await asyncio.to_thread(kind.model_validate_json, body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(["body", *map(str, first["loc"])])
        raise DataValidationError.at(path, f"{first['msg']}; run the same version here and there") from error


async def received(request: Request, file: Path) -> None:
    """The body in a file, on disk; never held whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    opened = await asyncio.to_thread(file.open, "wb")
    try:
        async for chunk in request.stream():
            await asyncio.to_thread(opened.write, chunk)
    except BaseException:
        opened.close()
        file.unlink(missing_ok=True)
        raise
    await asyncio.to_thread(opened.close)
    await asyncio.to_thread(sync, file)


def put_in_place(staged: Path, file: Path) -> None:
    """Gives a received file its name; on disk when this returns."""
    staged.replace(file)
    sync_folder(file.parent)
