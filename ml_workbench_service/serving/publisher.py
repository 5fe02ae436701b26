"""Outbox pattern: records are handed to the queue without ever blocking or failing the prediction they belong to.

    publish(record) ─► outbox (bounded, in order) ─► 64 records, what came in a moment, or 256 of many ─► one write

All of it happens in the event loop, between requests: a thread would compete with them for the interpreter (with one of
its own `/predict` took 1.3 to 1.5 times as long back to back, in the loop 1.2). One batch is on its way at a time.
While the loop has time, a record leaves at once, after its own response. Where the loop is busy, so that company saves
what is scarce, the next record takes along what waited for some milliseconds, or a timer does: a write costs as much as
a small answer, however many records are in it.

While the queue is away the outbox keeps the newest 10,000 records, drops the oldest and counts them; when it is back
they go out in order. A batch whose answer was lost is sent again: the queue knows its prediction ids. What the queue
has no room for is refused by it (policy `reject`) or waits here in its turn (`block`). A batch that fails for another
reason is sent one by one: the record that fails alone too is dropped and counted, and those behind it go on.

`deliver` is for callers who must know: it returns once the record is in the stream, or raises.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from typing import Any

from common_lib.exceptions import PredictionError, QueueFullError, UnavailableError
from common_lib.tracing import begin
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import Enqueued, Outgoing
from ml_workbench_service.contracts.runs.records import RunRow

HIGH_LOAD = 0.6  # one connection back to back makes 0.8 or more, 2,000 records a second below HTTP 0.2
LOAD_WINDOW_S = 0.01
WAITS = "/proc/thread-self/schedstat"
"""Nanoseconds on a processor, and ready without one; turns."""


class Load:
    """Which share of the time this thread worked or waited for a processor, over the last hundredth of a second or
    longer.

    A thread that others keep from its processor is as short of time as one that works throughout: by its own clock
    alone it would seem idle just where a write for each record costs most.
    """

    def __init__(self) -> None:
        self._since_s = self._wanted_s = 0.0
        self._is_high = False
        self._waits: FileIO | None = None

    def is_high(self, now_s: float) -> bool:
        """Whether it did for most of the time; `now_s` by the monotonic clock. Always of one and the same thread."""
        if now_s - self._since_s >= LOAD_WINDOW_S:
            wanted_s = time.thread_time() + self._waited_s()
            self._is_high = wanted_s - self._wanted_s >= HIGH_LOAD * (now_s - self._since_s)
            self._since_s, self._wanted_s = now_s, wanted_s
        return self._is_high

    def close(self) -> None:
        """Gives the file back that the system's figures are read from."""
        if self._waits is not None:
            self._waits.close()
            self._waits = None

    def _waited_s(self) -> float:
        """How long this thread has been ready without a processor, as Linux counts it; 0 where it does not."""
        try:
            if self._waits is None:
                self._waits = FileIO(WAITS)
            self._waits.seek(0)
            return int(self._waits.read(64).split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0


class Pauses:
    """Pauses that double up to a bound, and begin anew after progress."""

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s, self._last_s = first_s, last_s
        self._next_s = first_s

    def grown(self) -> float:
        """The next pause, in seconds; the one after it is twice as long."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._last_s)
        return pause_s

    def reset(self) -> None:
        """Begins anew: there was progress."""
        self._next_s = self._first_s


OUTBOX_CAPACITY = 10_000
BATCH_SIZE = 64
MOST_OF_A_WRITE = 256
"""Where more than a batch waits; one write of them costs a third less a record."""
LINGER_S = 0.016  # at a thousand answers a second of a busy loop, sixteen records a write
TICK_S = 0.001
LONG_AGO = float("-inf")
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0
FIRST_FULL_PAUSE_S = 0.005
LAST_FULL_PAUSE_S = 0.2  # a queue that stays full is asked five times a second
DELIVERY_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)


class PredictionPublisher:
    """The API process's side of the queue.

    Args:
        enqueue: appends a batch in order; returns what became of it, and the records that found no room yet. Raises
            UnavailableError while the queue is away. One call at a time.
        outbox_capacity: records kept while the queue is away.
        batch_size: records that are worth a call while the loop is busy.
        most_of_a_write: most records of a call.
        linger_s: how long a record waits for company while the loop is busy.
        observe: told of the records that left the outbox together how many seconds each had been there.
    """

    def __init__(
        self,
        enqueue: Callable[[Sequence[Outgoing]], Awaitable[tuple[Enqueued, list[Outgoing]]]],
        *,
        outbox_capacity: int = OUTBOX_CAPACITY,
        batch_size: int = BATCH_SIZE,
        most_of_a_write: int = MOST_OF_A_WRITE,
        linger_s: float = LINGER_S,
        observe: Callable[[Sequence[float]], None] = lambda seconds: None,
    ) -> None:
        self._enqueue = enqueue
        self._capacity = outbox_capacity
        self._batch_size, self._most_of_a_write = batch_size, max(batch_size, most_of_a_write)
        self._linger_s = linger_s
        self._observe = observe
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: list[Outgoing] = []
        self._promised: dict[str, asyncio.Future[None]] = {}
        self._publishing: dict[str, list[Any]] = {}  # by traceparent: the span, and records that are to leave
        self._dropped: Counter[str] = Counter()
        self._is_away = False
        self._absence = Pauses(FIRST_RETRY_S, LAST_RETRY_S)
        self._fullness = Pauses(FIRST_FULL_PAUSE_S, LAST_FULL_PAUSE_S)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._lingers_since = LONG_AGO
        self._load = Load()
        self._task: asyncio.Task[None] | None = None
        self._loop_thread = 0

    @property
    def outbox(self) -> int:
        """Records not yet in the stream."""
        return len(self._waiting) + len(self._in_flight)

    @property
    def outbox_dropped(self) -> int:
        """Records dropped from the outbox since the start: the oldest of a full one, and what could not be written."""
        return self._dropped.total()

    @property
    def outbox_dropped_by_symbol(self) -> Mapping[str, int]:
        """The same, by symbol."""
        return dict(self._dropped)

    def publish(self, record: PredictionRecord | RunRow, correlation_id: str) -> None:
        """Leaves the record in the outbox; from any thread, in microseconds, without an error."""
        self.publish_run((record,), correlation_id)

    def publish_run(self, records: Sequence[PredictionRecord | RunRow], correlation_id: str) -> None:
        """The same of several, in their order."""
        self.publish_together([(record, correlation_id) for record in records])

    def publish_together(self, records: Sequence[tuple[PredictionRecord | RunRow, str]]) -> None:
        """The same of several requests' records, each with its correlation id."""
        now, traceparent = time.time(), self._begin(len(records))
        self._waiting.extend([Outgoing(record, each, now, traceparent) for record, each in records])
        while len(self._waiting) > self._capacity:  # a batch in flight is older still: it is dropped if it comes back
            self._drop_oldest()
        loop = self._loop
        if loop is None:
            return
        if threading.get_ident() == self._loop_thread:
            self._poke()
        else:
            with suppress(RuntimeError):  # the loop closed meanwhile: the record stays in the outbox
                loop.call_soon_threadsafe(self._poke)

    async def deliver(
        self, record: PredictionRecord | RunRow, correlation_id: str, *, timeout_s: float = DELIVERY_TIMEOUT_S
    ) -> None:
        """Like `publish`, in order with it; returns once the record is in the stream. Call it in the event loop.

        Raises:
            QueueFullError: there was no room (at once where the queue refuses, else within `timeout_s`).
            UnavailableError: the queue is away, or did not answer in time: the record may be in the stream all the
                same, once.
            PredictionError: this record cannot be written at all.
        """
        if self._is_away and self.outbox:  # with an empty one this record is the next to ask
            raise UnavailableError("the prediction queue is away; try again in a moment", retry_after_s=2)
        name = record.prediction_id
        promise = self._promised[name] = asyncio.get_running_loop().create_future()
        self.publish(record, correlation_id)
        try:
            await asyncio.wait((promise,), timeout=timeout_s)
            if promise.done():
                promise.result()  # or the error
                return
            promise.cancel()  # and stays: the record is left out when its turn comes
        finally:
            if not promise.cancelled():
                self._promised.pop(name, None)
        if not self._is_away and all(item.record.prediction_id != name for item in self._in_flight):
            raise _full()
        raise UnavailableError(
            "the prediction queue did not answer in time; the record may be in it all the same", retry_after_s=2
        )

    async def start(self) -> None:
        """Begins to send; what was published before goes out first."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._wake = asyncio.Event()  # it belongs to the loop that waits for it first
        self._wake.set()
        self._task = self._loop.create_task(self._run(), name="prediction-publisher")

    async def stop(self, drain_s: float = 2.0) -> None:
        """Gives the outbox `drain_s` to empty, then ends; what is left is counted in one log line."""
        if self._task is None:
            return
        deadline = time.monotonic() + drain_s
        while self.outbox and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._end_timer()
        self._load.close()
        self._task = self._loop = None
        if self.outbox:
            log.warning("the prediction queue stayed away: %d records of the outbox are lost", self.outbox)

    def _begin(self, num: int) -> str:
        """The span of so many records' publishing, where their request is traced: its `traceparent`, else empty."""
        if not num:
            return ""
        begun = begin("publish predictions", "producer", {"messaging.batch.message_count": num})
        if begun is None:
            return ""
        self._publishing[begun.traceparent] = [begun, num]
        return begun.traceparent

    def _left(self, item: Outgoing, error: str = "") -> None:
        """A traced record has left the outbox; the span ends with the last of its records."""
        publishing = self._publishing.get(item.traceparent)
        if publishing is None:
            return
        begun, _ = publishing
        publishing[1] -= 1
        if error:
            begun.failed(error)
        if not publishing[1]:
            begun.end()
            self._publishing.pop(item.traceparent, None)

    def _poke(self) -> None:
        """Has a batch sent that is complete, has waited long enough, or need not wait; else a timer will."""
        if self._loop is None or self._in_flight or self._wake.is_set():
            return
        now = time.monotonic()
        if self._timer is None and self._load.is_high(now):
            self._lingers_since = now
            # Timers know whole milliseconds, counted from the loop's last turn: they may be early by one.
            self._timer = self._loop.call_later(self._linger_s + TICK_S, self._wake.set)
        if now - self._lingers_since >= self._linger_s or len(self._waiting) >= self._batch_size:
            self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._end_timer()
            if pause_s := await self._send():
                await asyncio.sleep(pause_s)
                self._wake.set()
            elif self._waiting:
                self._poke()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._lingers_since = None, LONG_AGO

    async def _send(self) -> float:
        """One batch; what is left of it comes back to the front. Returns how long to wait before the next."""
        batch = self._in_flight = self._take()
        if not batch:
            return 0.0
        is_away = True
        try:
            await self._write(batch)
            is_away = False
        except UnavailableError as error:
            if not self._is_away:
                log.warning("predictions wait in the outbox: %s", error.message)
        except Exception:
            # A fault of ours must not end the sending for good; what was written has left the batch by now.
            log.exception("what became of a batch of predictions could not be told")
            is_away = False
        finally:
            left, self._in_flight = self._in_flight, []
            self._waiting.extendleft(reversed(left))
            while len(self._waiting) > self._capacity:
                self._drop_oldest()
        if self._is_away and not is_away:
            log.info("the prediction queue is back; %d records wait in the outbox", self.outbox)
        self._is_away = is_away
        if is_away:
            return self._absence.grown()
        self._absence.reset()
        if len(left) < len(batch):
            self._fullness.reset()
        return self._fullness.grown() if left else 0.0

    async def _write(self, batch: list[Outgoing]) -> None:
        """Offers a batch to the queue; `_in_flight` is what is left of it, whatever happens.

        Raises:
            UnavailableError: the queue is away.
        """
        try:
            done, left = await self._enqueue(batch)
        except UnavailableError:
            raise
        except Exception:
            log.exception("a batch of %d predictions could not be written; they are tried one by one", len(batch))
            await self._write_singly(batch)
            return
        self._in_flight = left
        self._keep_promises(batch, done, left)

    async def _write_singly(self, batch: list[Outgoing]) -> None:
        for place, item in enumerate(batch):
            try:
                done, left = await self._enqueue([item])
            except UnavailableError:
                raise
            except Exception as error:
                self._in_flight = batch[place + 1 :]
                self._give_up(item, error)
                continue
            if left:
                return
            self._in_flight = batch[place + 1 :]
            self._keep_promises([item], done, left)

    def _keep_promises(self, batch: Sequence[Outgoing], done: Enqueued, left: list[Outgoing]) -> None:
        """Tells whoever waits for what left the outbox."""
        now = time.time()
        waiting = {item.record.prediction_id for item in left}
        gone = [item for item in batch if item.record.prediction_id not in waiting] if left else batch
        for item in gone if self._promised else ():
            name = item.record.prediction_id
            promise = self._promised.pop(name, None)
            if promise is None or promise.done():
                continue
            if name in done.refused:
                promise.set_exception(_full())
            else:
                promise.set_result(None)
        for item in gone if self._publishing else ():
            self._left(item)
        self._observe([max(0.0, now - item.offered_at) for item in gone])

    def _take(self) -> list[Outgoing]:
        batch: list[Outgoing] = []
        with suppress(IndexError):  # another thread may drop what was counted a moment ago
            while len(batch) < self._most_of_a_write:
                item = self._waiting.popleft()
                if not self._is_withdrawn(item):
                    batch.append(item)
        return batch

    def _drop_oldest(self) -> None:
        try:
            item = self._waiting.popleft()
        except IndexError:  # the sender took the last one meanwhile
            return
        if self._is_withdrawn(item):
            return
        self._dropped[item.record.symbol] += 1
        self._left(item, "dropped")
        loop = self._loop
        if self._promised and loop is not None:
            with suppress(RuntimeError):  # the loop closed meanwhile, and nobody waits any more
                loop.call_soon_threadsafe(self._break_promise, item, _full())
        if self.outbox_dropped % 1000 == 1:
            log.warning("the outbox is full: %d of its oldest predictions are dropped so far", self.outbox_dropped)

    def _give_up(self, item: Outgoing, error: Exception) -> None:
        """Drops what cannot be written even alone."""
        if self._is_withdrawn(item):
            return
        name, reason = item.record.prediction_id, f"{type(error).__name__}: {error}"
        self._dropped[item.record.symbol] += 1
        self._left(item, type(error).__name__)
        log.error("prediction %s cannot be written to the queue and is dropped (%s)", name, reason)
        self._break_promise(
            item,
            PredictionError(
                f"the prediction {name} cannot be written to the queue ({reason}); it is dropped and counted in "
                "`outbox_dropped` (GET /api/v1/queue); correct what it was made from"
            ),
        )

    def _break_promise(self, item: Outgoing, error: Exception) -> None:
        promise = self._promised.pop(item.record.prediction_id, None)
        if promise is not None and not promise.done():
            promise.set_exception(error)

    def _is_withdrawn(self, item: Outgoing) -> bool:
        """Whether whoever waited for the record gave up; it is forgotten with that."""
        promise = self._promised.get(item.record.prediction_id)
        if promise is None or not promise.cancelled():
            return False
        self._promised.pop(item.record.prediction_id, None)
        self._left(item, "withdrawn")
        return True


def _full() -> QueueFullError:
    return QueueFullError(
        "the prediction queue has no room for this record; try again once its consumers have caught up "
        "(GET /api/v1/queue)",
        retry_after_s=1,
    )
