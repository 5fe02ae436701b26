"""Job submission: one job for each request, or for each Idempotency-Key within a day, and where to ask for it.

A key's first answer is given again for a day; then it makes a new job, under its next id.
"""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from fastapi import Response

from common_lib.exceptions import ConflictError, IdempotencyMismatchError, JobNotFoundError
from common_lib.logging import correlation_id
from common_lib.tracing import traceparent
from ml_workbench_service.api.app_state import AppState, Idempotency
from ml_workbench_service.contracts.contract import Contract, utc_now
from ml_workbench_service.contracts.extras import require
from ml_workbench_service.contracts.jobs import DeletedJob, Job, JobAccepted, JobKind, JobSpec, JobStatus
from ml_workbench_service.jobs.job import JobStore, new_job_id

KEPT = timedelta(hours=24)
"""How long an Idempotency-Key is remembered."""


class Plan(Protocol):
    """What was decided of a request before its job starts."""

    @property
    def request(self) -> Contract:
        """The request, as the job keeps it."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The decisions, as the job keeps them."""
        ...


async def submit(
    kind: JobKind, request: Contract, service: AppState, response: Response, client: str,
    *, plan: dict[str, Any] | None = None,
) -> JobAccepted:  # fmt: skip
    """A new job for this request, which this client asks for; the response says where it is.

    Raises:
        ExtraMissingError: its worker would run here, where an extra that it needs is not installed.
        RateLimitError: so many jobs of this client wait already.
    """
    _check_installed(kind, service)
    spec = _spec(kind, new_job_id(utc_now()), request, plan or {}, client, key=None)
    return accepted(await service.supervisor.submit(spec), response)


async def submit_once(
    kind: JobKind, plan: Callable[[], Plan], service: AppState, response: Response, client: str,
    key: Idempotency | None,
) -> JobSpec:  # fmt: skip
    """The job that this key made within the last day, else a new one of what `plan` decides, one plan at a time.

    Raises:
        ExtraMissingError: as in `submit`.
        IdempotencyMismatchError: the key came with another body.
        ConflictError: the key's job was deleted.
        RateLimitError: so many jobs of this client wait already.
    """
    _check_installed(kind, service)
    async with service.planning:
        before = await _answered_before(service.store, key)
        if before is not None:
            response.headers["Idempotency-Replayed"] = "true"
            return before
        planned = await asyncio.to_thread(plan)
        spec = _spec(kind, await _fresh_id(service.store, key), planned.request, planned.to_json(), client, key=key)
        await service.supervisor.submit(spec)
    return spec


def _check_installed(kind: JobKind, service: AppState) -> None:
    if kind in service.needs:
        require(service.needs[kind])


def accepted(job: Job, response: Response) -> JobAccepted:
    """The 202 of a job that was answered under `id` before."""
    told = {name: value for name in ("model_id", "version") if (value := job.request.get(name)) is not None}
    _announce(f"/api/v1/jobs/{job.id}", response, retry_after_s=1)
    return JobAccepted(
        job_id=job.id, id=job.id, kind=job.kind, status=job.status, href=f"/api/v1/jobs/{job.id}", **told
    )


def accepted_once(spec: JobSpec, response: Response, *, location: str, **told: Any) -> JobAccepted:
    """The 202 of a job that a key may have made before: its first answer, and so queued."""
    _announce(location, response, retry_after_s=2)
    href = f"/api/v1/jobs/{spec.id}"
    return JobAccepted(job_id=spec.id, kind=spec.kind, status=JobStatus.QUEUED, href=href, **told)


def _announce(location: str, response: Response, *, retry_after_s: int) -> None:
    """Where the accepted work is to be asked for, and when first."""
    response.headers["Location"] = location
    response.headers["Retry-After"] = str(retry_after_s)


def check_same_body(before: str | None, key: Idempotency) -> None:
    """Raises IdempotencyMismatchError where the key's first request had another body, of that digest."""
    if before != key.body_digest:
        raise IdempotencyMismatchError.at(
            "header.Idempotency-Key", "this key came with another body before; send a new key for a new request"
        )


async def _answered_before(store: JobStore, key: Idempotency | None) -> JobSpec | None:
    if key is None:
        return None
    generations = await asyncio.to_thread(_generations, store, key)
    if not generations or utc_now() - generations[-1].created_at > KEPT:
        return None
    newest = generations[-1]
    check_same_body(newest.body_digest, key)
    if isinstance(newest, DeletedJob):
        raise ConflictError(f"the job that this key made, {newest.id}, was deleted; send a new key for a new job")
    return newest


async def _fresh_id(store: JobStore, key: Idempotency | None) -> str:
    if key is None:
        return new_job_id(utc_now())
    return key.identifier(len(await asyncio.to_thread(_generations, store, key)))


def _spec(
    kind: JobKind, job_id: str, request: Contract, plan: dict[str, Any], client: str, *, key: Idempotency | None
) -> JobSpec:
    """A job as it is submitted: it remembers the key it came with, so that the key finds it again."""
    return JobSpec(
        id=job_id,
        kind=kind,
        request=request.model_dump(mode="json", exclude_unset=True),
        plan=plan,
        created_at=utc_now(),
        correlation_id=correlation_id(),
        idempotency_key=key.key if key else None,
        body_digest=key.body_digest if key else None,
        client=client,
        traceparent=traceparent(),
    )


def _generations(store: JobStore, key: Idempotency) -> list[JobSpec | DeletedJob]:
    """The jobs that this key has made, oldest first, deleted ones too: one for each day on which it came."""
    found: list[JobSpec | DeletedJob] = []
    while True:
        job_id = key.identifier(len(found))
        try:
            found.append(store.deleted(job_id) or store.folder(job_id).spec)
        except JobNotFoundError:
            return found
