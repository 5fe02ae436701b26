"""Faults of the agents: killed, frozen, slow, away, fed with poison."""

import math
import signal
import time
from typing import Any

from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.resilience.fault import Fault
from ml_workbench_service.resilience.rig import Need, Rig

AT_WORK = 0.8
FREEZE_S = 10.0
DEADLY_S = 30.0
NUM_DEATHS = 5


class AgentKilled(Fault):
    """An agent's leading process is killed with -9 at random moments, mostly at work, and started again."""

    name = "agent_killed"

    def __call__(self, rig: Rig) -> None:
        while self.pauses(rig, shortest_s=0.01, longest_s=0.5):
            agent = self.rng.choice(rig.agents)
            if self.rng.random() < AT_WORK:  # else also one that is only starting, whose start takes the most time
                while rig.is_flooding and not rig.leads(rig.leader(agent)):
                    rig.sleep(0.01)
                rig.sleep(self.rng.uniform(0.0, 0.3))
            agent = rig.leader(agent)
            if agent.kill():
                rig.note(self.name, f"{agent.name} killed")


class ConsumerFrozen(Fault):
    """The leading process of an agent stands still (SIGSTOP) for 10 s, another takes over, and it goes on (SIGCONT)."""

    name = "consumer_frozen"
    needs = frozenset({Need.STANDBY})

    def __call__(self, rig: Rig) -> None:
        rig.sleep(self.rng.uniform(0.1, 0.9) * rig.request.duration_s)
        agent = rig.leader(self.rng.choice(rig.agents))
        agent.send(signal.SIGSTOP)
        rig.note(self.name, f"{agent.name} frozen for {FREEZE_S:.0f} s")
        rig.sleep(FREEZE_S)
        rig.note(self.name, f"{rig.leader(agent).name} leads")
        agent.send(signal.SIGCONT)
        rig.note(self.name, f"{agent.name} thawed")


class SlowConsumer(Fault):
    """An agent gets a twentieth of its time: it stands still for 95 of every 100 ms."""

    name = "slow_consumer"

    def __call__(self, rig: Rig) -> None:
        agent = self.rng.choice(rig.agents)
        rig.note(self.name, f"{agent.name} slowed")
        while rig.is_flooding:
            agent.send(signal.SIGSTOP)
            rig.sleep(self.rng.uniform(0.05, 0.14))
            agent.send(signal.SIGCONT)
            rig.sleep(0.005)
        rig.note(self.name, f"{agent.name} at full speed")


class DeadConsumer(Fault):
    """An agent is dead for most of the flood, and nobody starts it again before."""

    name = "dead_consumer"

    def __call__(self, rig: Rig) -> None:
        rig.sleep(self.rng.uniform(0.05, 0.3) * rig.request.duration_s)
        agent = self.rng.choice(rig.agents)
        agent.kill(wanted=False)
        rig.note(self.name, f"{agent.name} killed")
        rig.sleep(self.rng.uniform(0.4, 0.7) * rig.request.duration_s)
        agent.start()
        rig.note(self.name, f"{agent.name} started again")


class Poison(Fault):
    """Entries that nobody can apply: one that is no record, and one of a pair without costs."""

    name = "poison"

    def __call__(self, rig: Rig) -> None:
        while self.pauses(rig, shortest_s=0.1, longest_s=0.8):
            record = self._unreadable(rig) if self.rng.random() < 0.5 else costless(rig)
            rig.inject(record)
            rig.note(self.name, f"{record.prediction_id} injected")

    def _unreadable(self, rig: Rig) -> PredictionRecord:
        name = f"poison-unreadable-{len(rig.poison)}"
        # written as null, which no reader takes for a size
        return rig.records.record(0).model_copy(update={"prediction_id": name, "scaling_factor": math.inf})


class DeadlyPoison(Fault):
    """A record that ends the process that applies it: killed with -9 at each of its first five deliveries.

    After that nobody may apply it: it is dead-lettered untried, and so ends nothing any more.
    """

    name = "deadly_poison"

    def __call__(self, rig: Rig) -> None:
        rig.sleep(self.rng.uniform(0.1, 0.6) * rig.request.duration_s)
        agent = self.rng.choice(rig.agents)
        stream, group = rig.group_of(agent)
        client = rig.redis.client()
        record = costless(rig)
        rig.inject(record)
        entry_id = rig.entry_of(record.prediction_id)
        rig.note(self.name, f"{record.prediction_id} injected as {entry_id}")
        times_handed_out, num_kills = 0, 0
        deadline = time.monotonic() + DEADLY_S
        while entry_id is not None and time.monotonic() < deadline and rig.sleep(0.002):
            pending: Any = client.xpending_range(stream, group, entry_id, entry_id, 1)
            if not pending and times_handed_out:
                break
            if pending and pending[0]["times_delivered"] > times_handed_out:
                times_handed_out = pending[0]["times_delivered"]
                if times_handed_out <= NUM_DEATHS:
                    num_kills += rig.leader(agent).kill()
        client.close()
        rig.note(self.name, f"{record.prediction_id} ended {num_kills} processes")


def costless(rig: Rig) -> PredictionRecord:
    """A record of a pair that has no costs: it is tried five times, which takes 0.3 s, and never applied."""
    record = rig.records.record(0)
    metadata = record.metadata.model_copy(update={"costs": None})
    name = f"poison-costless-{len(rig.poison)}"
    return record.model_copy(update={"prediction_id": name, "symbol": "EUR/XAU", "metadata": metadata})
