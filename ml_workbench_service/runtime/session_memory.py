"""Resident memory of a session: what a worker and all that it started hold, each shared page once.

It is what the watchdog ends a job by and what estimates are measured against (`benchmarks/estimates.py`). The resident
set and not the proportional one: a worker's share of torch's pages would fall with every neighbour that maps them too,
and whether a job is ended would depend on who else runs. Of several processes the largest mapping of files counts, not
the sum: workers of one experiment map the same libraries.
"""

import os

import psutil

from ml_workbench_service.jobs.process_record import ProcessRecord


def session_bytes(leader: ProcessRecord) -> int:
    """Bytes of the leader, its descendants, and members of its session whose parents have ended; 0 where it ended."""
    process = leader.process()
    if process is None:
        return 0
    own, mapped = 0, 0
    for member in _members(process):
        try:
            memory = member.memory_info()
        except psutil.NoSuchProcess:
            continue
        shared = getattr(memory, "shared", 0)  # of files and shared memory; Linux alone tells
        own += memory.rss - shared
        mapped = max(mapped, shared)
    return int(own + mapped)


def session_of(pid: int) -> int | None:
    """The session of a process; None where it has ended or is not ours to ask."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _members(leader: psutil.Process) -> set[psutil.Process]:
    found = {leader}
    for pid in psutil.pids():
        if session_of(pid) == leader.pid:
            try:
                found.add(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
    try:
        return found | set(leader.children(recursive=True))
    except psutil.NoSuchProcess:
        return found
