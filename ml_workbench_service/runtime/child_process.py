"""Process supervision: keeps one process that belongs to the service running, such as an agent or the tracker.

The process stops and starts with the service. Its pid and start time lie in a record file, so that what a killed
predecessor left running is ended at start, and nothing else ever is. A process that dies is started again after a
pause that doubles from failure to failure; one that ends with exit code 0 meant to, and rests until it is poked.
"""

import asyncio
import logging
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from common_lib.storage import make_folder
from ml_workbench_service.jobs.process_record import ProcessRecord, end_leftover, end_process, spawn

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_AFTER_S = 30.0  # a life this long forgives the failures before it
UNHEARD_S = 3.0  # a poke this shortly before a clean end may have gone unheard
POLL_S = 0.1

log = logging.getLogger(__name__)


class SupervisedProcess:
    """Starts one command, watches it, ends it.

    Args:
        name: for the log.
        record: JSON file of pid and start time, written while the process lives; beside it a log of what it prints.
        on_demand: start only when poked; otherwise at `start` too.
        first_pause_s: before the first restart of a process that died.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        record: Path,
        *,
        on_demand: bool = False,
        grace_s: float = 5.0,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._record = record
        self._output = record.with_suffix(".log")
        self._on_demand = on_demand
        self._grace_s = grace_s
        self._first_pause_s = first_pause_s
        self._child: subprocess.Popen[bytes] | None = None
        self._poked = asyncio.Event()
        self._poked_at = -UNHEARD_S
        self._task: asyncio.Task[None] | None = None
        self.num_failures = 0  # in a row

    async def start(self) -> None:
        """Ends what a killed predecessor left running, then begins to supervise."""
        await asyncio.to_thread(end_leftover, self._record, grace_s=self._grace_s)
        if not self._on_demand:
            self.poke()
        self._task = asyncio.create_task(self._supervise(), name=f"supervised process of {self.name}")

    def poke(self) -> None:
        """There is something to do: the process is started unless it runs. Call it in the event loop."""
        self._poked_at = time.monotonic()
        self._poked.set()

    async def stop(self) -> None:
        """Ends the process (SIGTERM, SIGKILL after the grace) and stops supervising."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await asyncio.to_thread(self._end)

    async def _supervise(self) -> None:
        while True:
            if not self.num_failures:
                await self._poked.wait()
            self._poked.clear()
            began = time.monotonic()
            try:
                self._spawn()
                exit_code = await self._exit_code()
            except OSError as error:
                log.error("%s could not be started: %s", self.name, error)
                exit_code = -1
            if exit_code == 0:
                self._rest()
                continue
            lived_s = time.monotonic() - began
            self.num_failures = 1 if lived_s > STEADY_AFTER_S else self.num_failures + 1
            pause_s = min(self._first_pause_s * 2 ** min(self.num_failures - 1, 16), LONGEST_PAUSE_S)
            log.warning("%s ended with %d after %.1f s; next try in %.1f s", self.name, exit_code, lived_s, pause_s)
            await asyncio.sleep(pause_s)

    def _rest(self) -> None:
        """A clean end; a poke that came just before it may have found a process that no longer listened."""
        self.num_failures = 0
        self._poked.clear()
        if time.monotonic() - self._poked_at < UNHEARD_S:
            self._poked_at -= UNHEARD_S
            self._poked.set()

    def _spawn(self) -> None:
        make_folder(self._record.parent)
        make_folder(self._output.parent)
        with self._output.open("ab") as output:
            self._child = spawn(self._command, output, self._environment)
        try:
            ProcessRecord.of(self._child.pid).write(self._record)
        except BaseException:  # a full disk, say: nobody would find a process without a record, one more at each try
            self._child.kill()
            self._child.wait()
            self._child = None
            raise
        log.info("%s runs as process %d", self.name, self._child.pid)

    async def _exit_code(self) -> int:
        assert self._child is not None
        while (exit_code := self._child.poll()) is None:
            await asyncio.sleep(POLL_S)
        self._child = None
        self._record.unlink(missing_ok=True)
        return exit_code

    def _end(self) -> None:
        if self._child is not None and self._child.poll() is None:
            process = ProcessRecord.of(self._child.pid).process()
            if process is not None:
                end_process(process, grace_s=self._grace_s)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=self._grace_s)
        self._child = None
        self._record.unlink(missing_ok=True)
