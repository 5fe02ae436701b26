"""Prometheus metrics of one service, prefix `ml_workbench_`; a registry of its own, so that several apps can live in
one process."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ml_workbench_service.api.agent_metrics import AgentCollector
from ml_workbench_service.api.queue_metrics import Latencies, QueueCollector
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.serving.interval_outcomes import LiveCoverage
from ml_workbench_service.serving.publisher import PredictionPublisher

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """Counters and histograms of the HTTP side."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="ml_workbench", registry=self.registry)
        self.requests = Counter(
            "ml_workbench_http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "ml_workbench_http_request_seconds", "Time to the answer's first byte.", ["route"],
            buckets=LATENCY_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.predictions = Counter(
            "ml_workbench_predictions", "Records answered.", ["model_id", "version", "status", "direction"],
            registry=self.registry,
        )  # fmt: skip
        self.abstentions = Counter(
            "ml_workbench_abstentions", "Reasons of abstentions.", ["model_id", "reason"], registry=self.registry
        )
        self.jobs = Counter("ml_workbench_jobs", "Jobs that ended.", ["kind", "status"], registry=self.registry)
        self.loaded_models = Gauge("ml_workbench_loaded_models", "Versions in memory.", registry=self.registry)
        self.enqueue = Latencies()

    def watch_agents(self, state_dir: Path) -> None:
        """Shows what the agents have applied and earned, read anew at each scrape."""
        self.registry.register(AgentCollector(state_dir))

    def watch_queue(self, queue: ShardedQueue, publisher: PredictionPublisher) -> None:
        """Shows the queue's accounting and the outbox, read anew at each scrape."""
        self.registry.register(QueueCollector(queue, publisher, self.enqueue))

    def watch_intervals(self, intervals: Iterable[tuple[str, str, LiveCoverage]]) -> None:
        """Shows what became of live intervals; read anew at each scrape, so that only what is in memory has labels."""
        self.registry.register(_Intervals(intervals))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class _Intervals(Collector):
    """Coverage, outcomes and factor of each live version."""

    def __init__(self, intervals: Iterable[tuple[str, str, LiveCoverage]]) -> None:
        self._intervals = intervals

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        labels = ["model_id", "version"]
        coverage = GaugeMetricFamily(
            "ml_workbench_interval_coverage",
            "Share of the last live outcomes inside their interval.",
            labels=labels,
        )
        outcomes = CounterMetricFamily(
            "ml_workbench_interval_outcomes", "Live intervals whose outcome is known.", labels=labels
        )
        factor = GaugeMetricFamily(
            "ml_workbench_interval_factor", "What live intervals are multiplied by at usual volatility.", labels=labels
        )
        for model_id, version, found in self._intervals:
            if found.coverage is not None:
                coverage.add_metric([model_id, version], found.coverage)
            outcomes.add_metric([model_id, version], found.num_outcomes)
            factor.add_metric([model_id, version], found.factor)
        yield from (coverage, outcomes, factor)
