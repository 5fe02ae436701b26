"""Watch over the service: one question every two seconds while anybody looks, so that its death is said and its return
seen by every open page at once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from common_lib.exceptions import PlatformError
from ml_workbench_client import AsyncWorkbench, Patience

EVERY_S = 2.0
TIMEOUT_S = 5.0

log = logging.getLogger(__name__)
Listener = Callable[[bool], Awaitable[None]]


class ServiceWatch:
    """Whether the service answers; tells its listeners when that changes."""

    def __init__(self, service_url: str) -> None:
        self._bench = AsyncWorkbench(service_url, "", timeout_s=TIMEOUT_S, patience=Patience(num_retries=0))
        self._listeners: set[Listener] = set()
        self.is_up = True
        self.reason = ""

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Adds a listener; the answer takes it away again."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            if self._listeners:
                await self.look()
            await asyncio.sleep(EVERY_S)

    async def close(self) -> None:
        """Closes its connection."""
        await self._bench.aclose()

    async def look(self) -> None:
        """Looks once."""
        was_up = self.is_up
        try:
            await self._bench.live
        except PlatformError as error:
            self.is_up, self.reason = False, error.message
        else:
            self.is_up, self.reason = True, ""
        if self.is_up != was_up:
            log.info("the service %s", "answers again" if self.is_up else f"does not answer: {self.reason}")
            for listener in tuple(self._listeners):
                await listener(self.is_up)
