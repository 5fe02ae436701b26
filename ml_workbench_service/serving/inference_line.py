"""Dynamic batching by the zero-delay rule: whatever waited while the last run lasted goes together; nobody waits for
company.

    join ─► waiting room (bounded, in order) ─► one run at a time: leading single windows together, or one batch alone

One line for each process keeps the order in which live intervals learn of prices and the ledger takes answers. A run
that is expected to last microseconds is done in the event loop, where its company has gathered while the loop read
requests: to hand it to a thread would take longer than the run. Any other goes to the inference thread, and the loop
answers `/health` and fills the waiting room meanwhile. What a window of a version takes is measured as it is answered;
its first run goes to the thread.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from common_lib.exceptions import UnavailableError

INLINE_S = 0.005
"""Longest run, as expected, that may stop the event loop: a twentieth of what a person notices."""
MOST_TOGETHER = 64
"""Windows in a run: beyond some dozens a window gets no cheaper, and those before it wait longer."""
MOST_WAITING = 2_048
"""Questions that may wait; at two thousand a second the last one waits for a second."""
RISE = 1.25
"""What is expected of a window rises by at most this factor a run: a stall of the machine is no cost of a network."""
MOST_KNOWN = 256

log = logging.getLogger(__name__)

Observe = Callable[[int, Sequence[float]], None]


@dataclass(slots=True)
class Errand:
    """A place in the line.

    Attributes:
        key: of whose windows the cost is: the version.
        num_windows: how many it asks.
        item: what the work is done on.
        is_single: whether it may share its run with others of its key.
        promise: of its result, which whoever waits may have given up; None: `told` is called with it.
    """

    key: Any
    num_windows: int
    item: Any
    is_single: bool
    promise: "asyncio.Future[Any] | None" = None
    told: Callable[[Any], None] | None = None
    since_s: float = field(default_factory=time.perf_counter)

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self.promise is not None and self.promise.done()

    def tell(self, result: Any) -> None:
        """Calls `told`, whose fault is no other errand's."""
        assert self.told is not None, "an errand has a promise or somebody who is told"
        try:
            self.told(result)
        except Exception:
            log.exception("what becomes of an answer failed")


class InferenceLine:
    """The line before the networks of one process, for one event loop.

    Args:
        work: answers items of one key in one run: a result or the error of each.
        observe: told of each run how many single questions shared it, and the seconds that each had waited.
        most_waiting: questions in the waiting room.
        most_together: windows in one run.
        inline_s: the longest run, as expected, that is done in the event loop.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        observe: Observe = lambda num, waited_s: None,
        most_waiting: int = MOST_WAITING,
        most_together: int = MOST_TOGETHER,
        inline_s: float = INLINE_S,
    ) -> None:
        self._work = work
        self.observe = observe
        self._most_waiting, self._most_together, self._inline_s = most_waiting, most_together, inline_s
        self._waiting: deque[Errand] = deque()
        self._is_busy = False  # a turn is due or under way
        self._cost_s: dict[Any, float] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")

    def close(self) -> None:
        """Ends the thread after the run at hand."""
        self._thread.shutdown(wait=True)

    @property
    def num_waiting(self) -> int:
        """Questions in the waiting room."""
        return len(self._waiting)

    async def ask(self, key: Any, item: Any, *, num_windows: int = 1, is_single: bool = True) -> Any:
        """The item's result, once its turn has come.

        Raises:
            UnavailableError: the waiting room is full.
            Exception: what the work raised for this item.
        """
        loop = asyncio.get_running_loop()
        promise: asyncio.Future[Any] = loop.create_future()
        self._join(Errand(key, num_windows, item, is_single, promise), loop)
        return await promise

    def join(self, key: Any, item: Any, told: Callable[[Any], None]) -> None:
        """A single question whose result, or error, `told` is called with in the event loop, without a task that waits.

        Raises:
            UnavailableError: the waiting room is full.
        """
        self._join(Errand(key, 1, item, is_single=True, told=told), asyncio.get_running_loop())

    def _join(self, errand: Errand, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._waiting) >= self._most_waiting:
            raise UnavailableError("too many predictions are waiting; try again in a moment", retry_after_s=1)
        self._waiting.append(errand)
        if not self._is_busy:
            self._is_busy = True
            loop.call_soon(self._turn, loop, context=Context())

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """One run, and the next one after what came in meanwhile was read."""
        errands = self._take()
        if not errands:
            self._is_busy = False
            return
        begun_s = time.perf_counter()
        if self._expected_s(errands) <= self._inline_s:
            self._tell(errands, self._timed(errands))
            self._go_on(loop)
        else:
            self._hand_over(errands, loop)
        if errands[0].is_single:
            self.observe(len(errands), [begun_s - each.since_s for each in errands])

    def _hand_over(self, errands: Sequence[Errand], loop: asyncio.AbstractEventLoop) -> None:
        """The run in the thread."""

        def told(done: "asyncio.Future[Sequence[Any]]") -> None:
            self._tell(errands, done.result())
            self._go_on(loop)

        try:
            running = loop.run_in_executor(self._thread, self._timed, errands)
        except RuntimeError:  # it has ended
            self._tell(errands, [UnavailableError("the service is stopping", retry_after_s=1)] * len(errands))
            self._go_on(loop)
            return
        running.add_done_callback(told, context=Context())

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_busy = bool(self._waiting)
        if self._is_busy:
            loop.call_soon(self._turn, loop, context=Context())

    def _take(self) -> list[Errand]:
        """The first in the line and, of a single one, those of its version behind it; who gave up is passed over."""
        while self._waiting and self._waiting[0].is_given_up:  # its client has gone
            self._waiting.popleft()
        if not self._waiting:
            return []
        first = self._waiting.popleft()
        taken, cost_s = [first], self._cost_s.get(first.key, 0.0)
        if not first.is_single:
            return taken
        limit = self._most_together
        if 0.0 < cost_s <= self._inline_s:
            limit = min(limit, int(self._inline_s / cost_s))
        left: deque[Errand] = deque()
        while self._waiting and len(taken) < limit:
            each = self._waiting.popleft()
            if not (each.is_single and each.key == first.key):
                left.append(each)
            elif not each.is_given_up:
                taken.append(each)
        self._waiting.extendleft(reversed(left))
        return taken

    def _expected_s(self, errands: Sequence[Errand]) -> float:
        num = sum(each.num_windows for each in errands)
        return num * self._cost_s.get(errands[0].key, float("inf"))

    def _timed(self, errands: Sequence[Errand]) -> Sequence[Any]:
        """The work, whose duration is noted."""
        begun_s = time.perf_counter()
        try:
            return self._work([each.item for each in errands])
        except Exception as error:  # of the work itself: every one of them is told
            return [error] * len(errands)
        finally:
            key, num = errands[0].key, sum(each.num_windows for each in errands)
            each_s = (time.perf_counter() - begun_s) / max(num, 1)
            known_s = self._cost_s.pop(key, None)
            self._cost_s[key] = each_s if known_s is None else min(each_s, known_s * RISE)
            if len(self._cost_s) > MOST_KNOWN:
                del self._cost_s[next(iter(self._cost_s))]

    @staticmethod
    def _tell(errands: Sequence[Errand], results: Sequence[Any]) -> None:
        for errand, result in zip(errands, results, strict=True):
            promise = errand.promise
            if promise is None:  # in a turn of its own, as who has a promise: what the run handed over goes out before
                asyncio.get_running_loop().call_soon(errand.tell, result)
            elif promise.done():  # its client has gone
                continue
            elif isinstance(result, Exception):
                promise.set_exception(result)
            else:
                promise.set_result(result)
