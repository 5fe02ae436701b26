"""The agent's own loop in a process of its own, which notes when each record was applied.

`run_agent` with a `QLearningAgent`, its checkpoint, its decisions and its logs, as `runtime/agent_worker.py` runs it; a
subclass stamps after `apply`. One turn begins it, the next ends it and tells the stamps, in nanoseconds of the
machine's monotonic clock.
"""

import gc
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.contestants.turns import play
from common_lib.logging import configure_logging
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.status import agent_group
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.workflows.run_agent import run_agent


class StampingAgent(QLearningAgent):
    """Notes when `apply` returned."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id)
        self.applied_ns: dict[str, int] = {}

    def apply(self, entry_id: str, record: PredictionRecord) -> Decision | None:
        """Applies the entry, then looks at the clock."""
        decision = super().apply(entry_id, record)
        self.applied_ns[record.prediction_id] = time.monotonic_ns()
        return decision


class RunningAgent:
    """One agent's loop in a thread."""

    def __init__(self, url: str, capacity: int, folder: Path) -> None:
        self._agent = StampingAgent("default")
        self._stop = threading.Event()
        self._queue = RedisPredictionQueue(url, capacity=capacity)
        self._decisions = DecisionStream(url)
        folder.mkdir(parents=True)
        self._queue.create_group(agent_group("default"))
        self._thread = threading.Thread(target=self._run, args=(folder,), name="agent", daemon=True)
        self._thread.start()
        gc.collect()
        gc.freeze()  # as the agent's process does
        self._begun_s = time.process_time()

    def _run(self, folder: Path) -> None:
        run_agent(
            "default",
            folder,
            open_agent=lambda: self._agent,
            queue=self._queue,
            decisions=self._decisions,
            stop=self._stop,
        )

    def end(self) -> dict[str, Any]:
        """Stops after the batch at hand."""
        spent_s = time.process_time() - self._begun_s
        self._stop.set()
        self._thread.join()
        self._queue.close()
        self._decisions.close()
        counters = self._agent.counters
        return {
            "applied_ns": self._agent.applied_ns,
            "num_applied": counters.num_applied,
            "num_settled": counters.num_settled,
            "processor_s": spent_s,
        }


running: list[RunningAgent] = []


def turn(url: str = "", capacity: int = 0, folder: str = "", log_dir: str = "") -> dict[str, Any]:
    """Begins with an address, ends without."""
    if not url:
        return running.pop().end()
    configure_logging(level="INFO", log_dir=Path(log_dir), style="json", to_stderr=False)
    running.append(RunningAgent(url, capacity, Path(folder)))
    return {}


if __name__ == "__main__":
    play(turn)
