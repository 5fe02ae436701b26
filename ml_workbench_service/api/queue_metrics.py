"""Prometheus figures of the prediction queue: each group's accounting, losses by symbol, latencies, the outbox.

The counters live in Redis and change in the scripts alone, so every producer and consumer is in them, whichever process
it is. While Redis is away only the outbox is shown.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.queue import GroupAccounting, StreamAccounting
from ml_workbench_service.integrations.prediction_queue import ShardedQueue, summed
from ml_workbench_service.serving.publisher import PredictionPublisher

STATES = ("enqueued", "acked", "pending", "undelivered", "dropped_oldest", "expired", "dead_lettered", "duplicates")
BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
LOSSES = ("dropped_oldest", "expired", "dead_lettered")


class Latencies:
    """A histogram that takes a batch at a time, in a tenth of what the client library's takes for each; one writer."""

    def __init__(self, bounds_s: tuple[float, ...] = BOUNDS_S) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: Sequence[float]) -> None:
        """Counts each."""
        for each in seconds:
            self._counts[bisect_left(self._bounds_s, each)] += 1
        self._sum_s += sum(seconds)

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """As Prometheus wants them: how many took at most each bound, and the sum in seconds."""
        return _cumulated([*map(str, self._bounds_s), "+Inf"], self._counts), self._sum_s


class QueueCollector(Collector):
    """Reads the accounting at each scrape, in one step for each stream; a predict worker shows its outbox alone."""

    def __init__(self, queue: ShardedQueue | None, publisher: PredictionPublisher, enqueued: Latencies) -> None:
        self._queue = queue
        self._publisher = publisher
        self._enqueued = enqueued

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        yield from self._outbox()
        if self._queue is None:
            return
        try:
            shards = self._queue.shard_accounting()
        except PlatformError:
            yield GaugeMetricFamily("ml_workbench_queue_up", "Whether Redis answers.", value=0)
            return
        yield GaugeMetricFamily("ml_workbench_queue_up", "Whether Redis answers.", value=1)
        accounting = summed(shards)
        yield from _streams(shards)
        yield from _groups(accounting.groups)
        refused = CounterMetricFamily(
            "ml_workbench_queue_refused", "Records refused at capacity (policy reject).", labels=["symbol"]
        )
        for symbol, count in accounting.refused_by_symbol.items():
            refused.add_metric([symbol], count)
        yield refused

    def _outbox(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "ml_workbench_queue_outbox", "Records not yet in the stream.", value=self._publisher.outbox
        )
        dropped = CounterMetricFamily(
            "ml_workbench_queue_outbox_dropped", "Records the outbox had to drop since the start.", labels=["symbol"]
        )
        for symbol, count in self._publisher.outbox_dropped_by_symbol.items():
            dropped.add_metric([symbol], count)
        yield dropped
        buckets, sum_s = self._enqueued.buckets()
        yield HistogramMetricFamily(
            "ml_workbench_queue_enqueue_seconds",
            "From the prediction to its place in the stream.",
            buckets=buckets,
            sum_value=sum_s,
        )


def _streams(shards: Iterable[StreamAccounting]) -> Iterator[Metric]:
    length = GaugeMetricFamily("ml_workbench_queue_length", "Entries in the stream.", labels=["stream"])
    age = GaugeMetricFamily("ml_workbench_queue_oldest_age_seconds", "Age of the oldest entry.", labels=["stream"])
    dead = GaugeMetricFamily("ml_workbench_queue_dead_letters", "Dead letters that are kept.", labels=["stream"])
    for each in shards:
        length.add_metric([each.stream], each.length)
        age.add_metric([each.stream], each.oldest_age_s or 0.0)
        dead.add_metric([each.stream], each.num_dead_letters)
    yield from (length, age, dead)


def _groups(groups: Iterable[GroupAccounting]) -> Iterator[Metric]:
    records = GaugeMetricFamily(
        "ml_workbench_queue_records", "The queue's accounting, by consumer group.", labels=["group", "state"]
    )
    balance = GaugeMetricFamily("ml_workbench_queue_balance", "0 at every quiet moment.", labels=["group"])
    lost = CounterMetricFamily(
        "ml_workbench_queue_lost", "What a group never applied.", labels=["group", "symbol", "reason"]
    )
    applied = HistogramMetricFamily(
        "ml_workbench_queue_applied_seconds", "From enqueueing to acknowledgment.", labels=["group"]
    )
    for each in groups:
        for state in STATES:
            records.add_metric([each.group, state], getattr(each, state))
        balance.add_metric([each.group], each.balance)
        for symbol, losses in each.by_symbol.items():
            for reason in LOSSES:
                if count := getattr(losses, reason):
                    lost.add_metric([each.group, symbol, reason], count)
        bounds = [*(str(bound / 1000) for bound in each.latency.bounds_ms), "+Inf"]
        applied.add_metric([each.group], _cumulated(bounds, each.latency.counts), each.latency.sum_ms / 1000)
    yield from (records, balance, lost, applied)


def _cumulated(bounds: Sequence[str], counts: Sequence[int]) -> list[tuple[str, float]]:
    return list(zip(bounds, map(float, accumulate(counts)), strict=True))
