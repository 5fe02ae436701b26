"""`PredictionPublisher`: hands records to the queue without ever blocking or failing the prediction they belong to.

    publish(record) ─► outbox (bounded, in order) ─► up to 64 records or 1 ms ─► one script call in a thread of its own

While the queue is away the outbox keeps the newest 10,000 records, drops the oldest and counts them; when it is back
they go out in order. A batch whose answer was lost is sent again: the queue knows its prediction ids.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import Outgoing

OUTBOX_CAPACITY = 10_000
BATCH_SIZE = 64
LINGER_S = 0.001
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0

log = logging.getLogger(__name__)


class PredictionPublisher:
    """The API process's side of the queue.

    Args:
        enqueue: blocking call that appends a batch in order and returns how many it took (`enqueue` of a queue);
            raises UnavailableError while the queue is away.
        outbox_capacity: records kept while the queue is away.
        batch_size: records per call.
        linger_s: how long the first record of a batch waits for company.
    """

    def __init__(
        self,
        enqueue: Callable[[Sequence[Outgoing]], int],
        *,
        outbox_capacity: int = OUTBOX_CAPACITY,
        batch_size: int = BATCH_SIZE,
        linger_s: float = LINGER_S,
    ) -> None:
        self._enqueue = enqueue
        self._capacity = outbox_capacity
        self._batch_size = batch_size
        self._linger_s = linger_s
        self._waiting: deque[Outgoing] = deque()
        self._in_flight: list[Outgoing] = []
        self._dropped = 0
        self._away = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None

    @property
    def outbox(self) -> int:
        """Records not yet in the stream."""
        return len(self._waiting) + len(self._in_flight)

    @property
    def outbox_dropped(self) -> int:
        """Records dropped from the outbox since the start, the oldest first."""
        return self._dropped

    def publish(self, record: PredictionRecord, correlation_id: str) -> None:
        """Leaves the record in the outbox; from any thread, in microseconds, without an error."""
        self._waiting.append(Outgoing(record, correlation_id, time.time()))
        if len(self._waiting) > self._capacity:  # a batch in flight is older still: it is dropped if it comes back
            self._drop_oldest()
        if self._loop is not None and not self._wake.is_set():
            with suppress(RuntimeError):  # the loop closed meanwhile: the record stays in the outbox
                self._loop.call_soon_threadsafe(self._wake.set)

    async def start(self) -> None:
        """Begins to send; what was published before goes out first."""
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prediction-publisher")
        self._wake.set()
        self._task = self._loop.create_task(self._run(), name="prediction-publisher")

    async def stop(self, drain_s: float = 2.0) -> None:
        """Gives the outbox `drain_s` to empty, then ends; what is left is counted in one log line."""
        if self._task is None or self._thread is None:
            return
        deadline = time.monotonic() + drain_s
        while self.outbox and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False)
        self._task = self._loop = None
        if self.outbox:
            log.warning("the prediction queue stayed away: %d records of the outbox are lost", self.outbox)

    async def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            await self._wake.wait()
            if len(self._waiting) < self._batch_size:
                await asyncio.sleep(self._linger_s)
            self._wake.clear()
            while self._waiting:
                if await self._send():
                    retry_s = FIRST_RETRY_S
                    continue
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LAST_RETRY_S)

    async def _send(self) -> bool:
        """One batch; returns False, with the batch back at the front of the outbox, where the queue is away."""
        assert self._loop is not None
        self._in_flight = self._take()
        sent = False
        try:
            await self._loop.run_in_executor(self._thread, self._enqueue, self._in_flight)
            sent = True
        except UnavailableError as error:
            if not self._away:
                log.warning("predictions wait in the outbox: %s", error.message)
        except Exception:
            # A fault of ours must not end the sending for good; the log has its place, the outbox stays bounded.
            log.exception("a batch of predictions could not be written and is tried again")
        finally:
            batch, self._in_flight = self._in_flight, []
            if not sent:
                self._waiting.extendleft(reversed(batch))
                while len(self._waiting) > self._capacity:
                    self._drop_oldest()
        if sent and self._away:
            log.info("the prediction queue is back; %d records wait in the outbox", self.outbox)
        self._away = not sent
        return sent

    def _take(self) -> list[Outgoing]:
        batch: list[Outgoing] = []
        with suppress(IndexError):  # another thread may drop what was counted a moment ago
            while len(batch) < self._batch_size:
                batch.append(self._waiting.popleft())
        return batch

    def _drop_oldest(self) -> None:
        try:
            self._waiting.popleft()
        except IndexError:  # the sender took the last one meanwhile
            return
        self._dropped += 1
        if self._dropped % 1000 == 1:
            log.warning("the outbox is full: %d of its oldest predictions are dropped so far", self._dropped)
