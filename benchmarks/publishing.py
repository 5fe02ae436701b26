"""Publishing a prediction: ours beside one awaited XADD each, and beside the first seed's queue, rebuilt.

    python -m benchmarks.publishing

The same full record each time (`live_records`), made beforehand; what is timed begins with the record in hand and ends
with its entry in the queue. Ours goes through `PredictionPublisher` and `ShardedQueue`, a group without a
consumer keeps the books, and each record is logged as in production; once more without logs. The peers:

    redis.asyncio       one awaited XADD of each record, MAXLEN at the same capacity, nothing logged, no books
    BaseManager queue   the first seed's: full(), get() where it is full, put, a log line; it is never full here, which
                        spares it a call

Against the first, predictions per second of the client's processor time, user and system; against the second by the
clock. What arrived is compared before anything is timed: the same ids in the same order. After every turn of ours the
books must balance.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import redis

from benchmarks.rounds import Goal, Rounds, conclude, show
from benchmarks.training_speed import Contestant
from ml_workbench_service.contracts.queue import PREDICTIONS_STREAM
from ml_workbench_service.embedded import EmbeddedRedis
from ml_workbench_service.integrations.prediction_queue import ShardedQueue

CAPACITY = 20_000
OURS, UNLOGGED = "ours, logged", "ours, without logs"
XADD, MANAGER = "redis.asyncio, one XADD each", "BaseManager queue"
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

    def turn(self, name: str, num: int, prefix: str) -> tuple[dict[str, Any], list[str]]:
        """One contestant publishes so many records; what it spent, and the ids that arrived, in order."""
        request = {"capacity": CAPACITY, "num": num, "prefix": prefix}
        logs = str(self._folder)
        if name == MANAGER:
            spent = self._manager.turn(**request, log_dir=logs)
            return spent, spent["arrived"]
        self._redis.flushall()
        if name == XADD:
            spent = self._xadd.turn(**request, url=self._url)
        else:
            self._queue.create_group("books")
            spent = self._ours.turn(**request, url=self._url, log_dir=logs if name == OURS else None)
            self._check_books(num)
        entries: Any = self._redis.xrange(PREDICTIONS_STREAM)
        return spent, [fields[b"prediction_id"].decode() for _, fields in entries]

    def _check_books(self, num: int) -> None:
        books = self._queue.books()
        group = books.groups[0]
        if (books.length, group.enqueued, group.undelivered, group.balance) != (num, num, num, 0):
            raise SystemExit(f"the books do not balance: {books}")

    def close(self) -> None:
        """Ends everything."""
        for each in (self._ours, self._xadd, self._manager):
            each.close()
        self._queue.close()
        self._redis.close()
        self._embedded.stop()


def compare(field: Field, num: int) -> None:
    """Ends the benchmark where a contestant's records do not all arrive, in order."""
    for name in (OURS, UNLOGGED, XADD, MANAGER):
        _, arrived = field.turn(name, num, "compared")
        if arrived != [f"compared-{number}" for number in range(num)]:
            raise SystemExit(f"{name}: {len(arrived)} of {num} records arrived, or in another order")


def main(*, num: int = 10_000, num_rounds: int = 7) -> None:
    """Compares what arrives, measures the rounds, prints the table."""
    by_processor, by_clock = Rounds(bigger_is_better=True), Rounds(bigger_is_better=True)
    with tempfile.TemporaryDirectory() as folder:
        field = Field(Path(folder))
        try:
            compare(field, min(num, 1000))
            for number in range(num_rounds + 1):
                for name in (OURS, XADD, MANAGER, UNLOGGED):
                    spent, arrived = field.turn(name, num, f"round{number}")
                    if len(arrived) != num:
                        raise SystemExit(f"{name}: {len(arrived)} of {num} records arrived")
                    if number:  # the first round warms up
                        by_processor.add(name, num / spent["processor_s"])
                        by_clock.add(name, num / spent["wall_s"])
        finally:
            field.close()
    rows = [
        [
            name,
            f"{by_processor.median(name):,.0f}",
            f"{by_processor.times_better(OURS, name):.1f}",
            f"{by_clock.median(name):,.0f}",
            f"{by_clock.times_better(OURS, name):.1f}",
        ]
        for name in (OURS, UNLOGGED, XADD, MANAGER)
    ]
    columns = ["contestant", "per client CPU-second", "ours is times better", "per second", "ours is times better"]
    show("Predictions published, a full record each", columns, rows)
    goals = [
        Goal(f"against {XADD}, by processor time", by_processor.times_better(OURS, XADD), GOAL),
        Goal(f"against the seed's {MANAGER}, by the clock", by_clock.times_better(OURS, MANAGER), GOAL),
    ]
    conclude("publishing", goals, {"per_processor_second": by_processor.figures, "per_second": by_clock.figures})


if __name__ == "__main__":
    main()
