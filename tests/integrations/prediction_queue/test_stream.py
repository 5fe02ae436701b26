"""The prediction queue on a real Redis: its promises to producers and consumers, and accounting that balances."""

import logging
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from common_lib.exceptions import UnavailableError
from common_lib.logging import QUEUE_LOGGER
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.queue import (
    DEAD_LETTERS_STREAM,
    PREDICTIONS_STREAM,
    Delivery,
    GroupAccounting,
    Outgoing,
)
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, prediction_queue_fixture, redis_server_fixture  # noqa: F401


def accounting_of(queue: RedisPredictionQueue, group: str) -> GroupAccounting:
    return next(accounting for accounting in queue.accounting().groups if accounting.group == group)


def names(deliveries: list[Delivery]) -> list[str]:
    return [delivery.record.prediction_id for delivery in deliveries if delivery.record is not None]


def consume_all(queue: RedisPredictionQueue, group: str) -> list[Delivery]:
    deliveries: list[Delivery] = []
    while batch := queue.consume(group, "a", count=10, block_ms=0):
        deliveries += batch
        queue.ack(group, [delivery.entry_id for delivery in batch])
    return deliveries


def test_records_arrive_in_order_and_unchanged(prediction_queue: RedisPredictionQueue) -> None:
    records = [prediction_record(number, metadata={"correlation_id": f"c-{number}"}) for number in range(25)]
    prediction_queue.create_group("g")
    assert prediction_queue.publish(records) == 25
    deliveries = consume_all(prediction_queue, "g")
    assert [delivery.record for delivery in deliveries] == records
    assert [delivery.correlation_id for delivery in deliveries] == [f"c-{number}" for number in range(25)]
    assert all(delivery.enqueued_at is not None for delivery in deliveries)
    assert (prediction_queue.accounting().length, prediction_queue.accounting().oldest_age_s) == (0, None)
    assert accounting_of(prediction_queue, "g").acked == 25


def test_whatever_is_in_a_record_arrives_as_it_was(prediction_queue: RedisPredictionQueue) -> None:
    texts = ["", "\x1e", "a\x1eb\x1e", "\x00", '"\\', "%s {} %", "\u20ac \u2028", "\x1e" * 30]
    records = [
        prediction_record(number, label=text, target=None if number % 2 else text, warnings=(text,), price=None)
        for number, text in enumerate(texts)
    ]
    prediction_queue.create_group("g")
    assert prediction_queue.publish(records) == len(records)
    assert [delivery.record for delivery in consume_all(prediction_queue, "g")] == records


def test_at_capacity_the_oldest_is_dropped_and_counted(prediction_queue: RedisPredictionQueue) -> None:
    prediction_queue.create_group("g")
    prediction_queue.publish([prediction_record(number) for number in range(60)])
    held = prediction_queue.consume("g", "a", count=10, block_ms=0)
    prediction_queue.publish([prediction_record(number) for number in range(60, 130)])
    accounting = accounting_of(prediction_queue, "g")
    assert (accounting.enqueued, accounting.dropped_oldest, accounting.pending, accounting.undelivered) == (
        130,
        20,
        10,
        100,
    )
    assert prediction_queue.ack("g", [delivery.entry_id for delivery in held]) == 10, "what is in hand is not evicted"
    assert accounting_of(prediction_queue, "g").balance == 0
    assert names(consume_all(prediction_queue, "g")) == [f"EUR/USD-{number}" for number in range(30, 130)]


def test_without_dropping_only_what_has_room_is_taken(prediction_queue: RedisPredictionQueue) -> None:
    prediction_queue.create_group("g")
    records = [prediction_record(number) for number in range(130)]
    assert prediction_queue.publish(records, full="wait") == 100
    assert prediction_queue.publish(records[100:], full="wait") == 0
    consume_all(prediction_queue, "g")
    assert prediction_queue.publish(records[100:], full="wait") == 30
    assert accounting_of(prediction_queue, "g").dropped_oldest == 0


