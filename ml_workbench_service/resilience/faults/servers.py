"""Faults of the Redis server: killed, frozen, paused, wiped."""

import signal

from ml_workbench_service.resilience.fault import Fault
from ml_workbench_service.resilience.rig import Rig


class RedisKilled(Fault):
    """The server is killed with -9 at random moments and started again with its append-only file."""

    name = "redis_killed"

    def __call__(self, rig: Rig) -> None:
        while self.pauses(rig, shortest_s=0.2, longest_s=1.5):
            rig.redis.kill()
            rig.note(self.name, "killed")
            rig.sleep(self.rng.uniform(0.02, 0.5))
            rig.redis.start()
            rig.note(self.name, "started again")


class RedisFrozen(Fault):
    """The server stands still (SIGSTOP) for up to a second and a half and goes on (SIGCONT)."""

    name = "redis_frozen"

    def __call__(self, rig: Rig) -> None:
        while self.pauses(rig, shortest_s=0.2, longest_s=1.5):
            rig.redis.send(signal.SIGSTOP)
            rig.note(self.name, "frozen")
            rig.sleep(self.rng.uniform(0.1, 1.5))
            rig.redis.send(signal.SIGCONT)
            rig.note(self.name, "thawed")


class RedisPaused(Fault):
    """The server holds every command back (CLIENT PAUSE) for up to a second."""

    name = "redis_paused"

    def __call__(self, rig: Rig) -> None:
        client = rig.redis.client()
        while self.pauses(rig, shortest_s=0.2, longest_s=1.5):
            pause_ms, mode = self.rng.randint(50, 1000), self.rng.choice(["ALL", "WRITE"])
            client.client_pause(pause_ms, all=mode == "ALL")
            rig.note(self.name, f"{mode} for {pause_ms} ms")
            rig.sleep(pause_ms / 1000)
        client.close()


class Flush(Fault):
    """Somebody wipes the server (FLUSHALL, SCRIPT FLUSH); what was not consumed is lost by that, and nothing else."""

    name = "flush"

    def __call__(self, rig: Rig) -> None:
        rig.sleep(self.rng.uniform(0.2, 0.8) * rig.request.duration_s)
        client = rig.redis.client()
        client.flushall()
        client.script_flush()
        client.close()
        rig.note(self.name, "wiped")
