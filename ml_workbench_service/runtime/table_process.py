"""`TableProcess`: the service's side of the process that reads tables, started when a table is asked for.

What reads Parquet and writes it needs a hundred megabytes and half a second to load; the service stays without it. The
process starts with the first table, serves several at a time, and ends when none was asked for during `idle_s`. Nothing
is kept there: it is started again for the next one, and where it was lost before it had begun to answer, for the same
one, once. It belongs to the service: when the service ends, however, its end of the socket closes, and it ends too.

Why sockets handed over and no pipe with numbered messages: each answer then has the kernel's own buffer, and a client
that takes its table slowly holds up nobody else; what is given up is closed, and the writer hears of it.
"""

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from common_lib.exceptions import UnavailableError
from common_lib.storage import make_folder
from ml_workbench_service.contracts.batches import BatchTask
from ml_workbench_service.contracts.bodies import BodyTask
from ml_workbench_service.contracts.comparison import ComparisonReport
from ml_workbench_service.contracts.desk_report import DeskReport, DeskTask
from ml_workbench_service.contracts.explanations import ExplanationTask
from ml_workbench_service.contracts.extras import require
from ml_workbench_service.contracts.figures import FigureTask, SentFigureTask
from ml_workbench_service.contracts.tables import (
    AnyTable,
    ComparisonTask,
    MarketTask,
    Sent,
    TableFormat,
    TableHead,
    TableOrder,
)
from ml_workbench_service.jobs.process_record import spawn
from ml_workbench_service.runtime.table_exchange import (
    ANSWERS,
    BODY,
    CHUNK,
    END,
    ERROR,
    FRAME,
    HEAD,
    NEED,
    QUESTION,
    ToldError,
)

MODULE = "ml_workbench_service.runtime.table_worker"
MOST_AT_ONCE = 4
"""Tables in work: each holds some megabytes of the process, and a processor while nothing holds it up."""
MOST_WAITING = 32
STALLED_S = 60.0
"""A client that takes nothing for so long has its table broken off, so that others get its place."""
HELD_BACK_BYTES = 256 * 1024
"""Collected before the first piece is handed out: a smaller table is answered whole, or with an error."""
READ_AHEAD_BYTES = 1024 * 1024
"""Of an answer, before its reader is told to wait: a chunk of a batch comes in one go."""
SENT_AT_ONCE = 256 * 1024
GRACE_S = 5.0
RETRY_AFTER_S = 2

More = Callable[[], Awaitable[bytes]]
Answer = Callable[[bytes], Awaitable[bytes]]

log = logging.getLogger(__name__)


async def nothing() -> bytes:
    """The body of what has none."""
    return b""


async def as_it_is(chunk: bytes) -> bytes:
    """The answer to what asks nothing."""
    return chunk


class _Lost(Exception):
    """The process was gone before it had begun to answer."""


@dataclass
class _Running:
    """The process and our end of its socket."""

    child: subprocess.Popen[bytes]
    control: socket.socket


