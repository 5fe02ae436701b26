"""Open-loop load generator: offers records when they are due, through the service's own publisher, and keeps a history.

    python -m ml_workbench_service.resilience.producer <plan.json>

The history is a file of JSON lines, each in the file before the next step, so that a process killed with -9 has told
everything that it knew:
    {"acked": [numbers], "refused": [numbers]}   the queue answered that it has them, or has no room for them
    {"offered": n, "late_ms": [...]}             records up to n were handed to the publisher, and how late each was
    {"ended": true, "outbox": n, "outbox_dropped": n}
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.queue import Enqueued, FullMode, Outgoing
from ml_workbench_service.contracts.resilience import ResilienceRequest
from ml_workbench_service.integrations.prediction_queue import QueueWriter
from ml_workbench_service.resilience.schedule import Burst, due_times
from ml_workbench_service.resilience.synthetic import SyntheticPredictions, number_of
from ml_workbench_service.serving.publisher import PredictionPublisher

DRAIN_S = 60.0  # for the outbox, once everything is offered
LONGEST_SLEEP_S = 0.05
POLL_S = 0.005
Enqueue = Callable[[Sequence[Outgoing]], Awaitable[tuple[Enqueued, list[Outgoing]]]]


class ProducerPlan(Contract):
    """What one producer does."""

    request: ResilienceRequest
    seed: int
    bursts: tuple[tuple[Finite, int], ...] = ()  # seconds, records
    first: int = 0  # number of its first record: a successor goes on where its predecessor was killed
    url: str
    history: Path
    beginning: (
        Path  # once it is there, it holds the flood's first moment, in time.monotonic(), which all processes share
    )


class HistoryFile:
    """Lines that are with the operating system before `write` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, **line: object) -> None:
        """Appends one line."""
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def noting(writer: QueueWriter, history: HistoryFile) -> Enqueue:
    """The writer's `enqueue`, whose answers are noted before the publisher hears them."""

    async def call(batch: Sequence[Outgoing]) -> tuple[Enqueued, list[Outgoing]]:
        done, waiting = await writer.enqueue(batch)
        open_ids = {*done.refused, *(item.record.prediction_id for item in waiting)}
        identifiers = [item.record.prediction_id for item in batch]
        acked = [number_of(each) for each in identifiers if each not in open_ids]
        history.write(acked=acked, refused=[number_of(each) for each in done.refused])
        return done, waiting

    return call


async def produce(plan: ProducerPlan) -> None:
    """Offers every record from `first` on when it is due, then lets the outbox drain."""
    request = plan.request
    due = due_times(
        request.scenario,
        rate_per_s=request.rate_per_s,
        duration_s=request.duration_s,
        seed=plan.seed,
        bursts=[Burst(*each) for each in plan.bursts],
    )
    records = SyntheticPredictions(plan.seed, num_symbols=request.num_symbols, num_records=len(due))
    history = HistoryFile(plan.history)
    full: FullMode = "wait" if request.policy == "block" else request.policy
    writer = QueueWriter(
        plan.url, capacity=request.capacity, full=full, num_shards=request.num_shards, ttl_s=request.ttl_s
    )
    publisher = PredictionPublisher(noting(writer, history), outbox_capacity=request.outbox_capacity)
    await publisher.start()
    due += await _beginning(plan.beginning)
    number, total = plan.first, len(due)
    while number < total:
        now = time.monotonic()
        late_ms: list[float] = []
        while number < total and due[number] <= now:
            publisher.publish(records.record(number), f"flood-{number}")
            late_ms.append(round((time.monotonic() - due[number]) * 1000, 3))
            number += 1
            if len(late_ms) >= 256:
                break  # the publisher's turn
        if late_ms:
            history.write(offered=number - 1, late_ms=late_ms)
            await asyncio.sleep(0)
            continue
        await asyncio.sleep(min(max(due[number] - time.monotonic(), 0.0), LONGEST_SLEEP_S))
    await publisher.stop(drain_s=DRAIN_S)
    history.write(ended=True, outbox=publisher.outbox, outbox_dropped=publisher.outbox_dropped)
    history.close()
    await writer.close()


async def _beginning(file: Path) -> float:
    while not file.exists():
        await asyncio.sleep(POLL_S)
    return float(file.read_text("ascii"))


def main() -> int:
    """Reads the plan named by the first argument and does it."""
    plan = ProducerPlan.model_validate_json(Path(sys.argv[1]).read_bytes())
    asyncio.run(produce(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
