"""An Idempotency-Key's jobs: the first answer again for a day, then a new job under the next id."""

import asyncio
from datetime import timedelta
from typing import Any

from common_lib.exceptions import IdempotencyMismatchError, JobNotFoundError
from common_lib.logging import correlation_id
from ml_workbench_service.api.app_state import Idempotency
from ml_workbench_service.contracts.contract import Contract, utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.jobs.job import JobStore, new_job_id

KEPT = timedelta(hours=24)
"""How long an Idempotency-Key is remembered."""


async def answered_before(store: JobStore, key: Idempotency | None) -> JobSpec | None:
    """The job that this key made within the last day; raises IdempotencyMismatchError for another body."""
    if key is None:
        return None
    generations = await asyncio.to_thread(_generations, store, key)
    if not generations or utc_now() - generations[-1].created_at > KEPT:
        return None
    if generations[-1].body_digest != key.body_digest:
        raise IdempotencyMismatchError.at(
            "header.Idempotency-Key", "this key came with another body before; send a new key for a new request"
        )
    return generations[-1]


async def fresh_id(store: JobStore, key: Idempotency | None) -> str:
    """The id of a new job, made from the key where there is one."""
    if key is None:
        return new_job_id(utc_now())
    return key.identifier(len(await asyncio.to_thread(_generations, store, key)))


def spec_of(kind: JobKind, job_id: str, request: Contract, plan: dict[str, Any], *, key: Idempotency | None) -> JobSpec:
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
    )


def _generations(store: JobStore, key: Idempotency) -> list[JobSpec]:
    """The jobs that this key has made, oldest first: one for each day on which it came."""
    found: list[JobSpec] = []
    while True:
        try:
            found.append(store.folder(key.identifier(len(found))).spec)
        except JobNotFoundError:
            return found
