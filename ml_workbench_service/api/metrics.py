"""Prometheus metrics of one service, prefix `ml_workbench_` but for the process's own; a registry of its own, so that
several apps can live in one process."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from common_lib.exceptions import PlatformError
from common_lib.tracing import is_tracing, num_spans_dropped
from ml_workbench_service.agents.status import agent_folders, read_agent
from ml_workbench_service.api.predict_workers.metrics import WorkerSums
from ml_workbench_service.api.queue_metrics import Latencies, QueueCollector
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.runners import PredictProcesses
from ml_workbench_service.contracts.runs.columns import Coded
from ml_workbench_service.contracts.runs.records import RecordRun
from ml_workbench_service.integrations.prediction_queue import ShardedQueue
from ml_workbench_service.serving.inference_line import InferenceLine
from ml_workbench_service.serving.interval_outcomes import LiveCoverage
from ml_workbench_service.serving.publisher import PredictionPublisher

MOST_LABELS = 1024
"""Sets of labels whose counters are at hand."""
LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
INTERVAL_FIGURES = {
    "coverage": (GaugeMetricFamily, "Share of the last live outcomes inside their interval."),
    "num_outcomes": (CounterMetricFamily, "Live intervals whose outcome is known."),
    "factor": (GaugeMetricFamily, "What live intervals are multiplied by at usual volatility."),
}
AGENT_FIGURES = {
    "num_applied": (CounterMetricFamily, "Stream entries applied, each once."),
    "num_actions": (CounterMetricFamily, "Decisions."),
    "num_observed": (CounterMetricFamily, "Entries that could cause no action."),
    "num_repeated": (CounterMetricFamily, "Bars that were their series' last one again."),
    "num_out_of_order": (CounterMetricFamily, "Bars older than their series' last one."),
    "num_settled": (CounterMetricFamily, "Steps whose reward is known."),
    "cumulative_reward": (GaugeMetricFamily, "Log return after costs."),
    "cumulative_cost": (GaugeMetricFamily, "Costs as a fraction."),
    "exploration_rate": (GaugeMetricFamily, "Share of random choices."),
}


class Metrics:
    """Counters and histograms of the HTTP side."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # the standard names, which dashboards for processes know
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
        if is_tracing():
            self.registry.register(_Spans())
        self._workers: WorkerSums | None = None
        self._of_answers: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._of_predictions: dict[tuple[str, ...], tuple[Counter, ...]] = {}

    def count_answer(self, method: str, route: str, status: int, elapsed_s: float) -> None:
        """An answered request; its labels are looked up once."""
        key = (method, route, str(status))
        found = self._of_answers.get(key)
        if found is None:
            found = self._of_answers[key] = (self.requests.labels(*key), self.latency.labels(route))
        requests, latency = found
        requests.inc()
        latency.observe(elapsed_s)

    def count_prediction(self, record: PredictionRecord) -> None:
        """A record, and the reasons of its abstention."""
        self._count((record.model_id, record.version, record.status, record.direction, *record.abstain_reasons), 1)

    def count_run(self, run: RecordRun) -> None:
        """The same of the records of a run."""
        parts = map(run.coded, ("model_id", "version", "status", "direction", "abstain_reasons"))
        keys = Coded.joined(lambda *each: (*each[:4], *each[4]), *parts)
        for key, num in zip(keys.choices, np.bincount(keys.codes_N, minlength=len(keys.choices)), strict=True):
            self._count(key, int(num))

    def _count(self, key: tuple[str, ...], num: int) -> None:
        """So many more; their labels are looked up once."""
        counters = self._of_predictions.get(key)
        if counters is None:
            if len(self._of_predictions) >= MOST_LABELS:
                self._of_predictions.clear()
            of_reasons = [self.abstentions.labels(key[0], reason) for reason in key[4:]]
            counters = self._of_predictions[key] = (self.predictions.labels(*key[:4]), *of_reasons)
        for counter in counters:
            counter.inc(num)

    def watch_agents(self, state_dir: Path) -> None:
        """Shows what the agents have applied and earned, read anew at each scrape."""
        self.registry.register(AgentCollector(state_dir))

    def watch_queue(self, queue: ShardedQueue | None, publisher: PredictionPublisher) -> None:
        """Shows the queue's accounting and the outbox, read anew at each scrape."""
        self.registry.register(QueueCollector(queue, publisher, self.enqueue))

    def watch_intervals(self, intervals: Iterable[tuple[str, str, LiveCoverage]]) -> None:
        """Shows what became of live intervals; read anew at each scrape, so that only what is in memory has labels."""
        self.registry.register(_Intervals(intervals))

    def watch_line(self, line: InferenceLine) -> None:
        """Shows how many questions shared a run, how long they had waited, and how many wait."""
        sizes, waits = Latencies(BATCH_SIZES), Latencies()

        def observe(num: int, waited_s: Sequence[float]) -> None:
            sizes.observe((num,))
            waits.observe(waited_s)

        line.observe = observe
        self.registry.register(_Line(line, sizes, waits))

    def watch_workers(self, workers: PredictProcesses, figures: Collector) -> WorkerSums:
        """Adds what predict workers counted to every family, and shows `figures` of the hand-over."""
        self._workers = WorkerSums(workers)
        self.registry.register(figures)
        return self._workers

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry if self._workers is None else self._workers.added_to(self.registry))


