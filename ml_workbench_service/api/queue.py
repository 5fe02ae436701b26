"""`/queue`, its dead letters, and `/replays`: accounting, what was given up, and the past sent through the queue."""

import asyncio
from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Body, Path, Response

from common_lib.exceptions import DataValidationError, NoConsumerError
from ml_workbench_service.agents.status import agent_group, read_agents
from ml_workbench_service.api.app_state import AppState, AppStateDep
from ml_workbench_service.api.middleware import CallerDep
from ml_workbench_service.api.pages import Cursor, Limit, cursor_of, named_by
from ml_workbench_service.api.submission import submit
from ml_workbench_service.contracts.agents import DEFAULT_AGENT_ID
from ml_workbench_service.contracts.contract import normal_symbol
from ml_workbench_service.contracts.errors import failures
from ml_workbench_service.contracts.jobs import JobAccepted, JobKind, ReplayRequest
from ml_workbench_service.contracts.queue import (
    DeadLetterList,
    GroupAccounting,
    QueueAccounting,
    Requeued,
    ShardAccounting,
    StreamAccounting,
)
from ml_workbench_service.integrations.prediction_queue import summed

router = APIRouter()
LetterId = Annotated[
    str, Path(pattern=r"^([0-9]{1,4}\.)?[0-9]{1,19}-[0-9]{1,19}$", description="As /queue/dead-letters shows it.")
]
REPLAY_EXAMPLE = {
    "model_id": "lstm_price_predictor",
    "symbols": ["EUR/USD", "GBP/USD"],
    "start_date": "2025-01-06T00:00:00Z",
    "end_date": "2025-02-06T00:00:00Z",
}


@router.get("/queue", tags=["queue"], summary="The queue's accounting", responses=failures(503))
async def show_queue(service: AppStateDep) -> QueueAccounting:
    """Length, outbox and each consumer group's counters; `balance` is 0 at every quiet moment."""
    queue = service.workbench.required_queue()
    shards = await service.queue_threads.run(queue.shard_accounting)
    accounting = summed(shards)
    default = next((group for group in accounting.groups if group.group == agent_group(DEFAULT_AGENT_ID)), None)
    outbox, dropped = await _outboxes(service)
    return QueueAccounting(
        length=accounting.length,
        capacity=queue.capacity,
        policy=service.queue_policy,
        outbox=outbox,
        outbox_dropped=dropped.total(),
        outbox_dropped_by_symbol=dict(dropped),
        refused=sum(accounting.refused_by_symbol.values()),
        refused_by_symbol=accounting.refused_by_symbol,
        dead_letters=accounting.num_dead_letters,
        oldest_age_s=accounting.oldest_age_s,
        num_shards=len(shards),
        groups=accounting.groups,
        shards=tuple(map(_shard, shards)) if len(shards) > 1 else (),
        **({} if default is None else {name: getattr(default, name) for name in GroupAccounting.model_fields}),
    )


async def _outboxes(service: AppState) -> tuple[int, Counter[str]]:
    """What waits for the queue in this process and in its predict workers, and by symbol what they had to drop."""
    publisher = service.publisher
    outbox, dropped = (publisher.outbox, Counter(publisher.outbox_dropped_by_symbol)) if publisher else (0, Counter())
    for report in await service.predict_workers.ask() if service.predict_workers is not None else ():
        outbox += report.outbox
        dropped.update(report.outbox_dropped_by_symbol)
    return outbox, dropped


def _shard(accounting: StreamAccounting) -> ShardAccounting:
    return ShardAccounting(**{name: getattr(accounting, name) for name in ShardAccounting.model_fields})


@router.get("/queue/dead-letters", tags=["queue"], summary="What was given up", responses=failures(503))
async def list_dead_letters(service: AppStateDep, limit: Limit = 50, cursor: Cursor = None) -> DeadLetterList:
    """Entries that an agent could not apply in five deliveries, oldest first, each with the reason."""
    queue = service.workbench.required_queue()
    after = None if cursor is None else named_by(cursor)
    letters = await service.queue_threads.run(queue.dead_letters, after, limit=limit + 1)
    more = len(letters) > limit
    return DeadLetterList(
        dead_letters=tuple(letters[:limit]), next_cursor=cursor_of(letters[limit - 1].id) if more else None
    )


@router.post(
    "/queue/dead-letters/{letter_id}/requeue",
    tags=["queue"],
    summary="Try a dead letter again",
    responses=failures(404, 409, 503),
)
async def requeue_dead_letter(letter_id: LetterId, service: AppStateDep) -> Requeued:
    """Puts it back as the newest entry, for the group that gave it up and for no other; nothing is evicted for it.

    A bar that is older than the newest one of its series by then is counted as late and realises nothing.
    """
    return await service.queue_threads.run(service.workbench.required_queue().requeue, letter_id)


@router.delete(
    "/queue/dead-letters/{letter_id}",
    tags=["queue"],
    status_code=204,
    summary="Throw a dead letter away",
    responses=failures(404, 503),
)
async def discard_dead_letter(letter_id: LetterId, service: AppStateDep) -> None:
    """Deletes it for good; its group's accounting goes on counting it."""
    await service.queue_threads.run(service.workbench.required_queue().discard, letter_id)


@router.post(
    "/replays",
    tags=["queue"],
    status_code=202,
    summary="Replay the past",
    responses=failures(404, 409, 413, 415, 503),
    response_model_exclude_unset=True,
)
async def replay_past(
    body: Annotated[ReplayRequest, Body(examples=[REPLAY_EXAMPLE])], service: AppStateDep, response: Response,
    caller: CallerDep,
) -> JobAccepted:  # fmt: skip
    """Streams past bars through the predict path into the queue, as a job; it waits for room instead of dropping."""
    await service.queue_threads.run(service.workbench.required_queue().ping)
    version, symbols = await asyncio.to_thread(_checked, body, service)
    request = body.model_copy(update={"symbols": tuple(symbols)})
    return await submit(JobKind.REPLAY, request, service, response, caller.client, plan={"version": version})


def _checked(body: ReplayRequest, service: AppState) -> tuple[str, list[str]]:
    """The version to replay and the symbols as we spell them; refuses what cannot work."""
    registry = service.workbench.registry
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
        raise NoConsumerError(
            "no agent is running to consume the replay; start one with POST /api/v1/agents, or the service with "
            "AGENT_AUTOSTART=true"
        )
    return card.version, symbols
