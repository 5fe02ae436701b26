"""`PageProcess`: the web page's process, started once the service serves, on the port after the service's own.

It is a client of the service and speaks HTTP to it, so that the service stays as small and as quick to start as without
it. The page ends with the service: by our signal, by the record of a predecessor that was killed, and by itself once it
finds another parent. Where it cannot run (its port is taken, NiceGUI is missing) the service goes on without.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from ml_workbench_service.contracts.extras import is_installed
from ml_workbench_service.jobs.process_record import end_leftover
from ml_workbench_service.runtime.child_process import SupervisedProcess

MODULE = "ml_workbench_client.page"
DELAY_S = 2.5
"""After the start, which has the processor for itself."""
LOOKS, LOOK_S = 20, 0.5
"""For our own listening port, which whoever runs this app opens after it has started."""
PORT_LOOKS = 6
"""For the page's port to become free."""
CONNECT_TIMEOUT_S = 0.5
MOST_FAILURES = 3
"""In a row, after which nobody is told any more that the page is starting; it is tried again all the same."""
SECRETS = ("API_KEY", "WORKBENCH_API_KEY")
GIVES_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""To glibc: a figure passes through once, and what it took is given back at once. 10 of 130 MiB after 40 views."""

log = logging.getLogger(__name__)


class PageProcess:
    """Starts the page, knows where it answers, ends it.

    Args:
        host: that the service listens on.
        port: of the page; None: the service's own and one.
        usual_port: the service's, where several are listened on.
        page_url: as browsers reach the page through a proxy; empty: directly.
        needs_key: whether the service has an API key; without one the page listens on the loopback alone.
    """

    def __init__(
        self, environment: Mapping[str, str], record: Path, *, host: str, port: int | None, usual_port: int,
        page_url: str, needs_key: bool,
    ) -> None:  # fmt: skip
        self._environment = GIVES_BACK | {name: value for name, value in environment.items() if name not in SECRETS}
        self._record = record
        self._host, self._wanted_port, self._usual_port = host, port, usual_port
        self._page_url, self._needs_key = page_url.rstrip("/"), needs_key
        self._process: SupervisedProcess | None = None
        self._port: int | None = None
        self._has_given_up = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the page in a moment; call it in the event loop."""
        self._task = asyncio.create_task(self._start(), name="start of the page")

    async def stop(self) -> None:
        """Ends it, or its start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._process is not None:
            await self._process.stop()

    @property
    def is_missing(self) -> bool:
        """Whether it cannot run here; the log says why."""
        return self._has_given_up or (self._process is not None and self._process.num_failures >= MOST_FAILURES)

    def address(self, host: str) -> str | None:
        """Where a browser that reached the service under this host finds the page; None: nowhere."""
        if self._port is None:
            return None
        return f"{self._page_url}/" if self._page_url else f"http://{_written(host)}:{self._port}/"

    async def answers(self) -> bool:
        """Whether it takes connections."""
        if self._port is None:
            return False
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(self._listens_on, self._port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    async def _start(self) -> None:
        if not is_installed("page"):
            self._has_given_up = True
            log.warning("the extra `page` is not installed, so that there is no page; set PAGE=false")
            return
        await asyncio.sleep(DELAY_S)
        await asyncio.to_thread(end_leftover, self._record, grace_s=1.0)
        own_port = await self._own_port()
        if own_port is None:
            self._has_given_up = True
            log.warning("the service listens on no port that could be found, so that there is no page; set PAGE=false")
            return
        port = self._wanted_port or own_port + 1
        if not await self._becomes_free(port):
            self._has_given_up = True
            log.warning("port %d is taken, so that there is no page; set PAGE_PORT to another, or PAGE=false", port)
            return
        self._environment.update(
            WORKBENCH_URL=f"http://{_written(_reached(self._host))}:{own_port}",
            PAGE_HOST=self._host,
            PAGE_PORT=str(port),
            PAGE_URL=self._page_url,
            PAGE_NEEDS_KEY="true" if self._needs_key else "false",
            PAGE_PARENT=str(psutil.Process().pid),
        )
        command = [sys.executable, "-m", MODULE]
        self._process = SupervisedProcess("page", command, self._environment, self._record)
        await self._process.start()
        self._port = port
        log.info("the page is at %s", self.address(_reached(self._host)))

    async def _own_port(self) -> int | None:
        """The port that this process listens on, whoever chose it: this app's main, or uvicorn's command line."""
        for _ in range(LOOKS):
            found = await asyncio.to_thread(_listening)
            if found:
                return self._usual_port if self._usual_port in found else min(found)
            await asyncio.sleep(LOOK_S)
        return None

    async def _becomes_free(self, port: int) -> bool:
        """Whether nobody holds the port, or gives it up in a moment, as the page of a service that was reloaded."""
        for _ in range(PORT_LOOKS):
            if _is_free(self._listens_on, port):
                return True
            await asyncio.sleep(LOOK_S)
        return _is_free(self._listens_on, port)

    @property
    def _listens_on(self) -> str:
        return _reached(self._host) if self._needs_key else "127.0.0.1"


def _listening() -> set[int]:
    connections = psutil.Process().net_connections(kind="tcp")
    return {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}


def _reached(host: str) -> str:
    """How this machine reaches what listens there."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_free(host: str, port: int) -> bool:
    if port > 65535:
        return False
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