class _Line(Collector):
    """The line before the networks."""

    def __init__(self, line: InferenceLine, sizes: Latencies, waits: Latencies) -> None:
        self._line, self._sizes, self._waits = line, sizes, waits

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        yield GaugeMetricFamily(
            "ml_workbench_inference_waiting", "Questions in the waiting room.", value=self._line.num_waiting
        )
        for name, text, found in (
            ("batch_size", "Single questions that shared a run of the network.", self._sizes),
            ("wait_seconds", "Time from joining the line to the run.", self._waits),
        ):
            buckets, total = found.buckets()
            yield HistogramMetricFamily(f"ml_workbench_inference_{name}", text, buckets=buckets, sum_value=total)


class _Spans(Collector):
    """Spans on their way to the collector."""

    def collect(self) -> Iterator[Metric]:
        """One family."""
        yield CounterMetricFamily(
            "ml_workbench_spans_dropped", "Spans that the collector did not get.", value=num_spans_dropped()
        )


class _Intervals(Collector):
    """Coverage, outcomes and factor of each live version."""

    def __init__(self, intervals: Iterable[tuple[str, str, LiveCoverage]]) -> None:
        self._intervals = intervals

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        labels = ["model_id", "version"]
        families = {
            name: kind(f"ml_workbench_interval_{name.removeprefix('num_')}", text, labels=labels)
            for name, (kind, text) in INTERVAL_FIGURES.items()
        }
        for model_id, version, found in self._intervals:
            for name in families if found.coverage is not None else ("num_outcomes", "factor"):
                families[name].add_metric([model_id, version], getattr(found, name))
        yield from families.values()


class AgentCollector(Collector):
    """Counters and states of every agent, from its folder, whether or not its process lives; one whose files cannot be
    read is only shown as down."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        labels = ["agent"]
        up = GaugeMetricFamily("ml_workbench_agent_up", "Whether all its processes run.", labels=labels)
        families = {
            name: kind(f"ml_workbench_agent_{name.removeprefix('num_')}", text, labels=labels)
            for name, (kind, text) in AGENT_FIGURES.items()
        }
        for folder in agent_folders(self._state_dir):
            try:
                agent = read_agent(folder)
            except PlatformError:
                up.add_metric([folder.name], 0)
                continue
            up.add_metric([agent.id], agent.status == "running")
            for name, family in families.items():
                family.add_metric([agent.id], getattr(agent, name))
        yield from (up, *families.values())
