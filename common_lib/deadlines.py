"""Deadlines for connections of the standard library, whose timeouts begin anew with each byte that arrives."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection


@contextmanager
def closed_after(connection: HTTPConnection, seconds: float) -> Iterator[None]:
    """Ends whatever the connection is doing after so many seconds.

    Raises:
        TimeoutError: it was ended, though what was read until then looked whole.
    """
    late = threading.Event()
    timer = threading.Timer(seconds, _shut, (connection, late))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError(f"no whole answer within {seconds:g} s")


def _shut(connection: HTTPConnection, late: threading.Event) -> None:
    late.set()
    opened = connection.sock
    if opened is not None:
        with suppress(OSError):  # it is closed by now
            opened.shutdown(socket.SHUT_RDWR)
