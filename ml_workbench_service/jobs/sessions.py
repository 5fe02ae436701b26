"""A worker and its descendants: one session, whose id is the worker's pid, ended and weighed as a whole.

Every process of ours is the leader of its own session (`start_new_session=True`). The kernel does not give a pid away
while a session of that number has members, so what a dead leader left behind can be told for certain.
"""

import os
import signal

import psutil

from ml_workbench_service.processes import ProcessRecord


def terminate_leader(record: ProcessRecord) -> None:
    """Asks the leader alone to end (SIGTERM); it knows best what to do with its children."""
    if record.is_alive:
        _send(record.pid, signal.SIGTERM)


def kill_session(record: ProcessRecord) -> None:
    """Ends the leader and everything in its session at once (SIGKILL)."""
    if record.is_alive:
        _send(record.pid, signal.SIGKILL)
    kill_orphans(record)


def kill_orphans(record: ProcessRecord) -> None:
    """Ends what is left of the session; asks only after the leader was ended or died."""
    for pid in psutil.pids():
        if pid != record.pid and _session_of(pid) == record.pid:
            _send(pid, signal.SIGKILL)


def resident_bytes(record: ProcessRecord) -> int:
    """Resident memory of the leader and all its descendants; 0 where it is gone."""
    leader = record.process()
    if leader is None:
        return 0
    try:
        return _resident(leader) + sum(_resident(child) for child in leader.children(recursive=True))
    except psutil.NoSuchProcess:
        return 0


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
