"""Stopping event: what lasts as long as the service does, such as an event stream, learns that it ends."""

import asyncio
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import FrameType
from typing import Any

TURNS = 5
TURN_S = 0.05
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stopping_event(stack: AsyncExitStack, *, at: Sequence[signal.Signals] = STOP_SIGNALS) -> asyncio.Event:
    """Set at these signals, before uvicorn waits for open streams: they end by themselves then.

    uvicorn runs the lifespan's shutdown only after all connections are closed, so without this a client that follows
    a job would hold the service, and a reload, for ever. It hears of the signal a moment later itself: it closes
    connections of which it has read nothing, and what was sent before the signal is to be answered. A second signal is
    handed on at once.
    """
    stopping = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        return stopping
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def later(end: Callable[[], Any], turns: int) -> None:
        """Turns are counted: each reads what has come, however long the one before it took."""
        if turns:
            loop.call_later(TURN_S, later, end, turns - 1)
        else:
            end()

    for number in at:
        previous = signal.getsignal(number)

        def chained(
            received: int,
            frame: FrameType | None,
            before: Callable[[int, FrameType | None], Any] | int | None = previous,
        ) -> None:
            is_first = not asked
            asked.append(received)
            loop.call_soon_threadsafe(stopping.set)
            if not callable(before):
                return
            if is_first:
                loop.call_soon_threadsafe(later, partial(before, received, frame), TURNS)
            else:
                before(received, frame)

        signal.signal(number, chained)
        stack.callback(signal.signal, number, previous)
    return stopping
