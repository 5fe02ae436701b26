"""TCP proxy on the loopback: the half that every proxy shares which spoils connections on purpose.

It listens on a port that it chooses, opens one connection to the server for each that it takes, and knows all that are
open. What becomes of the bytes in between is the subclass's. It runs an event loop in a thread of its own.
"""

import asyncio
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

CHUNK_BYTES = 64 * 1024
TIMEOUT_S = 10.0
_RESET = struct.pack("ii", 1, 0)  # linger on, for no time: close sends RST

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Link:
    """One connection through the proxy: the client's end, and the server's."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def close(self) -> None:
        """Both ends, in an orderly way."""
        for writer in (self.client, self.server):
            writer.close()

    def reset(self) -> None:
        """Both ends, with RST."""
        for writer in (self.client, self.server):
            reset(writer)


class LoopbackProxy(ABC):
    """Listens and connects; see the module. `port` is known from the first `_begin` on, and stays.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._server: asyncio.Server | None = None
        self._links: set[Link] = set()

    @abstractmethod
    async def _connect(self) -> Streams:
        """A connection to the server; OSError where it is away, as its proxy is then."""

    @abstractmethod
    async def _carry(self, asked: asyncio.StreamReader, answered: asyncio.StreamReader, link: Link) -> None:
        """Passes on what both ends say, until they have ended; an OSError ends both."""

    def _begin(self) -> None:
        self._thread.start()
        self._do(self._listen())

    def _end(self) -> None:
        """Ends every connection and the thread; nothing where it never began, or has ended."""
        if not self._thread.is_alive():
            return
        self._do(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """In the proxy's loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    async def _listen(self) -> None:
        """Takes connections, again on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        """Nobody can connect any more (ECONNREFUSED), and those who are connected are reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset_all()

    async def _reset_all(self) -> int:
        """How many connections there were."""
        links = list(self._links)
        for link in links:
            link.reset()
        await asyncio.sleep(0)
        return len(links)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answered, server = await self._connect()
        except OSError:  # the server is away: its proxy is as well
            reset(writer)
            return
        link = Link(writer, server)
        self._links.add(link)
        try:
            await self._carry(reader, answered, link)
        except OSError:  # one end was reset: so is the other
            pass
        finally:
            self._links.discard(link)
            link.reset()


def reset(writer: asyncio.StreamWriter) -> None:
    """With RST where the end is TCP, unless it was closed before in an orderly way."""
    connection = writer.get_extra_info("socket")
    if writer.is_closing() or connection is None or connection.fileno() < 0:
        return
    if connection.family == socket.AF_INET:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
