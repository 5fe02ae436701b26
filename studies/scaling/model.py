"""Cost and latency of a deployment on paper: what each resource does for a load, where the first limit is, its price.

    questions ─► predict replicas ─► redis-server ─┬─► agents, one a shard
                                                   └─► control process: hand-over, ledger, events of workers

Each resource is a queue of its own (`queues.py`) whose arrivals are Poisson at the rate that the one before it makes.
That they come in groups and not independently is what the simulation is there to tell.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from scipy.stats import norm

from ml_workbench_service.predict_replica import MOST_ENTRIES
from ml_workbench_service.serving.inference_line import MOST_TOGETHER
from ml_workbench_service.serving.publisher import HIGH_LOAD, LINGER_S, LOAD_WINDOW_S
from ml_workbench_service.workflows.apply_handover import ENTRIES_AT_ONCE, GATHER_S, MOST_UNSAVED, SAVE_EVERY_S
from ml_workbench_service.workflows.run_agent import BATCH_SIZE
from studies.scaling.constants import Constants
from studies.scaling.queues import NEVER, GatedServer, Latency, pooled_wait_s

DAY_S = 86_400.0


@dataclass(frozen=True)
class Demand:
    """What is asked.

    Attributes:
        per_s: predictions, one question each.
        num_models: live versions, asked alike.
        sampled: share of answers that become rows (`monitoring_level`: low 0.01, medium 0.1, high 1).
        num_workers, events_per_s: jobs that run elsewhere, and steps that each reports in a request of its own.
        known_after_s: from an answer to its outcome: the label's horizon and a bar.
    """

    per_s: float = 20_000.0
    num_models: int = 1_000
    sampled: float = 0.1
    num_workers: int = 200
    events_per_s: float = 0.5
    known_after_s: float = 7_200.0


@dataclass(frozen=True)
class Layout:
    """What it runs on: a core for each replica, redis-server, agent and the control process.

    Attributes:
        shards: streams of the prediction queue, each with its agent process.
        redis_servers: today one, whatever the shards; more is what would have to be built.
        queue_capacity: entries of a stream (`PREDICTION_QUEUE_CAPACITY`).
        ledger_rows: `PREDICTION_LEDGER_ROWS`.
        handover_entries: parcels that the hand-over's stream holds between two savings.
        replica_gb: memory of a replica.
    """

    replicas: int = 16
    shards: int = 8
    redis_servers: int = 1
    queue_capacity: int = 100
    ledger_rows: int = 1_000_000
    handover_entries: int = MOST_ENTRIES
    replica_gb: float = 4.0


class Group(NamedTuple):
    """Records that come together, and how often."""

    per_s: float
    records: float


class Limit(NamedTuple):
    """The most that a resource carries, predictions a second unless `unit` says else, and what lifts it."""

    name: str
    most: float
    asked: float
    lifted_by: str
    unit: str = "/s"

    @property
    def is_passed(self) -> bool:
        """Whether more is asked."""
        return self.asked > self.most


@dataclass(frozen=True)
class Plan:
    """A load on a layout, with the constants of a machine."""

    constants: Constants
    demand: Demand = field(default_factory=Demand)
    layout: Layout = field(default_factory=Layout)

    @cached_property
    def replica(self) -> GatedServer:
        """One of the replicas, among which connections are dealt out evenly."""
        c = self.constants
        per_s = self.demand.per_s / self.layout.replicas
        return GatedServer(per_s, c.run_s, c.question_s, c.answer_cv2, MOST_TOGETHER, self.demand.num_models)

    @cached_property
    def answer(self) -> Latency:
        """From a question's arrival at a replica to its answer."""
        return self.replica.latency

    @property
    def pooled_wait_s(self) -> float:
        """Mean wait for a replica if one line stood before all of them: what a balancer could gain at most."""
        c, num = self.constants, self.layout.replicas
        return pooled_wait_s(self.demand.per_s, c.run_s + c.question_s, num, c.answer_cv2)

    @cached_property
    def runs_per_s(self) -> float:
        """Runs of networks of all replicas; each leaves a parcel."""
        if self.replica.is_full:
            return self.layout.replicas * self.replica.capacity_per_s
        return self.layout.replicas * self.replica.turns_per_s

    @cached_property
    def busy_share(self) -> float:
        """How often a replica's loop counts as busy, and so gathers what it writes to the queue."""
        per_s, cost_s = self.demand.per_s / self.layout.replicas, self.constants.run_s + self.constants.question_s
        deviation = cost_s * math.sqrt(per_s * (1 + self.constants.answer_cv2) / LOAD_WINDOW_S)
        return float(norm.sf((HIGH_LOAD - self.replica.busy) / max(deviation, 1e-9)))

    @cached_property
    def writes(self) -> tuple["Group", "Group"]:
        """Writes to the prediction queue: one for a run; where the loop is busy one for what a moment brings."""
        per_s = self.demand.per_s / self.layout.replicas
        at_once = Group((1 - self.busy_share) * self.runs_per_s, self.demand.per_s / self.runs_per_s)
        gathered = self.busy_share * self.layout.replicas / (LINGER_S + 1 / per_s)
        return at_once, Group(gathered, 1 + per_s * LINGER_S)

    def calls(self, write: "Group") -> float:
        """Of the publishing script in a write: one for every stream that it has records of."""
        shards = self.layout.shards
        return shards * (1 - (1 - 1 / shards) ** max(write.records, 1.0))

    @cached_property
    def calls_per_s(self) -> float:
        """Calls of the publishing script."""
        return sum(each.per_s * self.calls(each) for each in self.writes)

    @property
    def rows_per_s(self) -> float:
        """Rows of the ledger."""
        return self.demand.per_s * self.demand.sampled

    @cached_property
    def redis_work(self) -> float:
        """Seconds of a server's time in a second, its loop's turns left out."""
        c, per_s = self.constants, self.demand.per_s
        queue = self.calls_per_s * c.publish_call_s + per_s * (c.publish_record_s + c.consume_record_s)
        return queue + self.runs_per_s * c.parcel_s + (self.runs_per_s + self.rows_per_s) * c.item_s

    @cached_property
    def redis(self) -> GatedServer:
        """One redis-server, by what comes together: a run's parcel and its write, a parcel alone, gathered writes."""
        c, (at_once, gathered) = self.constants, self.writes
        parcel_s = c.parcel_s + (1 + self.rows_per_s / self.runs_per_s) * c.item_s

        def write_s(write: Group) -> float:
            return self.calls(write) * c.publish_call_s + write.records * (c.publish_record_s + c.consume_record_s)

        if self.layout.redis_servers == 1:
            rates = (at_once.per_s, self.runs_per_s - at_once.per_s, gathered.per_s)
            works_s = (parcel_s + write_s(at_once), parcel_s, write_s(gathered))
        else:  # each stream's calls go to its server
            calls, many = self.calls(at_once), self.calls(gathered)
            rates = (at_once.per_s * calls, self.runs_per_s, gathered.per_s * many)
            works_s = (write_s(at_once) / calls, parcel_s, write_s(gathered) / many)
        work_s, cv2 = mixed(rates, works_s, c.redis_cv2)
        per_s = sum(rates) / self.layout.redis_servers
        return GatedServer(per_s, c.redis_loop_s, work_s, cv2 * (work_s / (c.redis_loop_s + work_s)) ** 2, most=10_000)

    @cached_property
    def agent(self) -> GatedServer:
        """One agent process, by records that come together."""
        c, shards = self.constants, self.layout.shards
        rates = [each.per_s * self.calls(each) / shards for each in self.writes]
        records = [each.records / self.calls(each) for each in self.writes]
        work_s, cv2 = mixed(rates, [each * c.agent_record_s for each in records], c.answer_cv2)
        together = self.demand.per_s / shards / sum(rates)
        most = max(1, round(BATCH_SIZE / together))
        cv2 *= (work_s / (c.agent_call_s + work_s)) ** 2
        return GatedServer(sum(rates), c.agent_call_s, work_s, cv2, most)

    @cached_property
    def applied(self) -> Latency:
        """From a record's place in its stream to the agent's step. Most records come in large groups."""
        if self.agent.is_full:
            return NEVER
        sizes = [each.records / self.calls(each) for each in self.writes]
        mean, cv2 = mixed([each.per_s * self.calls(each) for each in self.writes], sizes, 0.0)
        waits, more_s = self.agent.latency, self.constants.agent_record_s * mean * cv2
        largest_s = self.constants.agent_record_s * (sizes[1] - mean) if self.busy_share > 0.01 else 0.0
        return Latency(waits.mean_s + more_s, waits.p99_s + max(0.0, largest_s))

    @property
    def events_work(self) -> float:
        """Seconds of the control process in a second for the events of workers elsewhere."""
        each_s = self.constants.route_s + self.constants.event_s
        return self.demand.num_workers * self.demand.events_per_s * each_s

    @property
    def handover_work(self) -> float:
        """Seconds of the control process in a second for what is handed over."""
        c = self.constants
        each_run_s = c.apply_parcel_s + c.apply_drop_s
        return self.runs_per_s * each_run_s + self.rows_per_s * (c.apply_row_s + c.write_row_s)

    @property
    def control_busy(self) -> float:
        """Of the control process's core; above 1 it falls behind."""
        return self.handover_work + self.events_work

    @property
    def between_savings(self) -> float:
        """Parcels that come until those before them have left the stream: a second's at most, and a saving's."""
        unsaved = min(self.runs_per_s * SAVE_EVERY_S, float(MOST_UNSAVED))
        rows = unsaved * self.rows_per_s / self.runs_per_s
        saving_s = rows * self.constants.write_row_s / max(1 - self.events_work, 1e-3)
        return unsaved + self.runs_per_s * saving_s

    @property
    def handed_over_s(self) -> float:
        """Mean time from a parcel's entry to its application: half a pause and a reading, and its work."""
        if self.control_busy >= 1 or self.between_savings >= self.layout.handover_entries:
            return math.inf
        each_s = self.handover_work / self.runs_per_s / (1 - self.events_work)
        together = min(float(ENTRIES_AT_ONCE), max(1.0, self.runs_per_s * GATHER_S / (1 - self.control_busy)))
        return (GATHER_S + each_s * together) / 2 + each_s * together

    @property
    def cores(self) -> int:
        """Each process that one has to itself."""
        return self.layout.replicas + self.layout.shards + self.layout.redis_servers + 1

    @property
    def busy_cores(self) -> float:
        """Processor time in a second."""
        redis = self.layout.redis_servers * self.redis.busy
        agents = self.layout.shards * self.agent.busy
        return self.layout.replicas * self.replica.busy + redis + agents + min(1.0, self.control_busy)

    @property
    def memory_gb(self) -> float:
        """Of the replicas: every one holds every live version."""
        each_mb = self.constants.process_mb + self.demand.num_models * self.constants.version_mb
        return self.layout.replicas * each_mb / 1000

    @property
    def ledger_gb_a_day(self) -> float:
        """Rows that a day brings; the file keeps the newest `ledger_rows`."""
        return self.rows_per_s * DAY_S * self.constants.row_bytes / 1e9

    def at(self, per_s: float) -> "Plan":
        """The same at another load."""
        return replace(self, demand=replace(self.demand, per_s=per_s))