def test_a_record_published_again_is_a_duplicate_and_adds_no_entry(prediction_queue: RedisPredictionQueue) -> None:
    prediction_queue.create_group("g")
    records = [prediction_record(number) for number in range(5)]
    prediction_queue.publish(records)
    assert prediction_queue.publish(records, full="wait") == 5
    assert prediction_queue.accounting().length == 5
    assert accounting_of(prediction_queue, "g").duplicates == 5


def test_the_dedupe_window_is_bounded(redis_server: RedisForTests) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=100, dedupe_window=3)
    queue.create_group("g")
    queue.publish([prediction_record(number) for number in range(5)])
    assert queue.publish([prediction_record(0), prediction_record(4)]) == 2
    accounting = accounting_of(queue, "g")
    assert (accounting.enqueued, accounting.duplicates) == (6, 1)
    queue.close()


def test_a_restarted_consumer_gets_its_pending_entries_first(prediction_queue: RedisPredictionQueue) -> None:
    prediction_queue.create_group("g")
    prediction_queue.publish([prediction_record(number) for number in range(6)])
    first = prediction_queue.consume("g", "a", count=4, block_ms=0)
    prediction_queue.ack("g", [first[0].entry_id])
    again = RedisPredictionQueue(_url(prediction_queue), capacity=100)
    assert names(again.consume("g", "a", count=2, block_ms=0)) == ["EUR/USD-1", "EUR/USD-2"]
    assert names(again.consume("g", "a", count=2, block_ms=0)) == ["EUR/USD-3"]
    assert names(again.consume("g", "a", count=9, block_ms=0)) == ["EUR/USD-4", "EUR/USD-5"]
    again.close()


def test_a_new_group_starts_from_the_present_length_and_every_group_gets_everything(
    prediction_queue: RedisPredictionQueue,
) -> None:
    prediction_queue.create_group("early")
    prediction_queue.publish([prediction_record(number) for number in range(4)])
    taken = prediction_queue.consume("early", "a", block_ms=0)
    prediction_queue.ack("early", [taken[1].entry_id])
    prediction_queue.create_group("late")
    prediction_queue.create_group("late")
    assert accounting_of(prediction_queue, "late").enqueued == 3
    assert names(consume_all(prediction_queue, "late")) == ["EUR/USD-0", "EUR/USD-2", "EUR/USD-3"]
    assert prediction_queue.accounting().length == 3, "an entry that a group still needs was deleted"
    prediction_queue.ack("early", [delivery.entry_id for delivery in taken])
    assert prediction_queue.accounting().length == 0
    assert all(accounting.balance == 0 for accounting in prediction_queue.accounting().groups)


def test_a_dead_letter_keeps_the_record_and_the_reason(
    prediction_queue: RedisPredictionQueue, redis_server: RedisForTests
) -> None:
    prediction_queue.create_group("g")
    prediction_queue.publish([prediction_record(0)])
    (delivery,) = prediction_queue.consume("g", "a", block_ms=0)
    prediction_queue.dead_letter("g", delivery, "no costs")
    prediction_queue.dead_letter("g", delivery, "no costs")
    client = redis_server.client()
    ((_, fields),) = client.xrange(DEAD_LETTERS_STREAM)
    client.close()
    assert (fields[b"reason"], fields[b"group"], fields[b"prediction_id"]) == (b"no costs", b"g", b"EUR/USD-0")
    accounting = accounting_of(prediction_queue, "g")
    assert (accounting.dead_lettered, accounting.acked, accounting.balance, prediction_queue.accounting().length) == (
        1,
        0,
        0,
        0,
    )


def test_an_entry_that_is_no_record_is_delivered_with_its_fault(
    prediction_queue: RedisPredictionQueue, redis_server: RedisForTests
) -> None:
    prediction_queue.create_group("g")
    client = redis_server.client()
    client.xadd(PREDICTIONS_STREAM, {"symbol": b"\xff{", "enqueued_at": "yesterday"})
    client.close()
    (delivery,) = prediction_queue.consume("g", "a", block_ms=0)
    assert delivery.record is None
    assert "no prediction record" in delivery.fault


