"""Redis stream with consumer groups: one stream, for producers and for the one consuming process of each group."""

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import (
    PREDICTIONS_STREAM,
    Delivery,
    Enqueued,
    FullMode,
    Lease,
    LeaseHolder,
    Outgoing,
    Persistence,
    StreamAccounting,
)
from ml_workbench_service.integrations.prediction_queue.accounting import stream_accounting
from ml_workbench_service.integrations.prediction_queue.connection import (
    ASKING_TIMEOUT_S,
    NO_RETRY,
    ReadOnlyScript,
    as_any,
    client,
    persistence_of,
    renewing,
    script,
    translated,
)
from ml_workbench_service.integrations.prediction_queue.dead_letters import DeadLetters
from ml_workbench_service.integrations.prediction_queue.queue_log import Answered, Entry, deliveries_of, log_enqueued
from ml_workbench_service.integrations.prediction_queue.writer import (
    DEDUPE_WINDOW,
    RECORDS_PER_CALL,
    PublishingRules,
    added,
    arguments_of,
    milliseconds,
    outcome_of,
)

DEAD_LETTERS_KEPT = 10_000
AT_ONCE_S = 0.0003  # a server near by that has something to say has said it by then
MAX_BLOCK_MS = 2000  # below redis-py's socket timeout, which would end a longer wait with an error
ENTRIES_PER_CALL = 1000  # the same, of those that are looked through

log = logging.getLogger(__name__)


