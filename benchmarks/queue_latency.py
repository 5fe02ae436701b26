"""From `publish()` to the Q-update: 2,000 predictions a second, open loop, with everything on two cores.

    python -m benchmarks.queue_latency

Three processes: the publisher below HTTP (`PredictionPublisher` in an event loop), the redis-server (append-only file
and all), and the agent's own loop with its decisions, its checkpoint and its logs; all files on the same disk. Twenty
pairs in turn, each record an hour later than its pair's last, so that all but the first of each settle a step and
update the table. The queue has its default capacity: what comes too fast is dropped, counted here, and a failure.

A latency begins when `publish()` is called and ends when `QLearningAgent.apply` has returned in the agent's process,
both by the machine's monotonic clock. How long after its due time a record was published is told beside: the clock's
ticks of a millisecond, and what else the machine did. Latencies are counted from the second second on, the first warms
up.
"""

import sys
import tempfile
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.training_speed import Contestant
from ml_workbench_service.contracts.market import Floats
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.settings import Settings
from tools.interleaved_rounds import Goal, Rounds, conclude, show

RATE_PER_S, WARM_UP_S = 2000.0, 1.0
GOAL_MS = 5.0
WATCH_S = 0.1
PATIENCE_S = 30.0
CAPACITY = int(Settings.model_fields["PREDICTION_QUEUE_CAPACITY"].default)


@dataclass
class Depth:
    """The stream's length over time, read as `GET /queue` reads it."""

    queue: ShardedQueue
    lengths: list[int] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Reads the accounting until it is ended."""
        while not self.ended.wait(WATCH_S):
            self.lengths.append(self.queue.accounting().length)


@dataclass(frozen=True)
class Run:
    """What one run showed."""

    latencies_ms: Floats
    late_ms: Floats
    num_published: int
    num_dropped: int
    deepest: int
    publisher_load: float
    agent_load: float


def wait_until_acknowledged(queue: ShardedQueue) -> int:
    """Waits until the agent has done all that is in the stream; how many entries were dropped before it could."""
    patience = threading.Event()
    for _ in range(int(PATIENCE_S / WATCH_S)):
        accounting = queue.accounting()
        if accounting.length == 0:
            if accounting.groups[0].balance:
                raise SystemExit(f"the accounting does not balance: {accounting}")
            return accounting.groups[0].dropped_oldest
        patience.wait(WATCH_S)
    raise SystemExit(f"the agent had not applied everything after {PATIENCE_S:.0f} s: {queue.accounting()}")


def run(folder: Path, publisher: Contestant, agent: Contestant, *, rate_per_s: float, duration_s: float) -> Run:
    """One run over a fresh server and a fresh agent."""
    embedded = EmbeddedRedis(folder / "state")
    url = embedded.start()
    queue = ShardedQueue(url, capacity=CAPACITY)
    depth = Depth(queue)
    watch = threading.Thread(target=depth.watch)
    shared = {"url": url, "capacity": CAPACITY, "log_dir": str(folder / "logs")}
    try:
        agent.turn(**shared, folder=str(folder / "agent"))
        watch.start()
        said = publisher.turn(**shared, rate_per_s=rate_per_s, duration_s=duration_s, prefix="record")
        num_dropped = wait_until_acknowledged(queue) + int(said["dropped"])
        depth.ended.set()
        watch.join()
        learnt = agent.turn()
    finally:
        depth.ended.set()
        queue.close()
        embedded.stop()
    published_ns, applied_ns = said["published_ns"], learnt["applied_ns"]
    num_missing = len(published_ns) - len(applied_ns)
    if num_missing != num_dropped or learnt["num_applied"] != len(applied_ns):
        raise SystemExit(f"{len(published_ns)} published, {len(applied_ns)} applied, {num_dropped} dropped")
    if learnt["num_settled"] < 0.5 * len(applied_ns):
        raise SystemExit(f"only {learnt['num_settled']} of {len(applied_ns)} records updated the table")
    names = list(published_ns)[int(WARM_UP_S * rate_per_s) :]
    waited_ns = [applied_ns[name] - published_ns[name] for name in names if name in applied_ns]
    return Run(
        latencies_ms=np.array(waited_ns) / 1e6,
        late_ms=np.array(said["late_ns"]) / 1e6,
        num_published=len(published_ns),
        num_dropped=num_dropped,
        deepest=max(depth.lengths, default=0),
        publisher_load=said["processor_s"] / duration_s,
        agent_load=learnt["processor_s"] / duration_s,
    )


def main(*, rate_per_s: float = RATE_PER_S, duration_s: float = 20.0, num_rounds: int = 5) -> None:
    """Runs the rounds and prints the table."""
    figures = Rounds(bigger_is_better=False)
    python = Path(sys.executable)
    rows = []
    with (
        closing(Contestant(python, "open_loop_publishing")) as publisher,
        closing(Contestant(python, "stamping_agent")) as agent,
    ):
        for number in range(num_rounds):
            with tempfile.TemporaryDirectory() as folder:
                each = run(Path(folder), publisher, agent, rate_per_s=rate_per_s, duration_s=duration_s)
            p50, p99, worst = (float(np.percentile(each.latencies_ms, share)) for share in (50, 99, 100))
            late = float(np.percentile(each.late_ms, 99))
            figures.add("p50_ms", p50)
            figures.add("p99_ms", p99)
            figures.add("dropped", each.num_dropped)
            loads = [f"{100 * load:.0f} %" for load in (each.publisher_load, each.agent_load)]
            latencies = [f"{p50:.2f}", f"{p99:.2f}", f"{worst:.1f}", f"{late:.2f}"]
            counts = [str(each.deepest), str(each.num_dropped)]
            rows.append([f"round {number + 1}", f"{each.num_published:,}", *latencies, *counts, *loads])
    columns = ["", "published", "p50, ms", "p99, ms", "worst", "published late by, p99", "depth", "dropped"]
    show(
        f"From publish() to the applied Q-update at {rate_per_s:,.0f}/s, {duration_s:.0f} s a round",
        [*columns, "publisher's core", "agent's core"],
        rows,
    )
    goals = [
        Goal("publish to applied, p99, ms", figures.median("p99_ms"), GOAL_MS, at_most=True),
        Goal("dropped", max(figures.figures["dropped"]), 0, at_most=True),
    ]
    conclude("queue_latency", goals, figures.figures)


if __name__ == "__main__":
    main()
