"""`/resilience`: floods and faults on a private queue, as a job whose result is the proof."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Response

from common_lib.exceptions import ConflictError
from ml_workbench_service.api.app_state import AppStateDep
from ml_workbench_service.api.middleware import CallerDep
from ml_workbench_service.api.submission import submit
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.jobs import JobAccepted, JobKind
from ml_workbench_service.contracts.resilience import FaultList, ResilienceRequest
from ml_workbench_service.integrations.embedded_redis import find_redis_server
from ml_workbench_service.resilience import faults as faults  # loading the package registers every fault
from ml_workbench_service.resilience.fault import described, fault_named

router = APIRouter(prefix="/resilience", tags=["queue"])
EXAMPLE = {
    "scenario": "flood",
    "rate_per_s": 500,
    "duration_s": 5,
    "faults": ["redis_killed", "agent_killed"],
    "seed": 7,
}


@router.post(
    "",
    status_code=202,
    summary="Test the pipeline's promises",
    responses=failures(409, 413, 415, 503),
    response_model_exclude_unset=True,
)
async def test_resilience(
    body: Annotated[ResilienceRequest, Body(examples=[EXAMPLE])], service: AppStateDep, response: Response,
    caller: CallerDep,
) -> JobAccepted:  # fmt: skip
    """Floods a queue of the job's own while faults happen to it, and proves what became of every record.

    The service's own queue and agents are not touched; they share the machine with the test. The job's result is
    the report: a verdict on each invariant, throughput, latencies, depth over time, and a table for people. One test
    at a time.
    """
    for place, name in enumerate(body.faults):
        fault_named(name, path=f"body.faults.{place}")
    find_redis_server()
    if any(folder.spec.kind is JobKind.RESILIENCE for folder in await asyncio.to_thread(service.store.unfinished)):
        raise ConflictError("a resilience test is running, and two would disturb each other; GET /api/v1/jobs shows it")
    return await submit(JobKind.RESILIENCE, body, service, response, caller.client)


@router.get("/faults", summary="What can be broken", responses=failures())
async def list_faults() -> FaultList:
    """Every fault that a test can inject, with a sentence each."""
    return FaultList(faults=described())
