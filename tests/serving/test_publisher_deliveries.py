"""Deliveries: who must know whether a record is in the queue is told, and nobody waits in vain."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import pytest

from common_lib.exceptions import QueueFullError, UnavailableError
from ml_workbench_service.contracts.queue import Enqueued, Outgoing
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue, ShardedQueue
from ml_workbench_service.serving.publisher import PredictionPublisher
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, prediction_queue_fixture, redis_server_fixture  # noqa: F401
from tests.serving.publishing import PATIENCE_S, Enqueue, drained, sending_fixture, until_sent  # noqa: F401


async def test_withdrawn_records_are_left_out_and_tell_nothing_about_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    is_away = True

    async def enqueue(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        if batch and is_away:
            raise UnavailableError("away")
        return Enqueued(len(batch)), []

    publisher = PredictionPublisher(enqueue)
    await publisher.start()
    with caplog.at_level(logging.INFO), pytest.raises(UnavailableError):
        await publisher.deliver(prediction_record(0), "", timeout_s=0.1)
    with caplog.at_level(logging.INFO):
        await until_sent(publisher)
    assert "is back" not in caplog.text
    publisher.publish(prediction_record(1), "")
    with pytest.raises(UnavailableError, match="is away"):
        await publisher.deliver(prediction_record(2), "", timeout_s=PATIENCE_S)
    await publisher.stop(drain_s=0)
    assert publisher.outbox_dropped == 0


async def test_those_who_must_know_find_out_by_themselves_that_the_queue_is_back() -> None:
    is_away = True
    taken: list[str] = []

    async def enqueue(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        if is_away:
            raise UnavailableError("away")
        taken.extend(item.record.prediction_id for item in batch)
        return Enqueued(len(batch)), []

    publisher = PredictionPublisher(enqueue)
    await publisher.start()
    with pytest.raises(UnavailableError):
        await publisher.deliver(prediction_record(0), "", timeout_s=0.05)
    await until_sent(publisher)  # it was withdrawn: nothing else asks the queue any more
    is_away = False
    await publisher.deliver(prediction_record(1), "", timeout_s=PATIENCE_S)
    await publisher.stop()
    assert taken == ["EUR/USD-1"]


async def test_a_delivery_returns_once_the_record_is_in_the_stream_in_its_turn(
    prediction_queue: RedisPredictionQueue, sending: Callable[..., Enqueue]
) -> None:
    prediction_queue.create_group("g")
    publisher = PredictionPublisher(sending(prediction_queue))
    await publisher.start()
    publisher.publish(prediction_record(0), "")
    await publisher.deliver(prediction_record(1), "")
    assert await asyncio.to_thread(drained, prediction_queue) == ["EUR/USD-0", "EUR/USD-1"]
    await publisher.stop()


async def test_a_refused_delivery_says_so_and_a_refused_record_is_only_counted(
    redis_server: RedisForTests, sending: Callable[..., Enqueue]
) -> None:
    queue = ShardedQueue(redis_server.url, capacity=2)
    queue.create_group("g")
    publisher = PredictionPublisher(sending(queue, "reject"))
    await publisher.start()
    for number in range(3):
        publisher.publish(prediction_record(number), "")
    with pytest.raises(QueueFullError) as caught:
        await publisher.deliver(prediction_record(3), "", timeout_s=PATIENCE_S)
    assert caught.value.retry_after_s
    assert queue.accounting().refused_by_symbol == {"EUR/USD": 2}
    assert await asyncio.to_thread(drained, queue.shards[0]) == ["EUR/USD-0", "EUR/USD-1"]
    await publisher.deliver(prediction_record(4), "", timeout_s=PATIENCE_S)
    await publisher.stop()
    queue.close()


async def test_blocked_records_wait_in_order_and_a_delivery_that_waits_too_long_is_withdrawn(
    redis_server: RedisForTests, sending: Callable[..., Enqueue]
) -> None:
    queue = ShardedQueue(redis_server.url, capacity=2)
    queue.create_group("g")
    publisher = PredictionPublisher(sending(queue, "wait"), batch_size=4)
    await publisher.start()
    for number in range(12):
        publisher.publish(prediction_record(number), "")
    with pytest.raises(QueueFullError):
        await publisher.deliver(prediction_record(99), "", timeout_s=0.2)
    assert queue.accounting().groups[0].dropped_oldest == 0
    found: list[str] = []
    deadline = time.monotonic() + PATIENCE_S
    while publisher.outbox or len(found) < 12:
        assert time.monotonic() < deadline
        found += await asyncio.to_thread(drained, queue.shards[0])
        await asyncio.sleep(0.005)
    await publisher.stop()
    assert found == [f"EUR/USD-{number}" for number in range(12)]
    assert publisher.outbox_dropped == 0
    queue.close()


async def test_a_delivery_fails_at_once_where_the_queue_is_known_to_be_away(
    prediction_queue: RedisPredictionQueue, redis_server: RedisForTests, sending: Callable[..., Enqueue]
) -> None:
    publisher = PredictionPublisher(sending(prediction_queue), outbox_capacity=3)
    await publisher.start()
    await asyncio.to_thread(redis_server.kill)
    with pytest.raises(UnavailableError, match=r"away|answer"):
        await publisher.deliver(prediction_record(0), "", timeout_s=PATIENCE_S / 10)
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="away"):
        await publisher.deliver(prediction_record(1), "", timeout_s=PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2
    for number in range(2, 8):
        publisher.publish(prediction_record(number, symbol="GBP/USD"), "")
    await publisher.stop(drain_s=0.05)
    assert publisher.outbox_dropped_by_symbol["GBP/USD"] >= 1
