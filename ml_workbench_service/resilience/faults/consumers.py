"""Faults of the agents: killed, frozen, slow, away, fed with poison."""

import math
import signal

from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.resilience.fault import Fault
from ml_workbench_service.resilience.rig import Rig

FREEZE_S = 10.0


class AgentKilled(Fault):
    """An agent's process is killed with -9 at random moments and started again."""

    name = "agent_killed"

    def run(self, rig: Rig) -> None:
        """See the class."""
        while self.pauses(rig, shortest_s=0.05, longest_s=1.2):
            agent = self.rng.choice(rig.agents)
            if agent.kill():
                rig.note(self.name, f"{agent.name} killed")


class ConsumerFrozen(Fault):
    """An agent's process stands still (SIGSTOP) for 10 s and goes on (SIGCONT)."""

    name = "consumer_frozen"

    def run(self, rig: Rig) -> None:
        """See the class."""
        rig.sleep(self.rng.uniform(0.1, 0.9) * rig.request.duration_s)
        agent = self.rng.choice(rig.agents)
        agent.send(signal.SIGSTOP)
        rig.note(self.name, f"{agent.name} frozen for {FREEZE_S:.0f} s")
        rig.sleep(FREEZE_S)
        agent.send(signal.SIGCONT)
        rig.note(self.name, f"{agent.name} thawed")


class SlowConsumer(Fault):
    """An agent gets a twentieth of its time: it stands still for 95 of every 100 ms."""

    name = "slow_consumer"

    def run(self, rig: Rig) -> None:
        """See the class."""
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

    def run(self, rig: Rig) -> None:
        """See the class."""
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

    def run(self, rig: Rig) -> None:
        """See the class."""
        queue = RedisPredictionQueue(rig.redis.url, capacity=rig.request.capacity)
        while self.pauses(rig, shortest_s=0.1, longest_s=0.8):
            record = self._unreadable(rig) if self.rng.random() < 0.5 else self._costless(rig)
            rig.poison.add(record.prediction_id)
            queue.publish([record])
            rig.note(self.name, f"{record.prediction_id} planted")
        queue.close()

    def _unreadable(self, rig: Rig) -> PredictionRecord:
        name = f"poison-unreadable-{len(rig.poison)}"
        # written as null, which no reader takes for a size
        return rig.records.record(0).model_copy(update={"prediction_id": name, "scaling_factor": math.inf})

    def _costless(self, rig: Rig) -> PredictionRecord:
        record = rig.records.record(0)
        metadata = record.metadata.model_copy(update={"costs": None})
        name = f"poison-costless-{len(rig.poison)}"
        return record.model_copy(update={"prediction_id": name, "symbol": "EUR/XAU", "metadata": metadata})
