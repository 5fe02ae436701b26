"""Stopping event: what lasts as long as the service does, such as an event stream, learns that it ends."""

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import FrameType
from typing import Any


def stopping_event(stack: AsyncExitStack) -> asyncio.Event:
    """Set at SIGTERM and SIGINT, before uvicorn waits for open streams: they end by themselves then.

    uvicorn runs the lifespan's shutdown only after all connections are closed, so without this a client that follows
    a job would hold the service, and a reload, for ever.
    """
    stopping = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        return stopping
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        previous = signal.getsignal(number)

        def chained(
            received: int,
            frame: FrameType | None,
            before: Callable[[int, FrameType | None], Any] | int | None = previous,
        ) -> None:
            loop.call_soon_threadsafe(stopping.set)
            if callable(before):
                before(received, frame)

        signal.signal(number, chained)
        stack.callback(signal.signal, number, previous)
    return stopping
