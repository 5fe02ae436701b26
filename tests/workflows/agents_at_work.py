"""The agent's loop in a thread and in processes, and what it must end with: for the tests of both."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.agents.definition import open_agent
from ml_workbench_service.agents.leader_election import Candidacy
from ml_workbench_service.agents.q_learning_agent import QLearningAgent
from ml_workbench_service.agents.status import agent_group
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import GroupAccounting
from ml_workbench_service.integrations.decision_stream import DecisionStream
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue
from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.workflows.run_agent import run_agent
from tests.prediction_records import prediction_record
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401


def two_symbols(num_bars: int) -> list[PredictionRecord]:
    """Two interleaved random walks with forecasts that know a little, an abstention and a candidate now and then."""
    rng = np.random.default_rng(11)
    records: list[PredictionRecord] = []
    price = {"EUR/USD": 1.1, "USD/JPY": 150.0}
    for number in range(num_bars):
        for symbol in price:
            move = rng.normal(0, 0.001)
            changes: dict[str, Any] = {"prediction": float(0.2 * move + rng.normal(0, 0.0002))}
            if number % 17 == 3:
                changes = {"status": "abstain", "prediction": None, "abstain_reasons": ("novel_input",)}
            if number % 29 == 5:
                changes["role"] = "candidate"
            records.append(prediction_record(number, symbol=symbol, price=price[symbol], **changes))
            price[symbol] *= float(np.exp(move))
    return records


def uninterrupted(records: list[PredictionRecord]) -> tuple[QLearningAgent, list[Decision]]:
    """What the default agent must end with."""
    agent = QLearningAgent("default")
    decisions = [agent.apply(f"{number + 1}-0", record) for number, record in enumerate(records)]
    return agent, [decision for decision in decisions if decision is not None]


def timeless(checkpoint: Checkpoint | None) -> Checkpoint:
    """A checkpoint without what depends on the clock."""
    assert checkpoint is not None
    changes = {"saved_at": None, "last_applied_id": None, "term": 0, "stream_epoch": ""}
    return checkpoint.model_copy(update=changes)


def until(condition: Callable[[], bool], *, limit_s: float = 200.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.003)


class RunningAgent:
    """The loop in a thread, as the agent's process runs it."""

    def __init__(self, server: RedisForTests, folder: Path, **more: Any) -> None:
        self.folder = folder
        self.queue = RedisPredictionQueue(server.url, capacity=10_000)
        self.decisions = DecisionStream(server.url)
        self.stop = threading.Event()
        arguments: dict[str, Any] = {"queue": self.queue, "decisions": self.decisions, "stop": self.stop}
        arguments |= {"open_agent": lambda: open_agent(folder, "default")} | {
            "candidacy": Candidacy(**{"owner": f"test/{id(self)}", **more})
        }
        self.thread = threading.Thread(target=run_agent, args=("default", folder), kwargs=arguments, daemon=True)
        self.thread.start()

    def accounting(self) -> GroupAccounting:
        return next(
            accounting for accounting in self.queue.accounting().groups if accounting.group == agent_group("default")
        )

    def wait_for(self, num_settled: int) -> None:
        """Until so many entries are settled in the queue, in one way or another."""

        def settled() -> bool:
            groups = [
                accounting
                for accounting in self.queue.accounting().groups
                if accounting.group == agent_group("default")
            ]
            return bool(groups) and groups[0].acked + groups[0].dead_lettered >= num_settled

        until(settled)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()
        self.queue.close()
        self.decisions.close()


def running_decisions(server: RedisForTests) -> list[Decision]:
    stream = DecisionStream(server.url)
    decisions = stream.read()
    stream.close()
    return decisions


def start_agent(server: RedisForTests, state_dir: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "REDIS_URL": server.url,
        "STATE_DIR": str(state_dir),
        "LOG_DIR": str(state_dir / "logs"),
        "LOG_LEVEL": "INFO",
    }
    with (state_dir / "agent.out").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ml_workbench_service.runtime.agent_worker", "--agent", "default"],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def pid_in(file: Path) -> int | None:
    record = ProcessRecord.read(file)
    return None if record is None else record.pid
