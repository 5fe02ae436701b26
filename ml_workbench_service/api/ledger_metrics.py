"""Prometheus figures of the prediction ledger, read anew at a scrape: only what is live has labels."""

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.outcomes import VersionMonitoring
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.resources import Workbench
from ml_workbench_service.workflows.monitor_model import monitor

MOST_ROWS = 5000
"""Newest rows behind a scraped figure."""
KEPT_S = 60.0
"""Scrapes within so long get the same figures of a version."""
LABELS = ("model_id", "version")
FIGURES: tuple[tuple[str, str, Callable[[VersionMonitoring], float | None]], ...] = (
    ("live_mae", "Mean absolute error of the newest outcomes.", lambda live: live.error.mae if live.error else None),
    (
        "live_mae_ratio",
        "The same, divided by the naive baseline's on the same rows.",
        lambda live: live.error.mae_ratio if live.error else None,
    ),
    (
        "live_direction_accuracy",
        "Share of the newest buys and sells that were right.",
        lambda live: live.direction_accuracy.value if live.direction_accuracy else None,
    ),
    (
        "live_coverage",
        "Share of the newest outcomes inside their interval.",
        lambda live: live.coverage.coverage.value if live.coverage else None,
    ),
    (
        "drift_worst_psi",
        "Largest population stability index of the newest inputs.",
        lambda live: max(_indices(live), default=None),
    ),
)


class LedgerMetrics(Collector):
    """Rows by outcome, what could not be written, and how each live version fares.

    Args:
        workbench: its deployment history says what is live.
        ledger: whose rows count.
    """

    def __init__(self, workbench: Workbench, ledger: PredictionLedger) -> None:
        self._workbench = workbench
        self._ledger = ledger
        self._kept: dict[tuple[str, str], tuple[float, VersionMonitoring | None]] = {}

    def describe(self) -> Sequence[Metric]:
        """Nothing: registering this must not read the ledger."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        states = GaugeMetricFamily("ml_workbench_ledger_rows", "Predictions kept, by outcome.", labels=["outcome"])
        for state, num in self._ledger.num_by_state().items():
            states.add_metric([state], num)
        yield states
        yield CounterMetricFamily(
            "ml_workbench_ledger_unwritten",
            "Sampled predictions lost since the start: the disk was away for too long.",
            value=self._ledger.num_unwritten,
        )
        live = {(each.model_id, each.version) for each in self._workbench.history.everything() if each.status == "live"}
        self._kept = {key: kept for key, kept in self._kept.items() if key in live}
        found = {key: self._figures(*key) for key in sorted(live)}
        for name, text, read in FIGURES:
            family = GaugeMetricFamily(f"ml_workbench_{name}", text, labels=LABELS)
            for key, figures in found.items():
                value = None if figures is None else read(figures)
                if value is not None:
                    family.add_metric(list(key), value)
            yield family

    def _figures(self, model_id: str, version: str) -> VersionMonitoring | None:
        """At most a minute old; None where they cannot be had: a scrape does without."""
        kept = self._kept.get((model_id, version))
        if kept is not None and time.monotonic() - kept[0] < KEPT_S:
            return kept[1]
        try:
            report = monitor(self._workbench, self._ledger, model_id, version=version, most_rows=MOST_ROWS)
            figures = report.versions[0]
        except PlatformError:  # the version's own pages, and the ledger's, say what is wrong
            figures = None
        self._kept[model_id, version] = (time.monotonic(), figures)
        return figures


def _indices(live: VersionMonitoring) -> list[float]:
    return [each.psi for each in live.drift.features if each.psi is not None] if live.drift else []
