"""`PredictWorkers`: the processes that answer predictions, each replaced when it dies.

    STATE_DIR/predict_workers/<number>.json · <number>.log       who it is, and what it printed

A worker is handed the listening socket, the board on which the workers count their connections (`public_door.py`), the
counts of what keys have used (`access/shared_counts.py`) and one end of a socket pair as its standard input, its
lifeline: over it it reports, and by its end it knows that this process has ended, however that happened. What a dead
worker had counted stays in the sums.
"""

import asyncio
import logging
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from common_lib.storage import make_folder
from ml_workbench_service.access.shared_counts import SharedCounts
from ml_workbench_service.contracts.replicas import WorkerReport
from ml_workbench_service.jobs.process_record import ProcessRecord, end_leftover, end_process, spawn
from ml_workbench_service.runtime.public_door import Board, PublicDoor

MODULE = "ml_workbench_service.predict_worker"
LENGTH = struct.Struct("!I")
ASK = b"?"
REPORT_TIMEOUT_S = 1.0
POLL_S = 0.02
GRACE_S = 15.0
"""For the answers under way; the worker itself gives them three seconds, then closes what it holds."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0
STEADY_AFTER_S = 10.0
LIFELINE = 0
"""A worker's standard input."""

log = logging.getLogger(__name__)


class _Worker:
    """One number of several, through all its lives."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.record = folder / f"{number}.json"
        self.output = folder / f"{number}.log"
        self.child: subprocess.Popen[bytes] | None = None
        self.report: WorkerReport | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.reported = asyncio.Event()
        self.num_deaths = 0


class PredictWorkers:
    """Starts so many, watches them, ends them.

    Args:
        environment: of the workers.
        state_dir: where records and logs lie.
        module: what they run; only tests have another.
    """

    def __init__(
        self, num: int, door: PublicDoor, environment: Mapping[str, str], state_dir: Path, *,
        module: str = MODULE,
    ) -> None:  # fmt: skip
        self._door, self._environment = door, dict(environment)
        self.on_death: Callable[[WorkerReport], None] = lambda report: None
        """Told of the last report of a worker that died."""
        self._folder = state_dir / "predict_workers"
        self._module = module
        self._workers = [_Worker(number, self._folder) for number in range(num)]
        self._board_file = Board.made(num)
        self._board = Board(self._board_file.fileno(), num)
        self._counts_file = SharedCounts.made(num + 1)
        self.counts = SharedCounts(self._counts_file.fileno(), num=num + 1, mine=num)
        """What keys have used in all of them and in this process, which is the last."""
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None

    @property
    def num(self) -> int:
        """How many there shall be."""
        return len(self._workers)

    @property
    def num_deaths(self) -> int:
        """How often one has died."""
        return sum(each.num_deaths for each in self._workers)

    @property
    def reports(self) -> list[WorkerReport]:
        """The newest of each that lives and answers."""
        return [each.report for each in self._workers if each.child is not None and each.report is not None]

    async def start(self) -> None:
        """Ends what a killed predecessor left, and starts all; they serve a moment later."""
        make_folder(self._folder)
        for record in self._folder.glob("*.json"):
            await asyncio.to_thread(end_leftover, record, grace_s=1.0)
        for worker in self._workers:
            name = f"predict worker {worker.number}"
            self._tasks.append(asyncio.create_task(self._supervise(worker), name=name))

    async def ask(self) -> list[WorkerReport]:
        """Reports of this moment; of a worker that does not answer in time the one before."""
        asked = [each for each in self._workers if each.writer is not None]
        for each in asked:
            each.reported.clear()
            assert each.writer is not None
            with suppress(ConnectionError):
                each.writer.write(ASK)
        with suppress(TimeoutError):
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                await asyncio.gather(*(each.reported.wait() for each in asked))
        return self.reports

    async def stop_when(self, stopping: asyncio.Event) -> None:
        """Ends them as soon as the service is told to end: they accept nothing more while it still answers them."""
        await stopping.wait()
        await self.stop()

    async def stop(self) -> None:
        """Lets them answer what they are at, and ends them."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(asyncio.to_thread(self._end, each) for each in self._workers))
        self._board_file.close()

    async def _supervise(self, worker: _Worker) -> None:
        num_failures = 0
        while True:
            begun = time.monotonic()
            try:
                await self._live(worker)
                exit_code: int | str = "" if worker.child is None else worker.child.returncode
            except OSError as error:
                exit_code = str(error)
            self._buried(worker)
            lived_s = time.monotonic() - begun
            num_failures = 0 if lived_s > STEADY_AFTER_S else num_failures + 1
            pause_s = 0.0 if num_failures < 2 else min(FIRST_PAUSE_S * 2 ** (num_failures - 2), LAST_PAUSE_S)
            log.warning(
                "predict worker %d ended with %s after %.1f s; the others go on, and it is started again",
                worker.number, exit_code, lived_s,
            )  # fmt: skip
            await asyncio.sleep(pause_s)

    async def _live(self, worker: _Worker) -> None:
        """One life, up to its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                child = worker.child = self._spawned(worker, theirs)
                ProcessRecord.of(child.pid).write(worker.record)
            except BaseException:
                ours.close()
                raise
        log.info("predict worker %d runs as process %d", worker.number, child.pid)
        reader, worker.writer = await asyncio.open_connection(sock=ours)
        try:
            listening = asyncio.create_task(self._listen(worker, reader))
            while child.poll() is None:
                await asyncio.sleep(POLL_S)
            await asyncio.wait((listening,), timeout=1.0)  # what it said last
            listening.cancel()
        finally:
            if child.poll() is not None:  # else it is ended by `_end`, and its lifeline holds until then
                worker.writer.close()
                worker.writer = None

    def _spawned(self, worker: _Worker, lifeline: socket.socket) -> subprocess.Popen[bytes]:
        handed = (self._door.listening.fileno(), self._board_file.fileno(), self._counts_file.fileno())
        command: Sequence[str] = (
            sys.executable, "-m", self._module, "--number", str(worker.number), "--of", str(self.num),
            "--listening", str(handed[0]), "--board", str(handed[1]), "--counts", str(handed[2]),
            "--control", str(self._door.control),
        )  # fmt: skip
        with worker.output.open("ab") as output:
            return spawn(command, output, self._environment, stdin=lifeline.fileno(), handed=handed)

    async def _listen(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                payload = await reader.readexactly(size)
                try:
                    worker.report = WorkerReport.model_validate_json(payload)
                except ValidationError as error:
                    log.error("predict worker %d reports what cannot be read: %s", worker.number, error)
                worker.reported.set()

    def _buried(self, worker: _Worker) -> None:
        """Others no longer leave connections to it, and its counts stay in the sums."""
        self._board.write(worker.number, -1)
        worker.child = None
        worker.record.unlink(missing_ok=True)
        worker.num_deaths += 1
        worker.reported.set()
        if worker.report is not None:
            self.on_death(worker.report)
        worker.report = None

    def _end(self, worker: _Worker) -> None:
        child = worker.child
        if child is None:
            return
        if child.poll() is None:
            process = ProcessRecord.of(child.pid).process()
            if process is not None:
                end_process(process, grace_s=GRACE_S)
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=GRACE_S)
        worker.child = None
        worker.record.unlink(missing_ok=True)
