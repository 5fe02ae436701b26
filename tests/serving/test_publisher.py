"""The publisher: never blocks or fails a prediction, batches, and keeps order through an outage."""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from common_lib.exceptions import PredictionError, UnavailableError
from ml_workbench_service.contracts.queue import Enqueued, Outgoing
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.serving.publisher import PredictionPublisher
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, prediction_queue_fixture, redis_server_fixture  # noqa: F401
from tests.serving.publishing import PATIENCE_S, Enqueue, drained, sending_fixture, until_sent  # noqa: F401


async def test_records_reach_the_stream_in_order_with_their_correlation_ids(
    prediction_queue: RedisPredictionQueue, sending: Callable[..., Enqueue]
) -> None:
    prediction_queue.create_group("g")
    publisher = PredictionPublisher(sending(prediction_queue))
    publisher.publish(prediction_record(0), "before the start")
    await publisher.start()
    for number in range(1, 100):
        publisher.publish(prediction_record(number), f"c{number}")
    await until_sent(publisher)
    await publisher.stop()
    deliveries = prediction_queue.consume("g", "a", count=200, block_ms=0)
    assert [d.record and d.record.prediction_id for d in deliveries] == [f"EUR/USD-{n}" for n in range(100)]
    assert [d.correlation_id for d in deliveries] == ["before the start", *(f"c{n}" for n in range(1, 100))]


