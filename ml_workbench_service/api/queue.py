"""`/queue` and `/replays`: the queue's books, and the past streamed through it."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Response

from common_lib.exceptions import DataValidationError, NoConsumerError
from common_lib.logging import correlation_id
from ml_workbench_service.agents.state import agent_group, read_agents
from ml_workbench_service.api.service import Service, ServiceDep
from ml_workbench_service.contracts.agents import DEFAULT_AGENT_ID
from ml_workbench_service.contracts.contract import normal_symbol, utc_now
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.jobs import Job, JobKind, JobSpec, ReplayRequest
from ml_workbench_service.contracts.queue import QueueBooks
from ml_workbench_service.jobs.job import new_job_id

router = APIRouter()
REPLAY_EXAMPLE = {
    "model_id": "lstm_price_predictor",
    "symbols": ["EUR/USD", "GBP/USD"],
    "start_date": "2025-01-06T00:00:00Z",
    "end_date": "2025-02-06T00:00:00Z",
}


@router.get("/queue", tags=["queue"], summary="The queue's books", responses=failures(503))
async def show_queue(service: ServiceDep) -> QueueBooks:
    """Length, outbox and each consumer group's counters; `balance` is 0 at every quiet moment."""
    queue = service.workbench.required_queue()
    length, oldest_age_s, groups = await asyncio.to_thread(queue.books)
    default = next((group for group in groups if group.group == agent_group(DEFAULT_AGENT_ID)), None)
    return QueueBooks(
        length=length,
        capacity=queue.capacity,
        policy="drop_oldest",
        outbox=service.publisher.outbox if service.publisher else 0,
        outbox_dropped=service.publisher.outbox_dropped if service.publisher else 0,
        oldest_age_s=oldest_age_s,
        groups=tuple(groups),
        **(default.model_dump() if default else {}),
    )


@router.post(
    "/replays", tags=["queue"], status_code=202, summary="Replay the past", responses=failures(404, 409, 413, 415, 503)
)
async def replay(
    body: Annotated[ReplayRequest, Body(examples=[REPLAY_EXAMPLE])], service: ServiceDep, response: Response
) -> Job:
    """Streams past bars through the predict path into the queue, as a job; it waits for room instead of dropping."""
    version, symbols = await asyncio.to_thread(_checked, body, service)
    spec = JobSpec(
        id=new_job_id(utc_now()),
        kind=JobKind.REPLAY,
        request=body.model_dump(mode="json", exclude_unset=True) | {"symbols": symbols},
        plan={"version": version},
        created_at=utc_now(),
        correlation_id=correlation_id(),
    )
    job = await service.supervisor.submit(spec)
    response.headers["Location"] = f"/api/v1/jobs/{spec.id}"
    response.headers["Retry-After"] = "1"
    return job


def _checked(body: ReplayRequest, service: Service) -> tuple[str, list[str]]:
    """The version to replay and the symbols as we spell them; refuses what cannot work."""
    registry = service.workbench.registry
    service.workbench.required_queue().ping()
    if body.end_date <= body.start_date:
        raise DataValidationError.at("body.end_date", "`end_date` must be later than `start_date`")
    card = registry.card(body.model_id, body.version) if body.version else registry.served_card(body.model_id)
    symbols = []
    for number, text in enumerate(body.symbols):
        try:
            symbols.append(normal_symbol(text))
        except ValueError as error:
            raise DataValidationError.at(f"body.symbols.{number}", str(error)) from error
        if symbols[-1] not in card.symbols:
            raise DataValidationError.at(
                f"body.symbols.{number}", f"{card.id} {card.version} knows {', '.join(card.symbols)}; replay those"
            )
    if len(set(symbols)) != len(symbols):
        raise DataValidationError.at("body.symbols", "a symbol stands twice; list each once")
    if not any(agent.status == "running" for agent in read_agents(service.workbench.state_dir)):
        raise NoConsumerError("no agent is running to consume the replay; start the service with AGENT_AUTOSTART=true")
    return card.version, symbols
