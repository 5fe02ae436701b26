"""What the tests of the publisher share: writers that are closed, and waiting until the outbox is empty."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from ml_workbench_service.contracts.queue import Enqueued, FullMode, Outgoing
from ml_workbench_service.integrations.prediction_queue import QueueWriter, RedisPredictionQueue, ShardedQueue
from ml_workbench_service.serving.publisher import PredictionPublisher

Enqueue = Callable[[Sequence[Outgoing]], Awaitable[tuple[Enqueued, list[Outgoing]]]]
PATIENCE_S = 30.0
"""For what must come true; nothing is slower because of it."""


def drained(queue: RedisPredictionQueue) -> list[str]:
    """Every prediction id in the stream, in order; all are acknowledged."""
    ids: list[str] = []
    while batch := queue.consume("g", "a", block_ms=0):
        ids += [delivery.record.prediction_id for delivery in batch if delivery.record is not None]
        queue.ack("g", [delivery.entry_id for delivery in batch])
    return ids


@pytest.fixture(name="sending")
async def sending_fixture() -> AsyncIterator[Callable[..., Enqueue]]:
    """Writers to a queue, which are closed after the test."""
    writers: list[QueueWriter] = []

    def made(queue: RedisPredictionQueue | ShardedQueue, full: FullMode = "drop_oldest") -> Enqueue:
        writers.append(QueueWriter(queue._url, capacity=queue.capacity, full=full))
        return writers[-1].enqueue

    yield made
    for each in writers:
        await each.close()


async def until_sent(publisher: PredictionPublisher) -> None:
    """Waits until the outbox is empty."""
    deadline = time.monotonic() + PATIENCE_S
    while publisher.outbox:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
