"""Fault-injecting TCP proxy in front of a server's Unix socket: it can spoil every connection through it.

It passes, delays, throttles, cuts a message half-way, resets (RST, by SO_LINGER 0), refuses and swallows. Bytes are
never changed or reordered. It runs an event loop in a thread of its own; every method may be called from any thread.
"""

import asyncio
from typing import Literal

from ml_workbench_service.resilience.loopback_proxy import CHUNK_BYTES, Link, LoopbackProxy, Streams

Direction = Literal["request", "answer"]


class FaultProxy(LoopbackProxy):
    """Listens on a loopback port that it chooses; `upstream` is the path of a Unix socket.

    Attributes:
        delay_s: before each piece of data is passed on, in either direction.
        bytes_per_s: how fast pieces pass; None: as they come.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__("fault proxy")
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self._upstream = upstream
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut_next: Direction | None = None

    @property
    def url(self) -> str:
        """As redis clients take it."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> str:
        """Begins to listen; the URL."""
        self._begin()
        return self.url

    def stop(self) -> None:
        """Ends every connection and the thread."""
        self._end()

    def reset(self) -> int:
        """Resets every connection at once; how many there were."""
        return self._do(self._reset_all())

    def cut(self, direction: Direction) -> None:
        """The next message in that direction passes by half, then its connection is reset on both sides.

        A request cut by half never reaches the server whole; a cut answer belongs to a command that was executed.
        """
        self._cut_next = direction

    def refuse(self) -> None:
        """Nobody can connect any more (ECONNREFUSED), and those who are connected are reset."""
        self._do(self._refuse())

    def accept(self) -> None:
        """Connections are taken again, on the same port."""
        self._do(self._listen())

    def swallow(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def release(self) -> None:
        """What was held back passes, and everything flows again."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    async def _connect(self) -> Streams:
        return await asyncio.open_unix_connection(self._upstream)

    async def _carry(self, asked: asyncio.StreamReader, answered: asyncio.StreamReader, link: Link) -> None:
        await asyncio.gather(
            self._pump(asked, link.server, "request", link), self._pump(answered, link.client, "answer", link)
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction, link: Link
    ) -> None:
        """Passes pieces on until either end closes, which closes the other."""
        try:
            while piece := await reader.read(CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.bytes_per_s:
                    await asyncio.sleep(len(piece) / self.bytes_per_s)
                await self._flowing.wait()
                if self._cut_next == direction:
                    self._cut_next = None
                    await self._cut(piece, writer, link)
                    return
                writer.write(piece)
                await writer.drain()
        except OSError:  # one end was reset: so is the other
            pass
        finally:
            link.close()

    async def _cut(self, piece: bytes, writer: asyncio.StreamWriter, link: Link) -> None:
        writer.write(piece[: max(1, len(piece) // 2)])
        await writer.drain()
        await asyncio.sleep(0.001)  # so that the half is with the other end before the reset takes the rest
        link.reset()