def test_consuming_waits_for_a_record_and_no_longer_than_asked(prediction_queue: RedisPredictionQueue) -> None:
    started = time.monotonic()
    prediction_queue.create_group("g")
    assert prediction_queue.consume("g", "a", block_ms=100) == []
    assert time.monotonic() - started > 0.09
    timer = threading.Timer(0.1, prediction_queue.publish, [[prediction_record(0)]])
    timer.start()
    assert names(prediction_queue.consume("g", "a", block_ms=60_000)) == ["EUR/USD-0"]
    timer.join()


def test_a_server_that_lost_everything_gets_its_group_and_scripts_again(
    prediction_queue: RedisPredictionQueue, redis_server: RedisForTests
) -> None:
    prediction_queue.create_group("g")
    prediction_queue.publish([prediction_record(0)])
    prediction_queue.consume("g", "a", block_ms=0)
    client = redis_server.client()
    client.flushall()
    client.script_flush()
    client.close()
    assert prediction_queue.consume("g", "a", block_ms=0) == []
    prediction_queue.publish([prediction_record(1)])
    assert names(prediction_queue.consume("g", "a", block_ms=0)) == ["EUR/USD-1"]
    accounting = accounting_of(prediction_queue, "g")
    assert (accounting.enqueued, accounting.pending, accounting.balance) == (1, 1, 0)


def test_a_killed_server_is_an_unavailable_error_and_loses_nothing(
    prediction_queue: RedisPredictionQueue, redis_server: RedisForTests
) -> None:
    prediction_queue.create_group("g")
    prediction_queue.publish([prediction_record(number) for number in range(4)])
    prediction_queue.ack("g", [prediction_queue.consume("g", "a", count=2, block_ms=0)[0].entry_id])
    redis_server.kill()
    with pytest.raises(UnavailableError, match="REDIS_URL"):
        prediction_queue.publish([prediction_record(9)])
    with pytest.raises(UnavailableError):
        prediction_queue.consume("g", "a", block_ms=0)
    redis_server.start()
    assert names(consume_all(prediction_queue, "g")) == ["EUR/USD-1", "EUR/USD-2", "EUR/USD-3"]
    assert accounting_of(prediction_queue, "g").acked == 4


def test_whoever_only_looks_gives_up_soon_where_the_server_hangs(
    prediction_queue: RedisPredictionQueue, redis_server: RedisForTests
) -> None:
    questions = (
        prediction_queue.accounting,
        prediction_queue.ping,
        lambda: prediction_queue.dead_letters.after(None, limit=1),
        lambda: prediction_queue.dead_letters.discard("1-0"),
    )
    assert redis_server.embedded.pid is not None
    os.kill(redis_server.embedded.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(len(questions)) as threads:
            failures = [answer.exception() for answer in [threads.submit(ask) for ask in questions]]
    finally:
        os.kill(redis_server.embedded.pid, signal.SIGCONT)
    assert all(isinstance(failure, UnavailableError) for failure in failures)
    assert 1.5 < time.monotonic() - began < 60


def test_a_call_whose_answer_was_lost_counts_what_it_refused_once(
    redis_server: RedisForTests,
) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=1)
    queue.publish([prediction_record(0)])
    assert queue._publishing is not None
    assert queue._publishing.connection is not None
    queue._publishing.connection._sock.settimeout(0.2)  # type: ignore[attr-defined]
    assert redis_server.embedded.pid is not None
    os.kill(redis_server.embedded.pid, signal.SIGSTOP)
    thaw = threading.Timer(0.5, os.kill, [redis_server.embedded.pid, signal.SIGCONT])
    thaw.start()  # in time for whoever would try again
    with pytest.raises(UnavailableError, match="Timeout"):
        queue.publish([prediction_record(1)], full="reject")
    thaw.join()
    deadline = time.monotonic() + 30
    while not (refused := queue.accounting().refused_by_symbol) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert refused == {"EUR/USD": 1}
    queue.close()