class RedisPredictionQueue:
    """One stream of predictions; threads may share it for everything but `consume`. Calls block.

    With a lease, `consume`, `ack` and `dead_letter` act only for its holder.

    Args:
        url: of the server.
        capacity: entries before the policy decides.
        stream: its key.
        ttl_s: entries that waited longer are counted as expired instead of delivered; None: they never are.
        dedupe_window: prediction ids remembered.

    Raises:
        UnavailableError: from every method, when the server is away or refuses; `publish` and `ack` may be repeated
            (a record seen before adds no entry, an entry acknowledged before counts no second time).
        LeaseLostError: from what is done under a lease that somebody else holds by now.
    """

    def __init__(
        self,
        url: str,
        *,
        capacity: int,
        stream: str = PREDICTIONS_STREAM,
        ttl_s: float | None = None,
        dedupe_window: int = DEDUPE_WINDOW,
    ) -> None:
        self.capacity = capacity
        self.stream = stream
        self._rules = PublishingRules(capacity, dedupe_window, "drop_oldest", milliseconds(ttl_s))
        self._url = url
        self._redis = client(url, Retry(ExponentialBackoff(cap=0.2, base=0.02), 2))
        self._asking = client(url, NO_RETRY, socket_timeout_s=ASKING_TIMEOUT_S)
        self._publishing: redis.Redis | None = None
        self._reading: redis.Redis | None = None
        names = ("publish", "acknowledge", "deliver", "create_group", "remove_group", "acquire", "beat", "release")
        self._scripts = {name: script(self._redis, name) for name in names}
        self._read_accounting = ReadOnlyScript(self._asking, "accounting")
        self.dead_letters = DeadLetters(self._asking, stream, capacity=capacity)
        self._cursors: dict[tuple[str, str], _Cursor] = {}

    def publish(self, records: Sequence[PredictionRecord], *, full: FullMode = "drop_oldest") -> int:
        """Appends records in order, each with its own correlation id; returns how many were taken.

        `drop_oldest` takes all and evicts the oldest entries beyond the capacity, each counted for every group;
        `reject` takes those that have room, and counts the others; `wait` takes the first ones, until there is no
        room. A `prediction_id` seen within the dedupe window counts as taken and as a duplicate, and adds no entry.
        """
        now = time.time()
        outgoing = [Outgoing(record, record.metadata.correlation_id, now) for record in records]
        done = self.enqueue(outgoing, full=full)
        return done.num_handled - len(done.refused)

    def enqueue(self, outgoing: Sequence[Outgoing], *, full: FullMode = "drop_oldest") -> Enqueued:
        """Like `publish`, with the caller's correlation ids, and latencies counted from when each was offered."""
        outcomes: list[Enqueued] = []
        for start in range(0, len(outgoing), RECORDS_PER_CALL):
            batch = outgoing[start : start + RECORDS_PER_CALL]
            arguments = arguments_of(batch, self._rules._replace(full=full))
            with translated("publish to"):
                if self._publishing is None:  # a repeated call whose answer was lost would count `refused` twice
                    self._publishing = client(self._url, NO_RETRY, is_single=True)
                answer = self._run("publish", arguments, on=self._publishing)
            answered = Answered(time.time(), batch, *answer)
            log_enqueued([answered])
            outcomes.append(outcome_of(answered))
            if outcomes[-1].num_handled < len(batch):
                break
        return added(outcomes)

    def consume(
        self, group: str, consumer: str, *, count: int = 64, block_ms: int = 1000, lease: Lease | None = None
    ) -> list[Delivery]:
        """The group's pending entries first (at start and after an error), then new ones; empty after `block_ms`.

        May return nothing although entries wait, where those just read had expired.
        """
        try:
            cursor = self._cursor(group, consumer, lease)
            while cursor.pending is not None:
                entries, _, num_read, last = self._deliver(group, consumer, lease, after=cursor.pending, count=count)
                cursor.pending = last if num_read else None
                if entries:
                    return deliveries_of(group, entries, redelivered=True)
            if not cursor.waits or block_ms <= 0:
                entries, num_read = self._take_new(cursor, group, consumer, lease, count=count)
                if num_read or block_ms <= 0:
                    return deliveries_of(group, entries, redelivered=False)
            entries = self._await_new(cursor, group, consumer, lease, count=count, block_ms=block_ms)
            return deliveries_of(group, entries, redelivered=False)
        except BaseException:
            self._cursors.pop((group, consumer), None)
            raise

    def _await_new(
        self, cursor: "_Cursor", group: str, consumer: str, lease: Lease | None, *, count: int, block_ms: int
    ) -> list[Entry]:
        """What comes within that time. Who had to wait for it waits the next time, too, before looking for more."""
        began = time.monotonic()
        has_come = self._wait(cursor.newest, min(block_ms, MAX_BLOCK_MS))
        has_waited, has_looked = time.monotonic() - began > AT_ONCE_S, not cursor.waits
        cursor.waits = False
        if not has_come and has_looked:
            return []
        entries, num_read = self._take_new(cursor, group, consumer, lease, count=count)
        # So a lone record costs three calls instead of four (1.0 ms of processor time, not 1.4); not in a backlog.
        cursor.waits = has_come and has_waited and num_read < count
        return entries

    def _take_new(
        self, cursor: "_Cursor", group: str, consumer: str, lease: Lease | None, *, count: int
    ) -> tuple[list[Entry], int]:
        entries, before, num_read, last = self._deliver(group, consumer, lease, after=">", count=count)
        cursor.newest = last or before
        return entries, num_read

    def _cursor(self, group: str, consumer: str, lease: Lease | None) -> "_Cursor":
        """Where this reader stands: before the pending list at first, after an error, and with a new lease."""
        term = 0 if lease is None else lease.term
        cursor = self._cursors.get((group, consumer))
        if cursor is None or cursor.term != term:
            with translated("read from"):
                # An answer to PING shows that a read of ours which was cut off no longer waits in the server.
                self._reader().ping()
            cursor = self._cursors[group, consumer] = _Cursor(term, "0")
        return cursor

    def _deliver(
        self, group: str, consumer: str, lease: Lease | None, *, after: str, count: int
    ) -> tuple[list[Entry], str, int, str]:
        with translated("read from"):
            try:
                arguments = [group, *_fence(lease), consumer, after, count, self._rules.ttl_ms]
                entries, newest, num_read, last = self._run("deliver", arguments, on=self._reader())
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                log.warning("consumer group %s was gone and is made again", group)
                self.create_group(group)
                return [], "0-0", 0, ""
        return entries, newest.decode(), num_read, last.decode()

    def _reader(self) -> redis.Redis:
        """The consumer's own connection: held, for it is used at every step, and opened when it is first asked for."""
        if self._reading is None:
            self._reading = client(self._url, NO_RETRY, is_single=True)
        return self._reading

    def _wait(self, newest: str, block_ms: int) -> bool:
        """Until an entry lies after the group's newest one; whether one does."""
        with translated("read from"):
            return bool(self._reader().xread({self.stream: newest}, count=1, block=block_ms))

    def ack(self, group: str, entry_ids: Sequence[str], *, lease: Lease | None = None) -> int:
        """Acknowledges entries for the group, each once, and deletes those that no group needs any more.

        Returns how many this call acknowledged.
        """
        return self._acknowledge(group, entry_ids, lease, counter="acked")

    def dead_letter(self, group: str, delivery: Delivery, reason: str, *, lease: Lease | None = None) -> None:
        """Moves one entry to the dead letters with the reason, done with and counted for the group."""
        if self._acknowledge(group, [delivery.entry_id], lease, counter="dead_lettered", reason=reason):
            log.error("entry %s is dead-lettered for group %s: %s", delivery.entry_id, group, reason)

    def _acknowledge(
        self, group: str, entry_ids: Sequence[str], lease: Lease | None, *, counter: str, reason: str = ""
    ) -> int:
        num_done: int = 0
        for start in range(0, len(entry_ids), RECORDS_PER_CALL):
            arguments: list[Any] = [group, *_fence(lease), counter, reason, DEAD_LETTERS_KEPT]
            with translated("acknowledge to"):
                num_done += int(self._run("acknowledge", [*arguments, *entry_ids[start : start + RECORDS_PER_CALL]]))
        return num_done

    def create_group(self, group: str, *, last_known_id: str | None = None) -> str:
        """Makes the group where it is missing; its `enqueued` starts from the stream's present length.

        Returns the stream's epoch: another one than before means that the server lost its data in between.
        """
        with translated("make a group in"):
            _, epoch = self._run("create_group", [group, secrets.token_hex(8), last_known_id or ""])
        return str(epoch.decode())

    def remove_group(self, group: str) -> int:
        """Ends the group and its accounting; returns how many entries only it still needed (they are deleted).

        The group is gone after the first of several steps; a call that was cut off is repeated to delete the rest.
        """
        num_released, after = 0, b""
        with translated("remove a group from"):
            while True:
                released, after = self._run("remove_group", [group, after, ENTRIES_PER_CALL])
                num_released += int(released)
                if not after:
                    return num_released

    def acquire(
        self, group: str, owner: str, *, known_term: int = 0, instead_of: LeaseHolder | None = None
    ) -> Lease | LeaseHolder:
        """The lease, where nobody holds it or the holder is still `instead_of`; else who holds it.

        `known_term` is the highest of the consumer's checkpoint.
        """
        seen = ("", "") if instead_of is None else (instead_of.term, instead_of.beat)
        return self._acquire(group, owner, known_term, *seen, 0)

    def renew(self, lease: Lease) -> Lease | LeaseHolder:
        """The same lease under a higher term; who holds it by now, where that is somebody else or another term."""
        return self._acquire(lease.group, lease.owner, lease.term, "", "", 1)

    def _acquire(self, group: str, owner: str, *more: Any) -> Lease | LeaseHolder:
        with translated("take a lease of"):
            granted, holder, term, beat = self._run("acquire", [group, owner, *more])
        if granted:
            return Lease(group, owner, int(term))
        return LeaseHolder(holder.decode(), int(term), int(beat))

    def beat(self, lease: Lease) -> None:
        """Shows that the holder lives; whatever else it asks for under its lease shows that too."""
        with translated("beat in"):
            self._run("beat", [lease.group, *_fence(lease)])

    def release(self, lease: Lease) -> None:
        """Gives the lease back; nothing happens where it was lost."""
        with translated("give a lease back to"):
            self._run("release", [lease.group, *_fence(lease)])

    def accounting(self) -> StreamAccounting:
        """Length, age of the oldest entry, what was refused, and every group's accounting, read in one step."""
        with translated("read the accounting of"):
            return stream_accounting(self.stream, self._read_accounting(self.stream))

    def ping(self) -> float:
        """Round-trip time in seconds."""
        started = time.perf_counter()
        with translated("reach"):
            self._asking.ping()
        return time.perf_counter() - started

    def persistence(self) -> Persistence:
        """Whether what the server acknowledges goes to its append-only file."""
        with translated("reach"):
            try:
                return persistence_of(as_any(self._asking.info("persistence")))
            except NoPermissionError:
                return Persistence(is_failing=False, said="this user may not ask about its append-only file")

    def close(self) -> None:
        """Closes all connections."""
        for each in (self._redis, self._asking, self._reading, self._publishing):
            if each is not None:
                each.close()

    def _run(self, name: str, arguments: list[Any], *, on: redis.Redis | None = None) -> Any:
        connection = self._redis if on is None else on
        with renewing(connection):
            return as_any(self._scripts[name](keys=[self.stream], args=arguments, client=connection))


@dataclass
class _Cursor:
    """Of one reader, and the term of its lease."""

    term: int
    pending: str | None  # the pending entry after which it goes on; None: it reads new ones
    newest: str = "0-0"  # the last entry that the group was given
    waits: bool = False  # whether entries come so rarely that it waits for one before it looks for more


def _fence(lease: Lease | None) -> tuple[str, str | int]:
    return ("", "") if lease is None else (lease.owner, lease.term)
