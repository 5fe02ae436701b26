"""Public door: the listening socket that predict workers share, and how they accept evenly from it.

The control process binds it, hands it down and accepts nothing itself; the first worker that serves listens. There is
one queue of new connections: who waits in it when a worker dies is accepted by another.

A worker accepts one connection at a time, and leaves it to the others for a moment while one of them has fewer: each
writes how many it has onto a board of shared memory. Left to the event loops, the first to wake takes them all
(docs/decisions/0046).

    board   one signed 64-bit number a worker, written by it alone: its connections; -1: it accepts none
"""

import asyncio
import hashlib
import mmap
import os
import socket
import ssl
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common_lib.exceptions import UnavailableError

BACKLOG = 2048
BIND_TIMEOUT_S = 10.0
TAKEN_WITHIN_S = 1.0
"""The workers of a killed predecessor need a moment to notice."""
COURTESY_S = 0.002
LOOK_S = 0.05
MAX_SOCKET_PATH_BYTES = 103
_NUMBER = struct.Struct("=q")


class Board:
    """How many connections each worker has."""

    def __init__(self, fd: int, num: int) -> None:
        self._memory = mmap.mmap(fd, num * _NUMBER.size)
        self.num = num

    def write(self, place: int, connections: int) -> None:
        """A worker's own number; -1: it accepts none."""
        _NUMBER.pack_into(self._memory, place * _NUMBER.size, connections)

    def read(self) -> list[int]:
        """All of them."""
        return [_NUMBER.unpack_from(self._memory, place * _NUMBER.size)[0] for place in range(self.num)]

    @staticmethod
    def made(num: int) -> IO[bytes]:
        """The file behind a new board, on which nobody accepts yet; it has no name, and ends with its last holder."""
        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.write(_NUMBER.pack(-1) * num)
        file.flush()
        return file


@dataclass(frozen=True)
class PublicDoor:
    """What the control process holds and its workers are handed.

    Attributes:
        listening: the shared socket.
        control: path of the Unix socket on which the control process answers what is not the workers'.
    """

    listening: socket.socket
    control: Path


@contextmanager
def open_public_door(host: str, port: int, state_dir: Path) -> Iterator[PublicDoor]:
    """Binds both; raises UnavailableError where the address is taken."""
    folder = _private_folder(state_dir)
    control = folder / "control.sock"
    if len(os.fsencode(control)) > MAX_SOCKET_PATH_BYTES:
        raise UnavailableError("the temporary folder's path is too long for a Unix socket; set TMPDIR to a shorter one")
    listening = _listening(host, port)
    try:
        yield PublicDoor(listening, control)
    finally:
        listening.close()
        control.unlink(missing_ok=True)
        with suppress(OSError):  # the embedded Redis has its socket there
            folder.rmdir()


def _private_folder(state_dir: Path) -> Path:
    """As the embedded Redis names it: 0700, by STATE_DIR's hash."""
    digest = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"ml_workbench-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UnavailableError(
            f"{folder.name} in the temporary folder belongs to somebody else; set TMPDIR to your own"
        )
    folder.chmod(0o700)
    return folder


def _listening(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + BIND_TIMEOUT_S
    while True:
        try:
            listening.bind(address)
        except OSError as error:
            if time.monotonic() > deadline:
                listening.close()
                raise UnavailableError(f"{host}:{port} cannot be listened on: {error.strerror}; set PORT") from error
            time.sleep(0.1)
            continue
        listening.setblocking(False)
        return listening


class EvenAcceptor:
    """One worker's turn at the shared socket; for one event loop.

    Args:
        place: its own on the board.
        num_connections: how many it has.
        welcome: makes the protocol of a new one.
        tls: where connections are encrypted.
    """

    def __init__(
        self, listening: socket.socket, board: Board, place: int, *, num_connections: Callable[[], int],
        welcome: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._listening, self._board, self._place = listening, board, place
        self._num_connections, self._welcome = num_connections, welcome
        self._tls = tls
        self._num_coming = 0
        self._loop = asyncio.get_running_loop()
        self._waits: asyncio.TimerHandle | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begins to accept; the first worker that does opens the port."""
        self._listening.listen(BACKLOG)
        self._write()
        self._loop.add_reader(self._listening, self._offered)

    def stop(self) -> None:
        """Accepts no more; the others go on, and where there are none the port is free."""
        if self._listening.fileno() < 0:
            return
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for each in (self._waits, self._tick):
            if each is not None:
                each.cancel()
        self._board.write(self._place, -1)

    async def taken(self) -> None:
        """Waits until everybody who was accepted has a protocol: a server that ends tells those that it knows.

        Not for long: who is silent in the middle of a handshake is given up.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TAKEN_WITHIN_S)
            for task in self._tasks:
                task.cancel()

    @property
    def _mine(self) -> int:
        return self._num_connections() + self._num_coming

    def _write(self) -> None:
        """Connections end without a word: the board is put right every now and then."""
        self._board.write(self._place, self._mine)
        self._tick = self._loop.call_later(LOOK_S, self._write)

    def _offered(self) -> None:
        """Somebody waits: mine, unless another worker has fewer."""
        others = [each for place, each in enumerate(self._board.read()) if place != self._place and each >= 0]
        if others and self._mine > min(others):
            self._loop.remove_reader(self._listening)
            self._waits = self._loop.call_later(COURTESY_S, self._nobody_came)
            return
        self._accept()

    def _nobody_came(self) -> None:
        """Whoever waits still is accepted here: the other one is busy."""
        self._accept()
        self._loop.add_reader(self._listening, self._offered)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # no file descriptors left: they become free again
            self._loop.remove_reader(self._listening)
            self._waits = self._loop.call_later(1.0, self._nobody_came)
            return
        connection.setblocking(False)
        self._num_coming += 1
        self._board.write(self._place, self._mine)
        task = self._loop.create_task(self._take(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._welcome, connection, ssl=self._tls)
        except OSError:
            connection.close()
        finally:
            self._num_coming -= 1
