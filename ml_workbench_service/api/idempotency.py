"""An Idempotency-Key's jobs: the first answer again for a day, then a new job under the next id."""

import asyncio
from datetime import timedelta

from common_lib.exceptions import IdempotencyMismatchError, JobNotFoundError
from ml_workbench_service.api.service import Idempotency
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobSpec
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


def _generations(store: JobStore, key: Idempotency) -> list[JobSpec]:
    """The jobs that this key has made, oldest first: one for each day on which it came."""
    found: list[JobSpec] = []
    while True:
        try:
            found.append(store.folder(key.identifier(len(found))).spec)
        except JobNotFoundError:
            return found
