"""Faults of the machine: its clock steps, its disks fill up."""

import time
from collections.abc import Sequence
from typing import Any

import redis

from ml_workbench_service.contracts.queue import PREDICTIONS_STREAM
from ml_workbench_service.resilience.fault import Fault
from ml_workbench_service.resilience.machine import SmallDisk
from ml_workbench_service.resilience.rig import Need, Rig

HOUR_S = 3600


class ClockStep(Fault):
    """The clock of server, agents and producers steps by up to an hour, forward and back, at random moments."""

    name = "clock_step"
    needs = frozenset({Need.CLOCK})

    def __call__(self, rig: Rig) -> None:
        assert rig.clock is not None, "the fault says that it needs the clock"
        if not rig.clock.is_real:
            self._emulate(rig)
            return
        while self.pauses(rig, shortest_s=0.1, longest_s=0.8):
            offset_s = self.rng.choice([-HOUR_S, HOUR_S, self.rng.randint(-HOUR_S, HOUR_S), self.rng.randint(-3, 3)])
            rig.clock.step(offset_s)
            rig.note(self.name, f"{offset_s:+d} s")

    def _emulate(self, rig: Rig) -> None:
        """What a step back leaves in the server: a stream whose last id lies in the future."""
        rig.notes.append("libfaketime is not installed: the clock's step is emulated by a last id an hour ahead")
        rig.sleep(self.rng.uniform(0.2, 0.8) * rig.request.duration_s)
        client: Any = rig.redis.client()  # redis-py gives the call for any command no types
        ahead_ms = int((time.time() + HOUR_S) * 1000)
        client.execute_command("XSETID", PREDICTIONS_STREAM, f"{ahead_ms}-0")
        client.close()
        rig.note(self.name, "the stream's last id is an hour ahead")


class DiskFull(Fault):
    """The disk of the agents' checkpoints and logs is full for up to a second."""

    name = "disk_full"
    needs = frozenset({Need.AGENT_DISK})

    def __call__(self, rig: Rig) -> None:
        disk = _disk(rig.agent_disk, rig, "the agents' disk")
        while self.pauses(rig, shortest_s=0.2, longest_s=1.0):
            pids = [agent.pid for agent in rig.agents]
            _fill(disk, rig, fault=self.name, pids=pids, for_s=self.rng.uniform(0.2, 1.0))


class RedisDiskFull(Fault):
    """The server's disk is full for up to two seconds: it refuses what it cannot write (appendfsync everysec)."""

    name = "redis_disk_full"
    needs = frozenset({Need.SERVER_DISK})
    fsync = "everysec"

    def __call__(self, rig: Rig) -> None:
        disk = _disk(rig.server_disk, rig, "the server's disk")
        client = rig.redis.client()
        while self.pauses(rig, shortest_s=0.2, longest_s=0.8):
            _fill(disk, rig, fault=self.name, pids=[rig.redis.embedded.pid], for_s=self.rng.uniform(0.5, 2.0))
            while rig.sleep(0.02) and not _writes(client):
                pass  # it looks again once a second
        client.close()


class RedisDiskFullAlways(Fault):
    """The server's disk is full with appendfsync always: it ends itself, and starts again once there is room."""

    name = "redis_disk_full_always"
    needs = frozenset({Need.SERVER_DISK})

    def __call__(self, rig: Rig) -> None:
        disk = _disk(rig.server_disk, rig, "the server's disk")
        while self.pauses(rig, shortest_s=0.2, longest_s=0.8):
            _fill(disk, rig, fault=self.name, pids=[rig.redis.embedded.pid], for_s=self.rng.uniform(0.2, 1.0))
            while rig.sleep(0.02) and not rig.redis.revive():
                pass


def _disk(disk: SmallDisk | None, rig: Rig, what: str) -> SmallDisk:
    assert disk is not None, "the fault says that it needs the disk"
    if not disk.is_mounted:
        rig.notes.append(f"{what}: no tmpfs may be mounted here, so the processes' limit on file sizes stands in")
    return disk


def _fill(disk: SmallDisk, rig: Rig, *, fault: str, pids: Sequence[int | None], for_s: float) -> None:
    disk.fill(pid for pid in pids if pid is not None)
    rig.note(fault, "full")
    rig.sleep(for_s)
    disk.free()
    rig.note(fault, "free again")


def _writes(client: redis.Redis) -> bool:
    try:
        info = client.info("persistence")
    except redis.RedisError:
        return False
    return bool(info["aof_last_write_status"] == "ok")
