"""Metrics of predict workers: each packs what it has counted, and the control process adds them up for a scrape.

Counters, histograms and gauges of the same name and labels are summed; figures of the process itself are not packed.
What a worker had counted when it died stays in the sums: a counter never falls.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ml_workbench_service.contracts.replicas import WorkerReport
from ml_workbench_service.contracts.runners import PredictProcesses

OF_THE_PROCESS = "process_"
NEVER_SUMMED = "_created"
"""Moments: the first one holds."""


def packed(registry: Collector) -> list[Any]:
    """Families as plain lists: name, text, kind, and of each sample name, labels and value."""
    return [
        [
            family.name, family.documentation, family.type,
            [[sample.name, sample.labels, sample.value] for sample in family.samples],
        ]
        for family in registry.collect()
        if not family.name.startswith(OF_THE_PROCESS)
    ]  # fmt: skip


class WorkerSums:
    """What workers counted, those that died included."""

    def __init__(self, workers: PredictProcesses) -> None:
        self._workers = workers
        self._of_the_dead: list[Any] = []

    def buried(self, report: WorkerReport) -> None:
        """The last report of a worker that died."""
        counted = [family for family in report.metrics if family[2] != "gauge"]
        self._of_the_dead = packed(_Families(_summed([*self._of_the_dead, *counted])))

    def added_to(self, registry: CollectorRegistry) -> CollectorRegistry:
        """The families of a registry with those of the workers in them."""
        of_workers = [family for report in self._workers.reports for family in report.metrics]
        everything = [*_packed_whole(registry), *self._of_the_dead, *of_workers]
        summed: Any = _Families([*_summed(everything), *_of_workers(self._workers)])
        return summed  # type: ignore[no-any-return]


class _Families(Collector):
    """Families that are there already, in the place of a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        """They."""
        return iter(self._families)


def _packed_whole(registry: CollectorRegistry) -> Iterator[Any]:
    for family in registry.collect():
        samples = [[sample.name, sample.labels, sample.value] for sample in family.samples]
        yield [family.name, family.documentation, family.type, samples]


def _summed(families: Iterable[Any]) -> list[Metric]:
    """One family of each name, in the order of their first appearance."""
    heads: dict[str, tuple[str, str]] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for name, text, kind, samples in families:
        heads.setdefault(name, (text, kind))
        of_family = values.setdefault(name, {})
        for sample, labels, value in samples:
            key = (sample, tuple(labels.items()))
            if sample.endswith(NEVER_SUMMED):
                of_family[key] = min(of_family.get(key, value), value)
            else:
                of_family[key] = of_family.get(key, 0.0) + value
    found = []
    for name, (text, kind) in heads.items():
        family = Metric(name, text, kind)
        for (sample, labels), value in values[name].items():
            family.add_sample(sample, dict(labels), value)
        found.append(family)
    return found


def _of_workers(workers: PredictProcesses) -> Iterator[Metric]:
    reports = workers.reports
    by_state = GaugeMetricFamily("ml_workbench_predict_workers", "Predict workers.", labels=["state"])
    by_state.add_metric(["wanted"], workers.num)
    by_state.add_metric(["serving"], len(reports))
    yield by_state
    yield CounterMetricFamily(
        "ml_workbench_predict_worker_deaths", "Workers that ended unasked.", value=workers.num_deaths
    )
    connections = GaugeMetricFamily(
        "ml_workbench_predict_worker_connections", "Open connections of a worker.", labels=["worker"]
    )
    news = GaugeMetricFamily(
        "ml_workbench_serving_state_news", "Number of the newest news in force in a worker.", labels=["worker"]
    )
    delay = GaugeMetricFamily(
        "ml_workbench_serving_state_delay_seconds",
        "From a deployment, or news of live intervals, in Redis to their being in force in a worker; the last one's.",
        labels=["worker"],
    )
    for each in reports:
        connections.add_metric([str(each.number)], each.num_connections)
        news.add_metric([str(each.number)], each.news_number)
        delay.add_metric([str(each.number)], each.delay_s)
    yield from (connections, news, delay)
    waiting = sum(each.num_unhanded for each in reports)
    yield GaugeMetricFamily("ml_workbench_handover_waiting", "Answers that Redis has not taken yet.", value=waiting)