class TableProcess:
    """Asks the table process; a `contracts.runners.TableReader`.

    Args:
        environment: the process's.
        output: a file for what it prints.
        idle_s: without a table for so long it ends.
    """

    def __init__(self, environment: Mapping[str, str], output: Path, *, idle_s: float) -> None:
        self._environment = dict(environment)
        self._output = output
        self._idle_s = idle_s
        self._running: _Running | None = None
        self._starting = asyncio.Lock()
        self._places = asyncio.Semaphore(MOST_AT_ONCE)
        self._num_asked = 0
        self._rest: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        running = self._running
        return None if running is None or running.child.poll() is not None else running.child.pid

    async def page(self, table: AnyTable, *, first: int, limit: int) -> tuple[TableHead, bytes]:
        """Up to `limit` rows after the first `first` ones, as a JSON array of objects."""
        return await self._whole(TableOrder(what=table, first=first, limit=limit))

    async def compare(self, task: ComparisonTask) -> ComparisonReport:
        """Several versions on the rows that all of them have."""
        _, found = await self._whole(TableOrder(what=task))
        return ComparisonReport.model_validate_json(found)

    async def report_desk(self, task: DeskTask) -> DeskReport:
        """What a desk asks of a version's test part."""
        _, found = await self._whole(TableOrder(what=task))
        return DeskReport.model_validate_json(found)

    def stream(
        self, table: AnyTable | Sent, format: TableFormat, *, first: int = 0, limit: int | None = None
    ) -> AsyncIterator[bytes]:
        """The table in pieces; the first comes once `HELD_BACK_BYTES` are there, or all of it."""
        what, buffers = (table.table, table.buffers) if isinstance(table, Sent) else (table, ())
        return self._in_pieces(TableOrder(what=what, format=format, first=first, limit=limit), buffers)

    def read_market(self, task: MarketTask, format: TableFormat) -> AsyncIterator[bytes]:
        """Features or labels in pieces, as `stream`, JSON too."""
        return self._in_pieces(TableOrder(what=task, format=format), ())

    def draw(self, task: FigureTask | SentFigureTask) -> AsyncIterator[bytes]:
        """A figure or a report in pieces, as `stream`."""
        return self._in_pieces(TableOrder(what=task), ())

    async def read_body(self, task: BodyTask, parts: Sequence[bytes]) -> bytes:
        """A large body, which came in parts, checked, in the form that `contracts.bodies` says."""
        _, found = await self._whole(TableOrder(what=task), parts)
        return found

    async def explain(self, task: ExplanationTask, windows: bytes) -> bytes:
        """What each feature added to each output of these windows, as `ExplanationTask` says."""
        _, found = await self._whole(TableOrder(what=task), (windows,))
        return found

    async def converse(self, task: BatchTask, more: More, answered: Answer) -> AsyncIterator[bytes]:
        """The answers to an Arrow stream in pieces, all of which has been answered before the first."""
        async with self._place() as place:
            answer = await self._begin(TableOrder(what=task), ())
            try:
                async for piece in answer.pieces(more, answered):
                    place.watch(answer)
                    yield piece
                    place.unwatch()
            finally:
                place.unwatch()
                answer.close()

    async def _in_pieces(self, order: TableOrder, buffers: Sequence[bytes]) -> AsyncIterator[bytes]:
        async with self._place() as place:
            answer = await self._begin(order, buffers)
            held = bytearray()
            try:
                async for piece in answer.pieces():
                    held += piece
                    if len(held) >= HELD_BACK_BYTES:
                        place.watch(answer)
                        yield bytes(held)
                        place.unwatch()
                        held.clear()
                if held:
                    yield bytes(held)
            finally:
                place.unwatch()
                answer.close()

    async def close(self) -> None:
        """Ends the process; nothing is answered any more."""
        self._is_closed = True
        self._end()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _whole(self, order: TableOrder, buffers: Sequence[bytes] = ()) -> tuple[TableHead, bytes]:
        async with self._place():
            answer = await self._begin(order, buffers)
            try:
                return answer.head, b"".join([piece async for piece in answer.pieces()])
            finally:
                answer.close()

    @asynccontextmanager
    async def _place(self) -> AsyncIterator["_Place"]:
        """A place among those that are served; raises UnavailableError where too many wait for one."""
        if self._num_asked >= MOST_AT_ONCE + MOST_WAITING:
            raise UnavailableError(
                "too many tables are being read; try again in a moment, or ask for fewer at a time",
                retry_after_s=RETRY_AFTER_S,
            )
        self._num_asked += 1
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        try:
            await self._places.acquire()
            place = _Place(self._places)
            try:
                yield place
            finally:
                place.give_up()
        finally:
            self._num_asked -= 1
            if not self._num_asked and self._running is not None:
                self._rest = asyncio.get_running_loop().call_later(self._idle_s, self._end)

    async def _begin(self, order: TableOrder, buffers: Sequence[bytes]) -> "_Answer":
        """The answer, its head read; a process that was lost before is followed by another, once."""
        for is_last in (False, True):
            try:
                return await self._ask(order, buffers)
            except _Lost as error:
                if is_last:
                    raise _broken_off() from error
                log.warning("the table process was lost; it is started again")
        raise AssertionError("the second try returns or raises")

    async def _ask(self, order: TableOrder, buffers: Sequence[bytes]) -> "_Answer":
        running = await self._process()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(running.control, [b"?"], [theirs.fileno()])
            reader, writer = await asyncio.open_connection(sock=ours, limit=READ_AHEAD_BYTES)
        except OSError as error:
            ours.close()
            self._end()
            raise _Lost from error
        plain = order.model_dump_json().encode()
        answer = _Answer(reader, writer)
        try:
            writer.write(QUESTION.pack(len(plain), sum(map(len, buffers))) + plain)
            for buffer in buffers:
                for place in range(0, len(buffer), SENT_AT_ONCE):  # a transport copies what it cannot send at once
                    writer.write(memoryview(buffer)[place : place + SENT_AT_ONCE])
                    await writer.drain()
            await answer.read_head()
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            answer.close()
            self._end()
            raise _Lost from error
        except BaseException:
            answer.close()
            raise
        return answer

    async def _process(self) -> _Running:
        """The process, started unless it runs; ExtraMissingError where what it reads tables with is not installed."""
        require("data")
        async with self._starting:
            if self._is_closed:
                raise UnavailableError("the service is stopping; try again in a moment", retry_after_s=1)
            if self._running is not None and self._running.child.poll() is not None:
                self._end()
            if self._running is None:
                try:
                    self._running = await asyncio.to_thread(self._start)
                except OSError as error:
                    raise UnavailableError(
                        "the process that reads tables could not be started; the service log says why, try again",
                        retry_after_s=RETRY_AFTER_S,
                    ) from error
            return self._running

    def _start(self) -> _Running:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                make_folder(self._output.parent)
                with self._output.open("ab") as output:
                    child = spawn((sys.executable, "-m", MODULE), output, self._environment, stdin=theirs.fileno())
            except BaseException:
                ours.close()
                raise
        log.info("the table process runs as %d", child.pid)
        return _Running(child, ours)

    def _end(self) -> None:
        """Closes our end, upon which the process ends; call it in the event loop."""
        running, self._running = self._running, None
        self._rest = None
        if running is None:
            return
        running.control.close()
        task = asyncio.get_running_loop().create_task(asyncio.to_thread(_reap, running.child))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class _Place:
    """One of the places that are served; a client that stalls loses it."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places: asyncio.Semaphore | None = places
        self._watch: asyncio.TimerHandle | None = None

    def watch(self, answer: "_Answer") -> None:
        """Breaks the answer off unless `unwatch` comes within `STALLED_S`."""

        def stalled() -> None:
            log.warning("a client took nothing of its table for %.0f s; it is broken off", STALLED_S)
            answer.close()
            self.give_up()

        self._watch = asyncio.get_running_loop().call_later(STALLED_S, stalled)

    def unwatch(self) -> None:
        """The client has taken what it got."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def give_up(self) -> None:
        """For the next one; once."""
        if self._places is not None:
            self._places.release()
            self._places = None


