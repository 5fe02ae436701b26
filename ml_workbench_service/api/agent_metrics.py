"""Prometheus figures of the agents, read from their folders at each scrape: whether or not their processes live."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common_lib.exceptions import PlatformError
from ml_workbench_service.agents.status import agent_folders, read_agent

COUNTERS = {
    "num_applied": ("applied", "Stream entries applied, each once."),
    "num_actions": ("actions", "Decisions."),
    "num_observed": ("observed", "Entries that could cause no action."),
    "num_repeated": ("repeated", "Bars that were their series' last one again."),
    "num_out_of_order": ("out_of_order", "Bars older than their series' last one."),
    "num_settled": ("settled", "Steps whose reward is known."),
}
GAUGES = {
    "cumulative_reward": ("cumulative_reward", "Log return after costs."),
    "cumulative_cost": ("cumulative_cost", "Costs as a fraction."),
    "exploration_rate": ("exploration_rate", "Share of random choices."),
}


class AgentCollector(Collector):
    """Counters and states of every agent; one whose files cannot be read is only shown as down."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        labels = ["agent"]
        up = GaugeMetricFamily("ml_workbench_agent_up", "Whether all its processes run.", labels=labels)
        counters = {
            name: CounterMetricFamily(f"ml_workbench_agent_{short}", text, labels=labels)
            for name, (short, text) in COUNTERS.items()
        }
        gauges = {
            name: GaugeMetricFamily(f"ml_workbench_agent_{short}", text, labels=labels)
            for name, (short, text) in GAUGES.items()
        }
        for folder in agent_folders(self._state_dir):
            try:
                agent = read_agent(folder)
            except PlatformError:
                up.add_metric([folder.name], 0)
                continue
            up.add_metric([agent.id], agent.status == "running")
            for name, counter in counters.items():
                counter.add_metric([agent.id], getattr(agent, name))
            for name, gauge in gauges.items():
                gauge.add_metric([agent.id], getattr(agent, name))
        yield from (up, *counters.values(), *gauges.values())
