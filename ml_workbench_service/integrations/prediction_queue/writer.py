"""Asynchronous publishing: records enter the streams from within an event loop, without a thread; how a call is made.

A batch is one script call for each stream that it has records of. All of them go out in one write, and their answers
come back over the one connection, which is held.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import redis
from redis.asyncio import ConnectionPool
from redis.connection import HiredisRespSerializer
from redis.exceptions import NoScriptError

from ml_workbench_service.contracts.contract import iso
from ml_workbench_service.contracts.entries import SEPARATOR, row
from ml_workbench_service.contracts.queue import Enqueued, FullMode, Outgoing, shard_of, stream_names
from ml_workbench_service.contracts.runs.records import RunRow
from ml_workbench_service.integrations.prediction_queue.connection import (
    CONNECT_TIMEOUT_S,
    SOCKET_TIMEOUT_S,
    as_any,
    is_of_replica,
    script_text,
    sha_of,
    translated,
)
from ml_workbench_service.integrations.prediction_queue.queue_log import REFUSED, Answered, LateQueueLog

DEDUPE_WINDOW = 10_000  # prediction ids remembered
TRACEPARENT = "traceparent"
"""The field of an entry that is traced; without traces there is none."""
RECORDS_PER_CALL = 256  # bounds how long one script holds the server

_pack = HiredisRespSerializer().pack  # the asyncio connection's own is written in Python


class PublishingRules(NamedTuple):
    """What holds for every record of a call."""

    capacity: int
    dedupe_window: int
    full: FullMode
    ttl_ms: int  # 0: entries never expire


def arguments_of(batch: Sequence[Outgoing], rules: PublishingRules) -> list[Any]:
    """What `publish.lua` is called with; records of the same shape share their names."""
    enqueued_at = iso(datetime.now(tz=UTC)).encode()
    shapes: dict[tuple[str, ...], int] = {}
    records: list[Any] = []
    for item in batch:
        names, parts = _values(item, enqueued_at)
        number = shapes.setdefault(names, len(shapes) + 1)
        records += (item.record.prediction_id, item.record.symbol, number, len(parts), *parts)
    arguments: list[Any] = [rules.capacity, rules.dedupe_window, rules.full, rules.ttl_ms, len(shapes)]
    return [*arguments, *map(_joined, shapes), *records]


def _values(item: Outgoing, enqueued_at: bytes) -> tuple[tuple[str, ...], Sequence[bytes]]:
    """The names of the record's fields, and all values in one part, or each in its own where one has the separator."""
    record = item.record
    more: tuple[bytes, ...] = (item.correlation_id.encode(), enqueued_at)
    further: tuple[str, ...] = ()
    if item.traceparent:
        further, more = (TRACEPARENT,), (item.traceparent.encode(), *more)
    if isinstance(record, RunRow):
        (names, whole), tail = record.entry, SEPARATOR.join((*more, b""))
        if whole is not None and tail.count(SEPARATOR) == len(more):
            return (*names, *further) if further else names, (whole + tail,)
        record = record.record
    names, values = row(record)
    if further:
        names = (*names, *further)
    values += more
    whole = SEPARATOR.join(values)
    return names, (whole + SEPARATOR,) if whole.count(SEPARATOR) == len(values) - 1 else values


@lru_cache(maxsize=64)
def _joined(names: tuple[str, ...]) -> bytes:
    return b"".join(name.encode() + SEPARATOR for name in (*names, "correlation_id", "enqueued_at"))


def outcome_of(answer: Answered) -> Enqueued:
    """What the script's answer says."""
    _, batch, ids, evicted = answer
    refused = [item.record.prediction_id for item, entry_id in zip(batch, ids, strict=False) if entry_id == REFUSED]
    return Enqueued(len(ids), tuple(refused), tuple([each.decode() for each in evicted[1::2]]))


def added(outcomes: Sequence[Enqueued]) -> Enqueued:
    """Several calls as one."""
    if len(outcomes) == 1:
        return outcomes[0]
    return Enqueued(
        sum(each.num_handled for each in outcomes),
        tuple(name for each in outcomes for name in each.refused),
        tuple(name for each in outcomes for name in each.evicted),
    )


def by_shard(outgoing: Sequence[Outgoing], num_shards: int) -> Iterable[tuple[int, Sequence[Outgoing]]]:
    """The records of each stream that has any, in order."""
    if num_shards == 1:
        return [(0, outgoing)]
    parts: dict[int, list[Outgoing]] = {}
    for item in outgoing:
        parts.setdefault(shard_of(item.record.symbol, num_shards), []).append(item)
    return parts.items()