def test_the_undelivered_count_is_right_on_both_sides_of_long_backlogs(redis_server: RedisForTests) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=2000)
    for group in ("fast", "slow"):
        queue.create_group(group)
    queue.publish([prediction_record(number) for number in range(1001)])
    assert len(queue.consume("fast", "a", count=700, block_ms=0)) == 700
    assert len(queue.consume("slow", "a", count=130, block_ms=0)) == 130
    assert accounting_of(queue, "fast").undelivered == 301
    assert accounting_of(queue, "slow").undelivered == 871
    queue.close()


def test_every_enqueue_dequeue_and_drop_is_logged_with_its_latency(
    redis_server: RedisForTests, caplog: pytest.LogCaptureFixture
) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=1)
    queue.create_group("g")
    with caplog.at_level(logging.INFO, logger=QUEUE_LOGGER):
        logging.getLogger(QUEUE_LOGGER).addHandler(caplog.handler)
        queue.enqueue([Outgoing(prediction_record(number), f"c{number}", time.time() - 0.5) for number in range(2)])
        queue.consume("g", "a", block_ms=0)
        logging.getLogger(QUEUE_LOGGER).removeHandler(caplog.handler)
    lines = {(line.message, getattr(line, "prediction_id", None)): line for line in caplog.records}
    assert {key[0] for key in lines} == {"enqueue", "drop_oldest", "dequeue"}
    assert 500 <= lines["enqueue", "EUR/USD-0"].latency_ms < 5000  # type: ignore[attr-defined]
    dequeue = lines["dequeue", "EUR/USD-1"]
    assert 0 <= dequeue.latency_ms < 5000  # type: ignore[attr-defined]
    assert dequeue.correlation_id == "c1"  # type: ignore[attr-defined]
    queue.close()


def test_a_reader_that_had_to_wait_waits_first_the_next_time_and_misses_nothing(
    prediction_queue: RedisPredictionQueue, redis_server: RedisForTests
) -> None:
    prediction_queue.create_group("g")

    def soon(number: int) -> threading.Timer:
        timer = threading.Timer(0.05, prediction_queue.publish, [[prediction_record(number)]])
        timer.start()
        return timer

    def read(block_ms: int = 2000) -> list[str]:
        found = prediction_queue.consume("g", "a", block_ms=block_ms)
        return [each.record.prediction_id for each in found if each.record is not None]

    def waits() -> bool:
        return prediction_queue._cursors["g", "a"].waits

    for number in range(3):
        timer = soon(number)
        assert read() == [f"EUR/USD-{number}"]
        timer.join()
        assert waits()
    prediction_queue.publish([prediction_record(number) for number in (3, 4)])
    assert read() == ["EUR/USD-3", "EUR/USD-4"]
    timer = soon(5)
    assert read() == ["EUR/USD-5"]
    timer.join()
    assert read(block_ms=0) == []
    prediction_queue.publish([prediction_record(6)])
    assert read(block_ms=0) == ["EUR/USD-6"]
    timer = soon(7)
    assert read() == ["EUR/USD-7"]
    timer.join()
    began = time.monotonic()
    assert read(block_ms=200) == []
    assert time.monotonic() - began >= 0.19
    assert not waits(), "nothing came: it looks first"
    timer = soon(8)
    assert read() == ["EUR/USD-8"]
    timer.join()
    redis_server.client().flushall()
    prediction_queue.publish([prediction_record(9)])
    deadline = time.monotonic() + 30
    while not (found := read(block_ms=100)):
        assert time.monotonic() < deadline
    assert found == ["EUR/USD-9"]


def test_entry_ids_carry_the_time(prediction_queue: RedisPredictionQueue) -> None:
    prediction_queue.create_group("g")
    prediction_queue.publish([prediction_record(0)])
    (delivery,) = prediction_queue.consume("g", "a", block_ms=0)
    assert delivery.enqueued_at is not None
    assert abs(int(delivery.entry_id.split("-")[0]) - to_ms(delivery.enqueued_at)) < 2000
    assert prediction_queue.accounting().oldest_age_s is not None
    assert prediction_queue.ping() < 1.0


def _url(queue: RedisPredictionQueue) -> str:
    return "unix://" + queue._redis.connection_pool.connection_kwargs["path"]
