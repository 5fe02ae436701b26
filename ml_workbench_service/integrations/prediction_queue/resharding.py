"""Resharding: what waits in streams of another number of shards goes into the present ones when the service starts.

Only a service that changed PREDICTION_QUEUE_SHARDS has such streams. They move before anything new is published, so
that each symbol keeps its order, and beyond the capacity where need be: the groups move first, so that what gives way
afterwards is counted. Each entry is published by its prediction id and deleted behind it: a move that was cut off goes
on at the next start and doubles nothing. Dead letters move too.
"""

import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ml_workbench_service.contracts.queue import PREDICTIONS_STREAM, Outgoing, shard_of
from ml_workbench_service.integrations.prediction_queue.connection import as_any, client, translated
from ml_workbench_service.integrations.prediction_queue.queue_log import delivery_of
from ml_workbench_service.integrations.prediction_queue.shards import ShardedQueue

STREAM_PATTERN = re.compile(re.escape(PREDICTIONS_STREAM) + r"(:shard\d+of\d+)?")
PAGE = 64
BOUNDLESS = 10**9  # entries: nothing gives way to what is moved

log = logging.getLogger(__name__)


def move_to(queue: ShardedQueue, url: str) -> int:
    """Moves every waiting entry of other layouts; returns how many there were.

    An entry that is no record becomes a dead letter of the group `moved`. What an agent has learnt belongs to its
    shard, so the agents of the new layout begin with what is theirs there.

    Raises:
        UnavailableError: the server is away; the next call goes on.
    """
    connection = client(url, Retry(NoBackoff(), 0))
    try:
        with translated("look for other streams of"):
            found = [name.decode() for name in connection.scan_iter(match=PREDICTIONS_STREAM + "*", _type="stream")]
        present = {shard.stream for shard in queue.shards}
        old = sorted(name for name in found if STREAM_PATTERN.fullmatch(name) and name not in present)
        letters = sorted(name for name in found if _is_of(name, ":dead") and name.removesuffix(":dead") not in present)
        num_moved = 0
        if old:
            boundless = ShardedQueue(url, capacity=BOUNDLESS, num_shards=len(queue.shards))
            try:
                _move_groups(boundless, connection, old)
                num_moved = sum(_move_entries(boundless, connection, name) for name in old)
            finally:
                boundless.close()
        for name in letters:
            _move_letters(queue, connection, name)
    finally:
        connection.close()
    if num_moved:
        log.warning("%d entries of %d streams of another number of shards were moved", num_moved, len(old))
    return num_moved


def _is_of(name: str, ending: str) -> bool:
    return name.endswith(ending) and STREAM_PATTERN.fullmatch(name.removesuffix(ending)) is not None


def _move_groups(queue: ShardedQueue, connection: redis.Redis, streams: Sequence[str]) -> None:
    with translated("move the groups of"):
        names = {group["name"].decode() for stream in streams for group in as_any(connection.xinfo_groups(stream))}
    for name in sorted(names):
        queue.create_group(name)


def _move_entries(queue: ShardedQueue, connection: redis.Redis, stream: str) -> int:
    num_moved = 0
    with translated("move the entries of"):
        while entries := as_any(connection.xrange(stream, count=PAGE)):
            outgoing = []
            for entry_id, fields in entries:
                delivery = delivery_of(entry_id.decode(), fields, 1)
                if delivery.record is not None:
                    outgoing.append(
                        Outgoing(delivery.record, delivery.correlation_id, time.time(), delivery.traceparent)
                    )
                    continue
                letter: dict[Any, Any] = {"entry_id": entry_id, "group": "moved", "reason": delivery.fault}
                connection.xadd(queue.shards[0].stream + ":dead", letter | _texts(fields))
            queue.enqueue(outgoing)
            connection.xdel(stream, *(entry_id for entry_id, _ in entries))
            num_moved += len(entries)
        beside = [f"{stream}:{name}" for name in ("refused", "seen", "clock", "epoch")]
        for name in ("books", "symbols", "latency", "lease", "decided"):
            beside += [key.decode() for key in connection.scan_iter(match=f"{stream}:{name}:*")]
        connection.delete(stream, *beside)
    return num_moved


def _move_letters(queue: ShardedQueue, connection: redis.Redis, name: str) -> None:
    with translated("move the dead letters of"):
        for letter_id, fields in as_any(connection.xrange(name)):
            symbol = fields.get(b"symbol", b"").decode("utf-8", "replace")
            connection.xadd(queue.shards[shard_of(symbol, len(queue.shards))].stream + ":dead", fields)
            connection.xdel(name, letter_id)
        connection.delete(name)


def _texts(fields: dict[bytes, bytes]) -> dict[str, bytes]:
    return {name.decode("utf-8", "replace"): value for name, value in fields.items()}
