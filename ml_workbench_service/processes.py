"""Who is that process? `ProcessRecord`: a pid with its start time, on disk, so that a recycled pid is never mistaken.

The service writes one such file for each process that stops and starts with it (`redis/server.json`,
`agents/<id>/process.json`, the tracker's), and ends by it what a killed predecessor left running.
"""

import logging
import os
import time
from pathlib import Path

import psutil
from pydantic import ValidationError

from ml_workbench_service.contracts.contract import Contract

START_TOLERANCE_S = 1.0  # process start times are derived from the boot time and wander by some hundredths
POLL_S = 0.01

log = logging.getLogger(__name__)


class ProcessRecord(Contract):
    """One process; `ended` is set by the process itself when it stops in an orderly way."""

    pid: int
    started_at: float  # seconds since the epoch, as psutil tells it
    ended: bool = False

    @classmethod
    def of(cls, pid: int) -> "ProcessRecord":
        """The record of a living process; raises psutil.NoSuchProcess otherwise."""
        return cls(pid=pid, started_at=psutil.Process(pid).create_time())

    def write(self, file: Path) -> None:
        """Replaces the file in one step."""
        file.parent.mkdir(parents=True, exist_ok=True)
        staged = file.with_name(f".{file.name}.{os.getpid()}")
        staged.write_text(self.model_dump_json(), encoding="utf-8")
        staged.replace(file)

    @classmethod
    def read(cls, file: Path) -> "ProcessRecord | None":
        """The record in the file; None where there is none, or where it is unreadable."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            log.warning("%s is not a process record and is ignored: %s", file, error)
            return None

    def process(self) -> psutil.Process | None:
        """The living process of this record; None where it ended, is a zombie, or its pid belongs to another now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) <= START_TOLERANCE_S
        except psutil.NoSuchProcess:
            return None
        return process if same and _runs(process) else None

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return self.process() is not None


def end_leftover(file: Path, *, grace_s: float = 5.0) -> bool:
    """Ends the process of a record that a killed predecessor left behind, and removes the record.

    SIGTERM first, SIGKILL after `grace_s`. Returns whether a process had to be ended.
    """
    record = ProcessRecord.read(file)
    process = record.process() if record is not None else None
    if process is not None:
        log.info("ending leftover process %d named by %s", process.pid, file)
        end_process(process, grace_s=grace_s)
    file.unlink(missing_ok=True)
    return process is not None


def end_process(process: psutil.Process, *, grace_s: float) -> None:
    """SIGTERM, then SIGKILL after `grace_s`; returns when the process is gone or is a zombie of its parent."""
    for send in (process.terminate, process.kill):
        try:
            send()
        except psutil.NoSuchProcess:
            return
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline:
            if not _runs(process):
                return
            time.sleep(POLL_S)
    log.warning("process %d does not end although it was killed", process.pid)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
