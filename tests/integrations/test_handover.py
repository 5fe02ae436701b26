"""The hand-over stream where its connection is lost in the middle: whoever was answered is in it, once."""

import asyncio
import json

import redis
import uvloop

from ml_workbench_service.contracts.handover import HANDOVER_STREAM
from ml_workbench_service.integrations.replicas.handover import HandoverOutbox
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401

TURNS = range(4)
"""Of the loop, between a connection's loss and the next parcel: in one of them it is closed and nobody knows of it."""


async def handed_over(url: str) -> None:
    outbox = HandoverOutbox(url, "worker")
    await outbox.start()
    try:
        for turns in TURNS:
            outbox.put([b'"first"'])
            while outbox.num_waiting:
                await asyncio.sleep(0.01)
            outbox._connection._writer.transport.abort()
            for _ in range(turns):
                await asyncio.sleep(0)
            outbox.put([b"%d" % number for number in range(600)])
            assert outbox.num_waiting == 600
            while outbox.num_waiting:
                await asyncio.sleep(0.01)
    finally:
        await outbox.stop()


def test_a_connection_that_was_lost_a_moment_ago_costs_no_item(redis_server: RedisForTests) -> None:
    uvloop.run(handed_over(redis_server.url))
    entries = redis.Redis.from_url(redis_server.url).xrange(HANDOVER_STREAM)
    found = [item for _, fields in entries for item in json.loads(fields[b"items"])]
    assert found == ["first", *range(600)] * len(TURNS)