class _Answer:
    """Frames out of one socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.head = TableHead()

    async def read_head(self) -> None:
        """What comes before the rows; raises the error that came in its place."""
        kind, data = await self._frame()
        if kind == ERROR:
            raise ToldError.model_validate_json(data).error()
        assert kind == HEAD, "an answer begins with its head"
        self.head = TableHead.model_validate_json(data)

    async def pieces(self, more: More = nothing, answered: Answer = as_it_is) -> AsyncIterator[bytes]:
        """The rows, up to the end; of a batch, what it asks for on the way is given by these."""
        try:
            while (frame := await self._frame())[0] != END:
                if frame[0] == ERROR:
                    raise ToldError.model_validate_json(frame[1]).error()
                if frame[0] == NEED:
                    await self._give(BODY, await more())
                elif frame[0] == CHUNK:
                    await self._give(ANSWERS, await answered(frame[1]))
                else:
                    yield frame[1]
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise _broken_off() from error

    async def _give(self, kind: bytes, data: bytes) -> None:
        self._writer.write(FRAME.pack(kind, len(data)) + data)
        await self._writer.drain()

    async def _frame(self) -> tuple[bytes, bytes]:
        kind, size = FRAME.unpack(await self._reader.readexactly(FRAME.size))
        return kind, await self._reader.readexactly(size)

    def close(self) -> None:
        """Gives the rest up."""
        with suppress(ConnectionError):
            self._writer.transport.abort()


def _broken_off() -> UnavailableError:
    return UnavailableError(
        "the process that reads tables ended in the middle of this one; ask again, it is started anew",
        retry_after_s=RETRY_AFTER_S,
    )


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Waits for the end that was asked for; by force after a while."""
    try:
        child.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
