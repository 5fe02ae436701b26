"""Publishing a prediction: ours beside one awaited XADD each, and beside the original queue, rebuilt.

    python -m benchmarks.publishing

The same full record each time (`live_records`), made beforehand; what is timed begins with the record in hand and ends
with its entry in the queue. Ours goes through `PredictionPublisher` and `QueueWriter`, a group without a
consumer keeps the accounting, and each record is logged as in production; once more without logs. The peers:

    redis.asyncio       one awaited XADD of each record, MAXLEN at the same capacity, nothing logged, no accounting
    BaseManager queue   the original specification's: full(), get() where it is full, put, a log line

All hold the original 100 records and nobody consumes, as in that specification's test: from the 101st on, each record
costs the oldest. Against the first, predictions per second of the client's processor time, user and system; against the
second by the clock. What is left is compared before anything is timed and after every turn: the last 100 ids, in order
(MAXLEN trims by whole nodes and may leave more before them); and our accounting must balance and count every record.
"""

import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import redis

from benchmarks.training_speed import Contestant
from ml_workbench_service.contracts.queue import PREDICTIONS_STREAM
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.settings import Settings
from tools.interleaved_rounds import Goal, Rounds, conclude, show

CAPACITY = int(Settings.model_fields["PREDICTION_QUEUE_CAPACITY"].default)
OURS, UNLOGGED = "ours, logged", "ours, without logs"
XADD, MANAGER = "redis.asyncio, one XADD each", "BaseManager queue"
CONTESTANTS = (OURS, UNLOGGED, XADD, MANAGER)
GOAL = 5.0


class Field:
    """The contestants' processes and the server they publish to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._embedded = EmbeddedRedis(folder / "state")
        self._url = self._embedded.start()
        self._redis = redis.Redis.from_url(self._url, protocol=2)
        self._queue = ShardedQueue(self._url, capacity=CAPACITY)
        python = Path(sys.executable)
        self._ours = Contestant(python, "our_publishing")
        self._xadd = Contestant(python, "asyncio_publishing")
        self._manager = Contestant(python, "manager_publishing")

    def turn(self, name: str, num: int, prefix: str) -> dict[str, Any]:
        """One contestant publishes so many records; what it spent."""
        request = {"capacity": CAPACITY, "num": num, "prefix": prefix}
        logs = str(self._folder)
        if name == MANAGER:
            spent = self._manager.turn(**request, log_dir=logs)
            self._check_kept(name, spent["arrived"], num, prefix)
            return spent
        self._redis.flushall()
        if name == XADD:
            spent = self._xadd.turn(**request, url=self._url)
        else:
            self._queue.create_group("accounting")
            spent = self._ours.turn(**request, url=self._url, log_dir=logs if name == OURS else None)
            self._check_accounting(num)
        entries: Any = self._redis.xrange(PREDICTIONS_STREAM)
        self._check_kept(name, [fields[b"prediction_id"].decode() for _, fields in entries], num, prefix)
        return spent

    def _check_kept(self, name: str, kept: list[str], num: int, prefix: str) -> None:
        expected = [f"{prefix}-{number}" for number in range(max(0, num - CAPACITY), num)]
        if kept[-len(expected) :] != expected or (name != XADD and len(kept) > len(expected)):
            raise SystemExit(f"{name}: other records are kept than the last {len(expected)} of {num}, in order")

    def _check_accounting(self, num: int) -> None:
        accounting = self._queue.accounting()
        group = accounting.groups[0]
        dropped = max(0, num - CAPACITY)
        found = (accounting.length, group.enqueued, group.undelivered, group.dropped_oldest, group.balance)
        if found != (num - dropped, num, num - dropped, dropped, 0):
            raise SystemExit(f"the accounting does not balance: {accounting}")

    def close(self) -> None:
        """Ends everything."""
        for each in (self._ours, self._xadd, self._manager):
            each.close()
        self._queue.close()
        self._redis.close()
        self._embedded.stop()


def main(*, num: int = 10_000, num_rounds: int = 7) -> None:
    """Compares what arrives, measures the rounds, prints the table."""
    by_processor, by_clock = Rounds(bigger_is_better=True), Rounds(bigger_is_better=True)
    with tempfile.TemporaryDirectory() as folder, closing(Field(Path(folder))) as field:
        for name in CONTESTANTS:
            field.turn(name, min(num, 500), "compared")
        for number in range(num_rounds + 1):
            for name in CONTESTANTS:
                spent = field.turn(name, num, f"round{number}")
                if number:  # the first round warms up
                    by_processor.add(name, num / spent["processor_s"])
                    by_clock.add(name, num / spent["wall_s"])
    rows = [[*by_processor.row(OURS, name), *by_clock.row(OURS, name)[1:]] for name in CONTESTANTS]
    columns = ["contestant", "per client CPU-second", "ours is times better", "per second", "ours is times better"]
    show("Predictions published, a full record each", columns, rows)
    goals = [
        Goal(f"against {XADD}, by processor time", by_processor.times_better(OURS, XADD), GOAL),
        Goal(f"against the original {MANAGER}, by the clock", by_clock.times_better(OURS, MANAGER), GOAL),
    ]
    conclude("publishing", goals, {"per_processor_second": by_processor.figures, "per_second": by_clock.figures})


if __name__ == "__main__":
    main()
