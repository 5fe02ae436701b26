"""TCP fault proxy before one server on the loopback: it spoils every connection as it is told.

It runs an event loop in a thread of its own; `fault` may be set from any thread, and holds from then on.
"""

import asyncio
import random
from enum import StrEnum
from typing import Self

from ml_workbench_service.resilience.loopback_proxy import CHUNK_BYTES, Link, LoopbackProxy, Streams, reset

LATENCY_S = 0.3
DRIP_S = 1.0
SLOW_CLOSE_S = 60.0
LOOK_S = 0.02


class Fault(StrEnum):
    """What is done to the connections of one server."""

    NONE = "none"
    """Everything passes."""
    LATENCY = "latency"
    """Each piece waits `LATENCY_S`, in both directions."""
    REFUSED = "refused"
    """The port is closed, and who was connected is reset."""
    RESET = "reset"
    """A connection is reset as soon as something is asked."""
    BLACK_HOLE = "black hole"
    """Connections are taken, and nothing passes."""
    SLOW_CLOSE = "slow close"
    """Everything passes, but the server's closing, which comes `SLOW_CLOSE_S` later."""
    DRIP = "drip"
    """Answers pass byte by byte, one every `DRIP_S`: a patience that begins anew with each byte never ends."""
    GARBAGE = "garbage"
    """Questions reach the server; its answers arrive as random bytes."""
    HALF_ANSWER = "half answer"
    """Half of the first piece of an answer, then the end of the connection."""


class FaultyProxy(LoopbackProxy):
    """Listens on a loopback port that it chooses, and passes on to another one.

    Args:
        upstream: the port of the server.
        seed: of the garbage.
    """

    def __init__(self, upstream: int, *, seed: int = 0) -> None:
        super().__init__("faulty proxy")
        self._upstream = upstream
        self._fault = Fault.NONE
        self._chance = random.Random(seed)

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def fault(self) -> Fault:
        """What is done now."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        self._do(self._refuse() if fault is Fault.REFUSED else self._listen())

    async def _connect(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self._upstream)

    async def _carry(self, asked: asyncio.StreamReader, answered: asyncio.StreamReader, link: Link) -> None:
        await asyncio.gather(
            self._questions(asked, link.server, link.client), self._answers(answered, link.client, link.server)
        )

    async def _questions(
        self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        while piece := await reader.read(CHUNK_BYTES):
            if self._fault is Fault.RESET:
                reset(back)
                break
            await self._held()
            if to.is_closing():  # the server has left, and answers what comes too late with a reset
                reset(back)
                break
            to.write(piece)
            await to.drain()
        to.close()

    async def _answers(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        while piece := await reader.read(CHUNK_BYTES):
            await self._held()
            if self._fault is Fault.HALF_ANSWER:
                to.write(piece[: len(piece) // 2])
                break
            if self._fault is Fault.GARBAGE:
                piece = self._chance.randbytes(len(piece))
            await self._dripped(piece, to)
        up.close()
        await self._until_released(Fault.SLOW_CLOSE, SLOW_CLOSE_S)
        await to.drain()
        to.close()

    async def _held(self) -> None:
        if self._fault is Fault.LATENCY:
            await asyncio.sleep(LATENCY_S)
        await self._until_released(Fault.BLACK_HOLE, float("inf"))

    async def _until_released(self, fault: Fault, most_s: float) -> None:
        end = self._loop.time() + most_s
        while self._fault is fault and self._loop.time() < end:
            await asyncio.sleep(LOOK_S)

    async def _dripped(self, piece: bytes, to: asyncio.StreamWriter) -> None:
        sent = 0
        while self._fault is Fault.DRIP and sent < len(piece):
            to.write(piece[sent : sent + 1])
            sent += 1
            await to.drain()
            await self._until_released(Fault.DRIP, DRIP_S)
        to.write(piece[sent:])
        await to.drain()
