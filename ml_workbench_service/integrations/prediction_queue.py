"""`RedisPredictionQueue`: the bounded prediction stream on a Redis server (6.2 or newer), with books that balance.

Keys below `ml_workbench:predictions`:
    (itself)          the stream; the record's keys as fields (contracts.entries), correlation_id, enqueued_at
    :books:<group>    hash of counters enqueued, acked, dropped_oldest, expired, dead_lettered, duplicates
    :seen, :clock     the last prediction ids, by which a repeated publish adds nothing, and the order they came in
    :dead             dead letters: the entry's own fields with entry_id, group and reason

The counters change only inside `publish.lua` and `acknowledge.lua` (a new group's books open in `create_group.lua`),
so that for each group, at every quiet moment, enqueued = acked + pending + undelivered + dropped_oldest + expired +
dead_lettered. An entry is deleted once no group needs it: the stream's length is the backlog.

Order: one consuming process per group. Its connection never repeats a command by itself, since a repeated read
would leave the first answer in the pending list behind the second. After any error the pending list comes first.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import redis
from pydantic import ValidationError
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from common_lib.exceptions import UnavailableError
from common_lib.logging import QUEUE_LOGGER
from ml_workbench_service.contracts.contract import iso
from ml_workbench_service.contracts.entries import flatten, unflatten
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import (
    DEAD_LETTERS_STREAM,
    PREDICTIONS_STREAM,
    Delivery,
    GroupBooks,
    Outgoing,
)

BOOKS_PREFIX = PREDICTIONS_STREAM + ":books:"
SEEN_KEY = PREDICTIONS_STREAM + ":seen"
CLOCK_KEY = PREDICTIONS_STREAM + ":clock"

DEDUPE_WINDOW = 10_000  # prediction ids remembered
DEAD_LETTERS_KEPT = 10_000
MAX_BLOCK_MS = 2000  # below redis-py's socket timeout, which would end a longer wait with an error
SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
RECORDS_PER_CALL = 256  # bounds how long one script holds the server

log = logging.getLogger(__name__)
queue_log = logging.getLogger(QUEUE_LOGGER)


class RedisPredictionQueue:
    """Implements `contracts.queue.PredictionQueue`; threads may share it for everything but `consume`.

    Raises:
        UnavailableError: from every method, when the server is away or refuses; `publish` and `ack` may be repeated
            (a record seen before adds no entry, an entry settled before counts no second time).
    """

    def __init__(self, url: str, *, capacity: int, dedupe_window: int = DEDUPE_WINDOW) -> None:
        self.capacity = capacity
        self._dedupe_window = dedupe_window
        self._redis = _client(url, Retry(ExponentialBackoff(cap=0.2, base=0.02), 2))
        self._reader = _client(url, Retry(NoBackoff(), 0))
        self._publish = self._redis.register_script(_script("publish"))
        self._acknowledge = self._redis.register_script(_script("acknowledge"))
        self._create_group = self._redis.register_script(_script("create_group"))
        self._books = self._redis.register_script(_script("books"))
        self._cursor: dict[tuple[str, str], str | None] = {}  # where in the pending list; None: read new entries

    def publish(self, records: Sequence[PredictionRecord], *, drop_oldest: bool = True) -> int:
        """Appends records in order; see the protocol. The correlation id is the record's own."""
        now = time.time()
        return self.enqueue(
            [Outgoing(record, record.metadata.correlation_id, now) for record in records], drop_oldest=drop_oldest
        )

    def enqueue(self, outgoing: Sequence[Outgoing], *, drop_oldest: bool = True) -> int:
        """Like `publish`, with the caller's correlation ids, and latencies counted from when each was offered."""
        taken = 0
        for start in range(0, len(outgoing), RECORDS_PER_CALL):
            batch = outgoing[start : start + RECORDS_PER_CALL]
            num_taken = self._enqueue_batch(batch, drop_oldest=drop_oldest)
            taken += num_taken
            if num_taken < len(batch):
                break
        return taken

    def _enqueue_batch(self, batch: Sequence[Outgoing], *, drop_oldest: bool) -> int:
        arguments: list[Any] = [self.capacity, self._dedupe_window, int(drop_oldest), BOOKS_PREFIX]
        enqueued_at = iso(datetime.now(tz=UTC))
        for item in batch:
            fields = flatten(item.record)
            fields += ("correlation_id", item.correlation_id, "enqueued_at", enqueued_at)
            arguments += [item.record.prediction_id, len(fields), *fields]
        with _translated("publish to"):
            ids, evicted = _as_any(self._publish(keys=[PREDICTIONS_STREAM, SEEN_KEY, CLOCK_KEY], args=arguments))
        _log_enqueued(batch, ids, evicted)
        return len(ids)

    def consume(self, group: str, consumer: str, *, count: int = 64, block_ms: int = 1000) -> list[Delivery]:
        """The consumer's own pending entries first (at start and after an error), then new ones; see the protocol.

        The group is made where it is missing, also after the server lost its data.
        """
        reader = (group, consumer)
        if reader not in self._cursor:
            with _translated("read from"):
                # An answer to PING shows that a read of ours which was cut off no longer waits in the server.
                self._reader.ping()
            self._cursor[reader] = "0"
        try:
            cursor = self._cursor[reader]
            if cursor is not None:
                entries = self._read(group, consumer, cursor, count=count, block_ms=0)
                if entries:
                    self._cursor[reader] = entries[-1][0].decode()
                    return _deliveries(group, entries, redelivered=True)
                self._cursor[reader] = None
            entries = self._read(group, consumer, ">", count=count, block_ms=min(block_ms, MAX_BLOCK_MS))
            return _deliveries(group, entries, redelivered=False)
        except BaseException:
            self._cursor.pop(reader, None)
            raise

    def _read(
        self, group: str, consumer: str, cursor: str, *, count: int, block_ms: int
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        block = block_ms if block_ms > 0 else None
        with _translated("read from"):
            try:
                answer = _as_any(
                    self._reader.xreadgroup(group, consumer, {PREDICTIONS_STREAM: cursor}, count=count, block=block)
                )
            except redis.ResponseError as error:
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                log.warning("consumer group %s was gone and is made again", group)
                self.create_group(group)
                return []
        return answer[0][1] if answer else []

    def ack(self, group: str, entry_ids: Sequence[str]) -> int:
        """Settles entries for the group; see the protocol. Returns how many were settled by this call."""
        return self._settle(group, entry_ids, counter="acked")

    def dead_letter(self, group: str, delivery: Delivery, reason: str) -> None:
        """Moves one entry to the dead letters with the reason, settled and counted for the group."""
        settled = self._settle(group, [delivery.entry_id], counter="dead_lettered", reason=reason)
        if settled:
            log.error("entry %s is dead-lettered for group %s: %s", delivery.entry_id, group, reason)

    def _settle(self, group: str, entry_ids: Sequence[str], *, counter: str, reason: str = "") -> int:
        settled = 0
        for start in range(0, len(entry_ids), RECORDS_PER_CALL):
            arguments: list[Any] = [group, BOOKS_PREFIX, counter, reason, DEAD_LETTERS_KEPT]
            arguments += entry_ids[start : start + RECORDS_PER_CALL]
            with _translated("acknowledge to"):
                settled += int(
                    _as_any(self._acknowledge(keys=[PREDICTIONS_STREAM, DEAD_LETTERS_STREAM], args=arguments))
                )
        return settled

    def create_group(self, group: str) -> None:
        """Makes the group where it is missing; its `enqueued` starts from the stream's present length."""
        with _translated("make a group in"):
            self._create_group(keys=[PREDICTIONS_STREAM], args=[group, BOOKS_PREFIX])

    def books(self) -> tuple[int, float | None, list[GroupBooks]]:
        """Length, age of the oldest entry in seconds, and every group's books, read in one step."""
        with _translated("read the books of"):
            length, age_ms, groups = _as_any(self._books(keys=[PREDICTIONS_STREAM], args=[BOOKS_PREFIX]))
        return length, None if age_ms < 0 else age_ms / 1000, [_group_books(*group) for group in groups]

    def ping(self) -> float:
        """Round-trip time in seconds."""
        started = time.perf_counter()
        with _translated("reach"):
            self._redis.ping()
        return time.perf_counter() - started

    def close(self) -> None:
        """Closes all connections."""
        self._redis.close()
        self._reader.close()


def _client(url: str, retry: Retry) -> redis.Redis:
    return redis.Redis.from_url(
        url, socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S, retry=retry, protocol=2
    )


def _script(name: str) -> str:
    folder = files("ml_workbench_service.integrations") / "scripts"
    return (folder / "groups.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8")


def _as_any(answer: object) -> Any:
    """redis-py types every answer as one that may have to be awaited."""
    return answer


@contextmanager
def _translated(verb: str) -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise UnavailableError(
            f"Cannot {verb} the prediction queue ({type(error).__name__}: {error}); check REDIS_URL and that the "
            "Redis server runs.",
            retry_after_s=2,
        ) from error


def _group_books(name: bytes, pending: int, undelivered: int, fields: list[bytes]) -> GroupBooks:
    counters = {key.decode(): int(value) for key, value in zip(fields[::2], fields[1::2], strict=True)}
    enqueued = counters.get("enqueued", 0)
    settled = {key: counters.get(key, 0) for key in ("acked", "dropped_oldest", "expired", "dead_lettered")}
    return GroupBooks(
        group=name.decode(),
        enqueued=enqueued,
        pending=pending,
        undelivered=undelivered,
        duplicates=counters.get("duplicates", 0),
        balance=enqueued - pending - undelivered - sum(settled.values()),
        **settled,
    )


def _deliveries(
    group: str, entries: Sequence[tuple[bytes, dict[bytes, bytes] | None]], *, redelivered: bool
) -> list[Delivery]:
    deliveries = [_delivery(entry_id.decode(), fields or {}) for entry_id, fields in entries]
    if queue_log.isEnabledFor(logging.INFO):
        now = datetime.now(tz=UTC)
        for delivery in deliveries:
            waited = None if delivery.enqueued_at is None else (now - delivery.enqueued_at).total_seconds() * 1000
            queue_log.info(
                "dequeue",
                extra={
                    "group": group,
                    "prediction_id": delivery.record.prediction_id if delivery.record is not None else None,
                    "entry_id": delivery.entry_id,
                    "latency_ms": None if waited is None else round(waited, 3),
                    "redelivered": redelivered,
                    "correlation_id": delivery.correlation_id,
                },
            )
    return deliveries


def _delivery(entry_id: str, fields: dict[bytes, bytes]) -> Delivery:
    correlation_id = fields.get(b"correlation_id", b"").decode("utf-8", "replace")
    try:
        record = unflatten(PredictionRecord, fields)
        enqueued_at = datetime.fromisoformat(fields[b"enqueued_at"].decode())
    except (KeyError, ValidationError, ValueError) as error:
        fault = (
            f"the entry is no prediction record ({type(error).__name__}: {error})" if fields else "the entry is gone"
        )
        return Delivery(entry_id, None, None, correlation_id, fault)
    return Delivery(entry_id, record, enqueued_at, correlation_id)


def _log_enqueued(batch: Sequence[Outgoing], ids: Sequence[bytes], evicted: Sequence[bytes]) -> None:
    if not queue_log.isEnabledFor(logging.INFO):
        return
    now = time.time()
    for item, entry_id in zip(batch, ids, strict=False):
        queue_log.info(
            "enqueue" if entry_id else "duplicate",
            extra={
                "prediction_id": item.record.prediction_id,
                "entry_id": entry_id.decode() or None,
                "latency_ms": round((now - item.offered_at) * 1000, 3),
                "correlation_id": item.correlation_id,
            },
        )
    for entry_id in evicted:
        queue_log.warning("drop_oldest", extra={"entry_id": entry_id.decode()})