class QueueWriter:
    """What `ShardedQueue.enqueue` does, for the one publisher of an event loop.

    Nothing is repeated here: a batch whose answer was lost is sent again by who keeps the records.

    Args:
        url: of the server.
        capacity: of each stream.
        full: what becomes of records that find no room.
        num_shards: how many streams.
        ttl_s: see `RedisPredictionQueue`.
        timeout_s: how long the answers to one write may take.
    """

    def __init__(
        self,
        url: str,
        *,
        capacity: int,
        full: FullMode,
        num_shards: int = 1,
        ttl_s: float | None = None,
        timeout_s: float = SOCKET_TIMEOUT_S,
    ) -> None:
        self._streams = stream_names(num_shards)
        self._rules = PublishingRules(capacity, DEDUPE_WINDOW, full, milliseconds(ttl_s))
        self._timeout_s = timeout_s
        self._queue_log = LateQueueLog()
        self._script = script_text("publish")
        self._sha = sha_of(self._script)
        # The time limit is of the whole exchange: the library's own, of each step, takes a task for every write.
        pool = ConnectionPool.from_url(url, socket_timeout=None, socket_connect_timeout=CONNECT_TIMEOUT_S, protocol=2)
        self._connection = as_any(pool).make_connection()

    async def enqueue(self, outgoing: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        """Appends records, in order for each symbol; returns what became of them, and which found no room yet (`wait`).

        One call at a time.

        Raises:
            UnavailableError: the server is away, or did not answer in time; sending all of them again is safe.
        """
        outcomes: list[Enqueued] = []
        left: list[Outgoing] = []
        for start in range(0, len(outgoing), RECORDS_PER_CALL):
            batch = outgoing[start : start + RECORDS_PER_CALL]
            if left:
                left += batch
                continue
            parts = list(by_shard(batch, len(self._streams)))
            with translated("publish to"):
                answers = await self._ask([(place, arguments_of(part, self._rules)) for place, part in parts])
                for (_, part), answer in zip(parts, answers, strict=True):
                    if not isinstance(answer, redis.ResponseError):
                        answered = Answered(time.time(), part, *answer)
                        self._queue_log.note(answered)
                        outcomes.append(outcome_of(answered))
                        left += part[outcomes[-1].num_handled :]
                for answer in answers:
                    if isinstance(answer, redis.ResponseError):
                        raise answer  # what other streams took they will know when it comes again
        return added(outcomes), left

    async def close(self) -> None:
        """Closes the connection and writes what is still to be logged; a later call opens it again."""
        self._queue_log.write()
        await self._connection.disconnect(nowait=True)

    async def _ask(self, calls: Sequence[tuple[int, list[Any]]]) -> list[Any]:
        """The script's answer, or the server's refusal, to each call."""
        commands = [("EVALSHA", self._sha, 1, self._streams[place], *arguments) for place, arguments in calls]
        answers = await self._exchange(commands)
        forgotten = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if forgotten:
            again = [commands[place] for place in forgotten]
            loaded, *anew = await self._exchange([("SCRIPT", "LOAD", self._script), *again])
            for place, answer in zip(forgotten, anew, strict=True):
                answers[place] = loaded if isinstance(loaded, redis.ResponseError) else answer
        if any(isinstance(each, redis.ResponseError) and is_of_replica(each) for each in answers):
            await self._connection.disconnect(nowait=True)  # the name may lead to another server after a failover
        return answers

    async def _exchange(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """An answer to each, the server's refusals among them."""
        packed = [part for command in commands for part in _pack(*command)]
        connection = self._connection
        answers: list[Any] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    try:
                        answers.append(await connection.read_response())
                    except redis.ResponseError as error:
                        answers.append(error)
        except BaseException as error:
            # What is still to come over this connection would be taken for the next call's answer.
            await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise redis.TimeoutError(f"no answer in {self._timeout_s:g} s") from error
            if isinstance(error, RuntimeError):  # what uvloop says of a connection that was reset while it rested
                raise redis.ConnectionError(f"the connection is gone ({error})") from error
            raise
        return answers


def milliseconds(ttl_s: float | None) -> int:
    """As the scripts take it: 0 for never."""
    return 0 if ttl_s is None else max(1, round(ttl_s * 1000))