def limits(plan: Plan) -> list[Limit]:
    """Every limit, the lowest share of what is asked first."""
    c, demand, layout = plan.constants, plan.demand, plan.layout
    asked = demand.per_s
    num_live = (layout.replica_gb * 1000 - c.process_mb) / c.version_mb
    delay_s = plan.applied.p99_s
    found = [
        Limit("ledger keeps a row until its outcome", layout.ledger_rows / (demand.sampled * demand.known_after_s),
              asked, "`PREDICTION_LEDGER_ROWS`, or `monitoring_level` low"),
        Limit("hand-over's stream between two savings",
              most_of(plan, lambda at: at.between_savings / layout.handover_entries), asked,
              "parcels of several runs"),
        Limit("redis-server", most_of(plan, lambda at: at.redis_work / layout.redis_servers), asked,
              "a server for each group of shards, and one for the hand-over; today one"),
        Limit("control process", most_of(plan, lambda at: at.handover_work / max(1 - at.events_work, 1e-9)), asked,
              "parcels of several runs, `monitoring_level` low, events together"),
        Limit("ledger's file", 1 / c.write_row_clock_s / demand.sampled, asked, "PostgreSQL, `monitoring_level` low"),
        Limit("replicas", layout.replicas * plan.replica.capacity_per_s, asked, "more replicas"),
        Limit("agents", layout.shards * BATCH_SIZE / (c.agent_call_s + BATCH_SIZE * c.agent_record_s),
              asked, "`PREDICTION_QUEUE_SHARDS`"),
        Limit("memory of a replica", num_live, demand.num_models, "memory, or replicas by group of models", " models"),
        Limit("events of workers", 1 / (c.route_s + c.event_s),
              demand.num_workers * demand.events_per_s, "several events a request", " events/s"),
        Limit("capacity of a stream", layout.shards * layout.queue_capacity / delay_s,
              asked, "`PREDICTION_QUEUE_CAPACITY`"),
    ]  # fmt: skip
    return sorted(found, key=lambda each: each.most / each.asked)


def mixed(rates: Sequence[float], costs: Sequence[float], cv2: float) -> tuple[float, float]:
    """Mean and squared coefficient of variation of several kinds of work, each of which varies by `cv2` itself."""
    total = sum(rates)
    mean = sum(rate * cost for rate, cost in zip(rates, costs, strict=True)) / total
    square = sum(rate * cost**2 for rate, cost in zip(rates, costs, strict=True)) / total
    return mean, max(0.0, square * (1 + cv2) / mean**2 - 1)


def most_of(plan: Plan, share: Callable[[Plan], float]) -> float:
    """The load at which a resource's share reaches 1 while replicas, as many as that takes, are half busy.

    What a resource does for an answer then depends on no load, so that its share grows as the load does.
    """
    each = plan.replica.capacity_per_s / 2
    replicas = math.ceil(plan.demand.per_s / each)
    relieved = replace(plan.at(replicas * each), layout=replace(plan.layout, replicas=replicas))
    return replicas * each / max(share(relieved), 1e-12)
