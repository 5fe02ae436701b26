"""Fault-injecting TCP proxy in front of a server's Unix socket: it can spoil every connection through it.

It passes, delays, throttles, cuts a message half-way, resets (RST, by SO_LINGER 0), refuses and swallows. Bytes are
never changed or reordered. It runs an event loop in a thread of its own; every method may be called from any thread.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal

Direction = Literal["request", "answer"]
_CHUNK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)  # linger on, for no time: close sends RST
_START_TIMEOUT_S = 10.0


class FaultProxy:
    """Listens on a loopback port that it chooses; `upstream` is the path of a Unix socket.

    Attributes:
        delay_s: before each piece of data is passed on, in either direction.
        bytes_per_s: how fast pieces pass; None: as they come.
    """

    def __init__(self, upstream: str) -> None:
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.port = 0
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._cut_next: Direction | None = None

    @property
    def url(self) -> str:
        """As redis clients take it."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> str:
        """Begins to listen; the URL."""
        self._thread.start()
        self._do(self._listen)
        return self.url

    def stop(self) -> None:
        """Ends every connection and the thread."""
        if not self._thread.is_alive():
            return
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_TIMEOUT_S)
        self._loop.close()

    def reset(self) -> int:
        """Resets every connection at once; how many there were."""
        return int(self._do(self._reset))

    def cut(self, direction: Direction) -> None:
        """The next message in that direction passes by half, then its connection is reset on both sides.

        A request cut by half never reaches the server whole; a cut answer belongs to a command that was executed.
        """
        self._cut_next = direction

    def refuse(self) -> None:
        """Nobody can connect any more (ECONNREFUSED), and those who are connected are reset."""
        self._do(self._close)

    def accept(self) -> None:
        """Connections are taken again, on the same port."""
        self._do(self._listen)

    def swallow(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def release(self) -> None:
        """What was held back passes, and everything flows again."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def _do(self, work: "Callable[[], Coroutine[Any, Any, Any]]") -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(_START_TIMEOUT_S)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset()

    async def _reset(self) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        await asyncio.sleep(0)
        return len(links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
        except OSError:  # the server is away: its proxy is as well
            _abort(writer)
            return
        link = _Link(writer, up_writer)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(reader, up_writer, "request", link), self._pump(up_reader, writer, "answer", link)
            )
        finally:
            self._links.discard(link)
            link.reset()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction, link: "_Link"
    ) -> None:
        """Passes pieces on until either end closes, which closes the other."""
        try:
            while piece := await reader.read(_CHUNK):
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

    async def _cut(self, piece: bytes, writer: asyncio.StreamWriter, link: "_Link") -> None:
        writer.write(piece[: max(1, len(piece) // 2)])
        await writer.drain()
        await asyncio.sleep(0.001)  # so that the half is with the other end before the reset takes the rest
        link.reset()


class _Link:
    """The two ends of one connection."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers

    def close(self) -> None:
        """In an orderly way."""
        for writer in self._writers:
            writer.close()

    def reset(self) -> None:
        """With RST where the end is TCP."""
        for writer in self._writers:
            _abort(writer)


def _abort(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.family == socket.AF_INET and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