async def test_what_comes_together_goes_in_one_call_of_at_most_256() -> None:
    sizes: list[int] = []

    async def enqueue(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        sizes.append(len(batch))
        return Enqueued(len(batch)), []

    publisher = PredictionPublisher(enqueue)
    await publisher.start()
    for number in range(10):
        publisher.publish(prediction_record(number), "")
    await until_sent(publisher)
    assert sizes == [10]
    for number in range(600):
        publisher.publish(prediction_record(number), "")
    await until_sent(publisher)
    await publisher.stop()
    assert sizes[1:] == [256, 256, 88]


async def test_a_record_leaves_at_once_while_the_loop_has_time_and_waits_for_company_where_it_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[tuple[float, int]] = []

    async def enqueue(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        left.append((time.monotonic(), len(batch)))
        return Enqueued(len(batch)), []

    publisher = PredictionPublisher(enqueue, linger_s=5.0)
    await publisher.start()
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    for number in range(3):
        await asyncio.sleep(0.02)
        publisher.publish(prediction_record(number), "")
        while publisher.outbox:
            await asyncio.sleep(0)
    assert [size for _, size in left] == [1, 1, 1]
    publisher._linger_s = 1.0
    monkeypatch.setattr(time, "thread_time", time.monotonic)  # it works all the time
    await asyncio.sleep(0.02)
    published_at = time.monotonic()
    for number in (3, 4):
        publisher.publish(prediction_record(number), "")
        await asyncio.sleep(0.02)
    await until_sent(publisher)  # by the timer
    publisher.publish(prediction_record(5), "")
    time.sleep(1.1)  # the loop is busy: no timer comes in between
    publisher.publish(prediction_record(6), "")  # finds it old enough
    await until_sent(publisher)
    await publisher.stop()
    assert [size for _, size in left[3:]] == [2, 2]
    assert left[3][0] - published_at >= 1.0
    assert left[4][0] - left[3][0] >= 1.1


async def test_what_comes_while_a_batch_is_on_its_way_leaves_together_afterwards() -> None:
    sizes: list[int] = []
    answered = asyncio.Event()

    async def enqueue(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        sizes.append(len(batch))
        await answered.wait()
        return Enqueued(len(batch)), []

    publisher = PredictionPublisher(enqueue)
    await publisher.start()
    for number in range(5):
        publisher.publish(prediction_record(number), "")
        await asyncio.sleep(0.02)
    assert sizes == [1]
    answered.set()
    await until_sent(publisher)
    await publisher.stop()
    assert sizes == [1, 4]


async def test_an_outage_keeps_the_newest_records_and_their_order(
    prediction_queue: RedisPredictionQueue, redis_server: RedisForTests, sending: Callable[..., Enqueue]
) -> None:
    prediction_queue.create_group("g")
    publisher = PredictionPublisher(sending(prediction_queue), outbox_capacity=50)
    await publisher.start()
    publisher.publish(prediction_record(0), "")
    await until_sent(publisher)
    await asyncio.to_thread(redis_server.kill)
    slowest = 0.0
    for number in range(1, 81):
        started = time.perf_counter()
        publisher.publish(prediction_record(number), "")
        slowest = max(slowest, time.perf_counter() - started)
        await asyncio.sleep(0.001)
    assert slowest < 1.0, "a busy machine takes its time; whoever waits for Redis takes seconds"
    deadline = time.monotonic() + PATIENCE_S  # a batch in flight comes back when its call has failed
    while publisher.outbox > 50 and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert (publisher.outbox, publisher.outbox_dropped) == (50, 30)
    await asyncio.to_thread(redis_server.start)
    await until_sent(publisher)
    await publisher.stop()
    assert drained(prediction_queue) == ["EUR/USD-0", *(f"EUR/USD-{number}" for number in range(31, 81))]


async def test_a_queue_that_hangs_blocks_neither_publish_nor_stop() -> None:
    hangs = asyncio.Event()

    async def enqueue(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        hangs.set()
        await asyncio.sleep(PATIENCE_S)
        return Enqueued(len(batch)), []

    publisher = PredictionPublisher(enqueue)
    await publisher.start()
    publisher.publish(prediction_record(0), "")
    await asyncio.wait_for(hangs.wait(), PATIENCE_S)
    started = time.monotonic()
    publisher.publish(prediction_record(1), "")
    await publisher.stop(drain_s=0.1)
    assert time.monotonic() - started < PATIENCE_S / 3
    assert publisher.outbox == 2, "records that were not confirmed count as unsent"


async def test_a_fault_inside_the_queue_ends_nothing() -> None:
    calls: list[int] = []

    async def enqueue(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        calls.append(len(batch))
        if len(calls) == 1:
            raise ValueError("a bug")
        return Enqueued(len(batch)), []

    publisher = PredictionPublisher(enqueue)
    await publisher.start()
    publisher.publish(prediction_record(0), "")
    await until_sent(publisher)
    await publisher.stop()
    assert calls == [1, 1]


async def test_a_record_that_cannot_be_written_is_dropped_alone_and_those_behind_it_go_on(
    prediction_queue: RedisPredictionQueue, caplog: pytest.LogCaptureFixture, sending: Callable[..., Enqueue]
) -> None:
    prediction_queue.create_group("g")
    publisher = PredictionPublisher(sending(prediction_queue))
    bad = prediction_record(1, symbol="GBP/USD", metadata={"data_source": "file:///caf\udce9"})
    for record in (prediction_record(0), bad, *(prediction_record(number) for number in range(2, 6))):
        publisher.publish(record, "")
    await publisher.start()
    await until_sent(publisher)
    assert drained(prediction_queue) == [f"EUR/USD-{number}" for number in (0, 2, 3, 4, 5)]
    assert (publisher.outbox_dropped, dict(publisher.outbox_dropped_by_symbol)) == (1, {"GBP/USD": 1})
    assert len([line for line in caplog.records if "prediction GBP/USD-1 cannot" in line.getMessage()]) == 1
    with pytest.raises(PredictionError, match="GBP/USD-1 cannot be written"):
        await publisher.deliver(bad, "", timeout_s=PATIENCE_S)
    await publisher.deliver(prediction_record(6), "", timeout_s=PATIENCE_S)
    await publisher.stop()
    assert publisher.outbox_dropped == 2


async def test_records_tried_one_by_one_keep_their_order_through_an_outage_and_want_of_room() -> None:
    taken: list[str] = []
    answers = iter(["bug", "take", "away", "bug", "take", "full", "bug", "bug", "take"])

    async def enqueue(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        answer = next(answers)
        if answer == "bug":
            raise ValueError("a bug")
        if answer == "away":
            raise UnavailableError("away")
        if answer == "full":
            return Enqueued(0), list(batch)
        taken.extend(item.record.prediction_id for item in batch)
        return Enqueued(len(batch)), []

    publisher = PredictionPublisher(enqueue)
    for number in range(4):
        publisher.publish(prediction_record(number), "")
    await publisher.start()
    await until_sent(publisher)
    await publisher.stop()
    assert taken == ["EUR/USD-0", "EUR/USD-1", "EUR/USD-3"]
    assert publisher.outbox_dropped == 1


async def test_a_queue_that_stays_full_is_asked_ever_less_often_until_there_is_progress() -> None:
    asked_at: list[float] = []
    num_taken = 0

    async def enqueue(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        asked_at.append(time.monotonic())
        return Enqueued(num_taken), list(batch[num_taken:])

    async def until_asked(times: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while len(asked_at) < times:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    publisher = PredictionPublisher(enqueue)
    for number in range(40):
        publisher.publish(prediction_record(number), "")
    await publisher.start()
    await until_asked(8)
    num_taken = 1
    await until_asked(20)
    await publisher.stop(drain_s=0)
    gaps = [after - before for before, after in pairwise(asked_at)]
    for gap, least in zip(gaps, (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.2), strict=False):
        assert gap >= 0.9 * least
    assert min(gaps[8:]) < 0.1


async def test_threads_may_publish_too_and_stop_drains(
    prediction_queue: RedisPredictionQueue, sending: Callable[..., Enqueue]
) -> None:
    prediction_queue.create_group("g")
    publisher = PredictionPublisher(sending(prediction_queue))
    await publisher.start()
    await asyncio.gather(*(asyncio.to_thread(publisher.publish, prediction_record(n), "") for n in range(20)))
    await publisher.stop()
    publisher.publish(prediction_record(99), "")
    assert publisher.outbox == 1
    assert sorted(drained(prediction_queue)) == sorted(f"EUR/USD-{n}" for n in range(20))


async def test_each_record_that_left_the_outbox_is_observed_once(
    prediction_queue: RedisPredictionQueue, sending: Callable[..., Enqueue]
) -> None:
    seconds: list[float] = []
    publisher = PredictionPublisher(sending(prediction_queue), observe=seconds.extend)
    await publisher.start()
    for number in range(100):
        publisher.publish(prediction_record(number), "")
    await until_sent(publisher)
    await publisher.stop()
    assert len(seconds) == 100
    assert all(0 <= each < PATIENCE_S for each in seconds)
