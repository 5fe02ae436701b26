"""Predict parts: what answers predictions where another process writes, in a worker of this machine (`predict_worker`)
and in a replica on another one (`predict_replica`): what is live comes through Redis, what is answered leaves by it.
"""

import asyncio
import secrets
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ml_workbench_service import accelerators
from ml_workbench_service.api.app_state import PredictState
from ml_workbench_service.api.metrics import Metrics
from ml_workbench_service.contracts.queue import FullMode, QueuePolicy
from ml_workbench_service.integrations.replicas.handover import MOST_ENTRIES, MOST_ITEMS, HandoverOutbox
from ml_workbench_service.integrations.replicas.serving_state import ServingStateReader
from ml_workbench_service.resources import Workbench, close_workbench
from ml_workbench_service.serving.handing_over import HandingOver, MirroredIntervals
from ml_workbench_service.serving.model_server import ModelServer
from ml_workbench_service.serving.publisher import PredictionPublisher
from ml_workbench_service.stopping import stopping_event
from ml_workbench_service.workflows.follow_serving_state import ServingStateFollower


class Bounds(NamedTuple):
    """What waits for the ledger at most: items in memory, entries in Redis (`HandoverOutbox`)."""

    most_items: int
    most_entries: int


BOUNDS = Bounds(MOST_ITEMS, MOST_ENTRIES)


@dataclass(frozen=True)
class Parts:
    """What it is made of, while it serves."""

    state: PredictState
    follower: ServingStateFollower
    outbox: HandoverOutbox


async def open_parts(
    workbench: Workbench,
    policy: QueuePolicy,
    stack: AsyncExitStack,
    *,
    adaptive: Path | None = None,
    trust: Callable[[bytes], None] | None = None,
    stops_at: Sequence[signal.Signals] = (signal.SIGTERM,),
    bounds: Bounds = BOUNDS,
) -> Parts:
    """Opens everything, and closes the workbench after it; the follower is started.

    Args:
        adaptive: the folder in which the control process keeps live intervals, where that is on this machine.
        trust: takes over the public keys that it names; of a replica alone.
        bounds: of what waits for the ledger.
    """
    redis_url = workbench.addresses.redis
    assert redis_url is not None, "the control process, or the settings' check, has seen to it"
    stack.callback(close_workbench, workbench)
    metrics = Metrics()
    publisher = await _publisher(policy, workbench, metrics, stack)
    outbox = HandoverOutbox(
        redis_url, secrets.token_hex(8), most_items=bounds.most_items, most_entries=bounds.most_entries
    )
    await outbox.start()
    stack.push_async_callback(outbox.stop)
    handing_over = HandingOver(outbox.put)
    intervals = MirroredIntervals(handing_over, adaptive)
    follower: ServingStateFollower | None = None
    model_server = ModelServer(
        workbench.registry,
        live=lambda model_id: None if follower is None else follower.live(model_id),
        providers=accelerators.inference_providers(workbench.accelerator),
        intervals=intervals,
        ledger=handing_over,
    )
    stack.callback(model_server.close)
    metrics.watch_line(model_server.line)
    follower = ServingStateFollower(
        ServingStateReader(redis_url), workbench.history, warm=model_server.warm, adopt=intervals.adopt,
        trust=trust or (lambda payload: None), remembers=trust is not None,
    )  # fmt: skip
    await asyncio.to_thread(follower.start)
    stack.push_async_callback(asyncio.to_thread, follower.stop)
    handing_over.start()
    stopping = stopping_event(stack, at=stops_at)
    state = PredictState(
        workbench=workbench, model_server=model_server, publisher=publisher, metrics=metrics, stopping=stopping
    )
    return Parts(state, follower, outbox)


async def _publisher(
    policy: QueuePolicy, workbench: Workbench, metrics: Metrics, stack: AsyncExitStack
) -> PredictionPublisher:
    full: FullMode = "wait" if policy == "block" else policy
    writer = workbench.required_queue().writer(full)
    stack.push_async_callback(writer.close)
    publisher = PredictionPublisher(writer.enqueue, observe=metrics.enqueue.observe)
    metrics.watch_queue(None, publisher)
    await publisher.start()
    stack.push_async_callback(publisher.stop)
    return publisher
