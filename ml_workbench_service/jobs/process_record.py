"""Process identity: a pid with its start time, on disk, so that a recycled pid is never mistaken.

The service writes one such file for each process that stops and starts with it (`redis/server.json`,
`agents/<id>/process.json`, the tracker's), and ends by it what a killed predecessor left running.

No wall clock takes part where there is a /proc: a clock that is set, by hand or by a time server, changes the start
times that psutil derives from it, and living processes would look dead.
"""

import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from common_lib.storage import make_folder
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.jobs.guarded_reading import guarded

START_TOLERANCE_S = 1.0  # psutil's start times are derived from the boot time and wander by some hundredths
START_FIELD = 22  # of /proc/<pid>/stat, counted from 1: clock ticks from the boot to the process's start
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
POLL_S = 0.01

log = logging.getLogger(__name__)


class ProcessRecord(Contract):
    """One process; `ended` is set by the process itself when it stops in an orderly way.

    `started_at` are seconds from the machine's boot to the process's start, exact to the clock tick, and belong to that
    boot: a record of another boot is of a process that has ended. Where there is no /proc they are psutil's, since the
    epoch, without a `boot_id`.

    Records that an earlier version wrote have no `boot_id` either and are compared as that version did, with psutil's
    start time: one that agrees within a second is that process (so that what was left running before an upgrade is
    ended); any other counts as ended and nothing is done to it, also to a living one if the clock was set since.
    """

    pid: int
    started_at: float
    boot_id: str = ""
    ended: bool = False

    @classmethod
    def of(cls, pid: int) -> "ProcessRecord":
        """The record of a living process; raises psutil.NoSuchProcess otherwise."""
        ticks = _start_ticks(pid)
        if ticks is None:
            return cls(pid=pid, started_at=psutil.Process(pid).create_time())
        return cls(pid=pid, started_at=_seconds(ticks), boot_id=this_boot())

    @classmethod
    def of_token(cls, token: str) -> "ProcessRecord":
        """The record that `token` names; raises ValueError for any other text."""
        boot_id, pid, started_at = token.split("/")
        return cls(pid=int(pid), started_at=float(started_at), boot_id=boot_id)

    @property
    def token(self) -> str:
        """The record in one word, `boot_id/pid/started_at`, for those who are to hand it on without reading it."""
        return f"{self.boot_id}/{self.pid}/{self.started_at}"

    def write(self, file: Path) -> None:
        """Replaces the file in one step."""
        make_folder(file.parent)
        staged = file.with_name(f".{file.name}.{os.getpid()}")
        staged.write_text(self.model_dump_json(), encoding="utf-8")
        staged.replace(file)

    @classmethod
    def read(cls, file: Path) -> "ProcessRecord | None":
        """The record in the file; None where there is none, or where it is unreadable."""
        return guarded(file, cls.model_validate_json)

    def process(self) -> psutil.Process | None:
        """The living process of this record; None where it ended, is a zombie, or its pid belongs to another now."""
        try:
            process = psutil.Process(self.pid)
            same = self._is_start_of(process)
        except psutil.NoSuchProcess:
            return None
        return process if same and _runs(process) else None

    def _is_start_of(self, process: psutil.Process) -> bool:
        if not self.boot_id:
            return bool(abs(process.create_time() - self.started_at) <= START_TOLERANCE_S)
        ticks = _start_ticks(process.pid)
        return ticks is not None and self.boot_id == this_boot() and self.started_at == _seconds(ticks)

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return self.process() is not None


def this_boot() -> str:
    """The kernel's name for the time since the machine was started; empty where there is no /proc."""
    try:
        return BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def spawn(
    command: Sequence[str],
    output: IO[bytes],
    environment: Mapping[str, str] | None,
    *,
    own_session: bool = True,
    stdin: int = subprocess.DEVNULL,
    handed: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Starts a process that says everything into `output`; in a session of its own it outlives us.

    Args:
        handed: descriptors that it has too, under the same numbers.
    """
    return subprocess.Popen(
        command, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, env=environment,
        start_new_session=own_session, pass_fds=tuple(handed),
    )  # fmt: skip


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


def _start_ticks(pid: int) -> int | None:
    """Clock ticks from the boot to the process's start; None where there is no /proc with a boot's name.

    Raises:
        psutil.NoSuchProcess: there is none of that pid.
    """
    if not this_boot():
        return None
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    after_name = line[line.rindex(b")") + 1 :].split()  # field 2 is the name, which may hold blanks and parentheses
    return int(after_name[START_FIELD - 3])


def _seconds(ticks: int) -> float:
    return ticks / os.sysconf("SC_CLK_TCK")


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
