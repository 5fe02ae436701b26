"""The hand-over stream on a Redis server: each worker's items once, in its order; all of them in one.

    ml_workbench:handover                 what the control process has not saved yet, an entry a parcel
    ml_workbench:handover:last:<sender>   number of the sender's last item that is in it, or was

Law: a parcel's bytes are with the operating system before the answers in it go out, so that a worker that is killed
loses none of them. It is kept until the server has said that it took it, and sent again where that could not be heard:
the server knows it by its number. What the control process has applied and saved leaves the stream; whatever lies in it
is applied after a kill.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any, NamedTuple

import redis
from redis.asyncio import ConnectionPool
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.handover import HANDOVER_STREAM, HandoverEntry, place_of
from ml_workbench_service.exchanges.bounded_redis import BoundedParser

MOST_ITEMS = 20_000
"""Kept by a worker while the server is away or has no room; the oldest parcels are dropped and counted."""
MOST_ENTRIES = 4_096
"""In the stream, while the control process cannot save them: some 50,000 answers under load."""
MOST_OF_A_PARCEL = 256
TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 1.0
WATCH_S = 0.5

log = logging.getLogger(__name__)
_pack: Any = HiredisRespSerializer().pack


class _Parcel(NamedTuple):
    first: int
    num: int
    items: bytes
    put_s: float

    @property
    def last(self) -> int:
        return self.first + self.num - 1


class HandoverOutbox:
    """A worker's side: one connection, written to within the event loop, without waiting.

    Args:
        url: of the server.
        sender: a name of this worker's life, used once.
        most_items: kept in memory.
        most_entries: the stream's bound.
    """

    def __init__(
        self, url: str, sender: str, *, most_items: int = MOST_ITEMS, most_entries: int = MOST_ENTRIES
    ) -> None:
        self._sender, self._most_items, self._most_entries = sender, most_items, most_entries
        self._keys = (HANDOVER_STREAM, f"{HANDOVER_STREAM}:last:{sender}")
        self._script = (files("ml_workbench_service.integrations") / "scripts" / "hand_over.lua").read_bytes()
        self._sha = ""
        pool = ConnectionPool.from_url(url, socket_timeout=None, socket_connect_timeout=CONNECT_TIMEOUT_S, protocol=2)
        made: Any = pool
        self._connection = made.make_connection()
        self._unacknowledged: deque[_Parcel] = deque()
        self._num_in_flight = 0  # the first so many of them
        self._is_open = False
        self._next = 0
        self.num_waiting = 0
        """Items that the server has not taken yet."""
        self.num_dropped = 0
        """Items that there was no room for."""
        self._task: asyncio.Task[None] | None = None
        self._is_away = False

    def put(self, items: Sequence[bytes]) -> None:
        """Sends JSON objects as one parcel, or several, on the spot where the server is there. In the event loop."""
        for place in range(0, len(items), MOST_OF_A_PARCEL):
            part = items[place : place + MOST_OF_A_PARCEL]
            parcel = _Parcel(self._next, len(part), b"[" + b",".join(part) + b"]", time.monotonic())
            self._next += parcel.num
            self._unacknowledged.append(parcel)
            self.num_waiting += parcel.num
            if self._is_open:
                self._write(parcel, len(self._unacknowledged) - 1)
        if self.num_waiting > self._most_items:
            self._drop_oldest()

    async def start(self) -> None:
        """Begins to send; what was put before goes out first."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="hand-over")

    async def stop(self, drain_s: float = 2.0) -> None:
        """Gives what waits `drain_s` to be taken, then ends."""
        deadline = time.monotonic() + drain_s
        while self.num_waiting and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._disconnect()
        if self.num_waiting:
            log.warning("the control process never got %d answers: Redis stayed away", self.num_waiting)

    def _write(self, parcel: _Parcel, place: int) -> None:
        """To the operating system, which delivers it even if this process is killed now."""
        before = self._unacknowledged[place - 1].last if place else -1
        arguments = (self._most_entries, self._sender, parcel.first, parcel.num, before, parcel.items)
        writer = self._connection._writer  # the library's own method would have to be awaited
        try:
            writer.writelines(_pack("EVALSHA", self._sha, 2, *self._keys, *arguments))
        except RuntimeError:  # what uvloop says of a connection that was lost a moment ago: whoever reads finds it out
            self._is_open = False
            return
        self._num_in_flight += 1

    def _drop_oldest(self) -> None:
        """Half of the bound at once; a connection over which answers to them may come is given up."""
        if self._num_in_flight:
            self._is_open = False
            asyncio.get_running_loop().create_task(self._disconnect())
        while self.num_waiting > self._most_items // 2:
            gone = self._unacknowledged.popleft()
            self.num_waiting -= gone.num
            self.num_dropped += gone.num
        log.warning("%d answers never reach the ledger: Redis is away, or the ledger's disk is full", self.num_dropped)

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._connect()
                pause_s = FIRST_PAUSE_S
                await self._converse()
            except (redis.RedisError, OSError, RuntimeError) as error:
                if not self._is_away:
                    log.warning("answers wait for Redis before they reach the ledger: %s", error)
                self._is_away = True
            finally:
                await self._disconnect()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _connect(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self._connection.connect()
            await self._connection.send_packed_command(_pack("SCRIPT", "LOAD", self._script), check_health=False)
            self._sha = (await self._connection.read_response()).decode()
        if self._is_away:
            log.info("Redis is back; %d answers are handed over", self.num_waiting)
        self._is_away = False

    async def _disconnect(self) -> None:
        self._is_open, self._num_in_flight = False, 0
        with suppress(redis.RedisError, OSError, RuntimeError):
            await self._connection.disconnect(nowait=True)

    def _write_all(self) -> None:
        self._num_in_flight, self._is_open = 0, True
        for place, parcel in enumerate(self._unacknowledged):
            self._write(parcel, place)

    async def _converse(self) -> None:
        """Writes what waits, then reads answers for as long as the connection holds."""
        self._write_all()
        watch = asyncio.get_running_loop().create_task(self._watch())
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                answer = await self._connection.read_response()
                self._num_in_flight -= 1
                if answer >= 0:
                    self.num_waiting -= self._unacknowledged.popleft().num
                    pause_s = FIRST_PAUSE_S
                    continue
                self._is_open = False
                while self._num_in_flight:  # those behind it are refused too: it is their turn after it
                    await self._connection.read_response()
                    self._num_in_flight -= 1
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
                self._write_all()
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        """Gives up a connection over which no answer comes."""
        oldest, since_s = -1, 0.0
        while True:
            await asyncio.sleep(WATCH_S)
            if not self._num_in_flight:
                oldest = -1
            elif self._unacknowledged[0].first != oldest:
                oldest, since_s = self._unacknowledged[0].first, time.monotonic()
            elif time.monotonic() - since_s > TIMEOUT_S:
                await self._disconnect()
                return


class HandoverStream:
    """The control process's side; calls block, for one thread.

    Raises:
        UnavailableError: from every method, when the server is away.
    """

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S, retry=Retry(NoBackoff(), 0),
            protocol=2, parser_class=BoundedParser,
        )  # fmt: skip

    def read(self, after: str, *, count: int, block_ms: int = 0) -> list[HandoverEntry]:
        """The next entries; waits for the first one where `block_ms` is set."""
        block = block_ms or None
        answer: Any = self._ask(lambda: self._redis.xread({HANDOVER_STREAM: after or "0-0"}, count=count, block=block))
        return [
            HandoverEntry(
                entry_id.decode(), fields[b"sender"].decode(), int(fields[b"first"]), int(fields[b"num"]),
                fields[b"items"],
            )
            for _, entries in answer or ()
            for entry_id, fields in entries
        ]  # fmt: skip

    def newest(self) -> str:
        """The id of the last entry; empty where there is none."""
        found: Any = self._ask(lambda: self._redis.xrevrange(HANDOVER_STREAM, count=1))
        return found[0][0].decode() if found else ""

    def length(self) -> int:
        """Entries that are not saved yet."""
        found: Any = self._ask(lambda: self._redis.xlen(HANDOVER_STREAM))
        return int(found)

    def trim(self, through: str) -> None:
        """Removes the entries up to that one: they are saved."""
        moment, number = place_of(through)
        self._ask(lambda: self._redis.xtrim(HANDOVER_STREAM, minid=f"{moment}-{number + 1}", approximate=False))

    def close(self) -> None:
        """Gives the connection back."""
        self._redis.close()

    @staticmethod
    def _ask(question: Any) -> Any:
        try:
            return question()
        except redis.RedisError as error:
            raise UnavailableError(
                f"Cannot read what the predict workers hand over ({type(error).__name__}: {error}); check REDIS_URL "
                "and that the Redis server runs.",
                retry_after_s=2,
            ) from error
