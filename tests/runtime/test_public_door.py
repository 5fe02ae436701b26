"""The shared socket: whoever was accepted is known to the server before it ends."""

import asyncio
import socket

from ml_workbench_service.runtime.public_door import Board, EvenAcceptor


class Welcomed(asyncio.Protocol):
    """Remembers itself."""

    found: list["Welcomed"] = []

    def __init__(self) -> None:
        self.is_lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        Welcomed.found.append(self)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_lost.set()


async def test_a_connection_that_is_just_being_taken_is_waited_for() -> None:
    """Else it would be told of no end, and ask a service that has ended until its process has."""
    Welcomed.found.clear()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    address = listening.getsockname()
    with Board.made(1) as file:
        acceptor = EvenAcceptor(
            listening, Board(file.fileno(), 1), 0, num_connections=lambda: len(Welcomed.found), welcome=Welcomed
        )
        acceptor.start()
        with socket.create_connection(address, timeout=30):
            while not acceptor._num_coming:
                acceptor._accept()
            acceptor.stop()
            assert Welcomed.found == []
            await acceptor.taken()
            (welcomed,) = Welcomed.found
            await welcomed.is_lost.wait()
        await asyncio.sleep(0)
