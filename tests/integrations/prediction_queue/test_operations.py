"""What an operator does to a queue full of entries: groups end, the capacity is lowered, a replica takes over."""

import os
import time
from pathlib import Path

import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.queue import Outgoing
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from tests.integrations.prediction_queue.test_promises import accounting_of, ids
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, every_redis_server_fixture  # noqa: F401


def test_a_group_ends_at_once_and_its_entries_page_by_page(redis_server: RedisForTests) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=2000)
    for group in ("g", "slow"):
        queue.create_group(group)
    queue.publish([prediction_record(number) for number in range(1300)])
    queue.ack("g", [delivery.entry_id for delivery in queue.consume("g", "a", count=1250, block_ms=0)])
    first = queue._run("remove_group", ["slow", "", 100])
    assert first[0] == 100
    accounting = queue.accounting()
    assert ([each.group for each in accounting.groups], accounting.length) == (["g"], 1200)
    assert (accounting.groups[0].undelivered, accounting.groups[0].balance) == (50, 0)
    queue.create_group("again")
    assert queue._run("remove_group", ["again-not", first[1], 100]) == [0, b""], "a group made since needs them all"
    assert queue.remove_group("again") == 1150, "what a call that was cut off left behind is found by the next"
    assert (queue.accounting().length, accounting_of(queue).balance) == (50, 0)
    assert queue.remove_group("never there") == 0
    queue.close()


def test_after_the_capacity_was_lowered_by_much_a_call_evicts_a_thousand_at_most(redis_server: RedisForTests) -> None:
    before = RedisPredictionQueue(redis_server.url, capacity=2000)
    before.create_group("g")
    before.publish([prediction_record(number) for number in range(1500)])
    after = RedisPredictionQueue(redis_server.url, capacity=10)
    for number, length in ((1500, 501), (1501, 10)):
        assert len(after.enqueue([Outgoing(prediction_record(number), "", time.time())]).evicted) <= 1000
        accounting = after.accounting()
        assert (accounting.length, accounting.groups[0].undelivered, accounting.groups[0].balance) == (
            length,
            length,
            0,
        )
    assert ids(after) == [f"EUR/USD-{number}" for number in range(1492, 1502)]
    before.close()
    after.close()


def test_a_client_that_meets_a_replica_looks_for_the_primary_anew(redis_server: RedisForTests, tmp_path: Path) -> None:
    queue = RedisPredictionQueue(redis_server.url, capacity=10)
    queue.create_group("g")
    queue.publish([prediction_record(0)])
    queue.consume("g", "a", block_ms=0)
    client = redis_server.client()
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    client.close()
    successor = RedisForTests(tmp_path / "successor")
    os.replace(successor.url.removeprefix("unix://"), redis_server.url.removeprefix("unix://"))
    try:
        with pytest.raises(UnavailableError):
            queue.publish([prediction_record(1)])
        assert queue.publish([prediction_record(1)]) == 1
        with pytest.raises(UnavailableError):
            queue.create_group("g")
        queue.create_group("g")
        with pytest.raises(UnavailableError):
            queue.consume("g", "a", block_ms=0)
        assert ids(queue) == ["EUR/USD-1"]
    finally:
        successor.stop()
        queue.close()
