"""The model beside the simulation, and beside what a real worker did; and tables of the limits and the price."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from studies.scaling.constants import Constants
from studies.scaling.model import Demand, Layout, Plan, limits
from studies.scaling.processor_time import fitted
from studies.scaling.queues import GatedServer
from studies.scaling.simulation import Found, Simulation

ASKED = Demand()
"""1,000 models, 20,000 predictions a second, 200 workers."""
AS_BUILT = Layout(replicas=120, shards=24)
LIFTED = Layout(
    replicas=120, shards=32, redis_servers=32, queue_capacity=10_000, ledger_rows=20_000_000, handover_entries=1_000_000
)
"""What would carry it: several redis-servers and another bound of the hand-over are not built."""
SMALL = Layout(replicas=2, shards=2)
TOLERANCE, TAIL_TOLERANCE = 0.2, 0.6
"""Of what replicas, redis-server and control process work and of mean answers; and of all that depends on how arrivals
gather: p99, and whatever happens behind a busy replica, whose writes come regularly. Relative to the simulation.
"""
PREDICTIONS = 60_000


@dataclass(frozen=True)
class Held:
    """A figure of the model beside the simulation's."""

    name: str
    model: float
    simulated: float
    tolerance: float

    @property
    def difference(self) -> float:
        """Relative to the simulation."""
        if not math.isfinite(self.model):
            return math.inf
        return self.model / self.simulated - 1 if self.simulated else 0.0

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return abs(self.difference) <= self.tolerance


def held(plan: Plan, found: Found) -> list[Held]:
    """Every figure that both have."""
    pairs: list[tuple[str, float, float, float]] = [
        ("replica, busy", plan.replica.busy, found.replica_busy, TOLERANCE),
        ("answer, mean, ms", 1e3 * plan.answer.mean_s, 1e3 * found.answer_mean_s, TOLERANCE),
        ("answer, p99, ms", 1e3 * plan.answer.p99_s, 1e3 * found.answer_p99_s, TAIL_TOLERANCE),
        ("redis, busy", plan.redis.busy, found.redis_busy, TOLERANCE),
        ("redis, mean, ms", 1e3 * plan.redis.latency.mean_s, 1e3 * found.redis_mean_s, TAIL_TOLERANCE),
        ("redis, p99, ms", 1e3 * plan.redis.latency.p99_s, 1e3 * found.redis_p99_s, TAIL_TOLERANCE),
        ("agent, busy", plan.agent.busy, found.agent_busy, TAIL_TOLERANCE),
        ("agent, mean, ms", 1e3 * plan.applied.mean_s, 1e3 * found.agent_mean_s, TAIL_TOLERANCE),
        ("agent, p99, ms", 1e3 * plan.applied.p99_s, 1e3 * found.agent_p99_s, TAIL_TOLERANCE),
        ("control process, busy", plan.control_busy, found.control_busy, TOLERANCE),
        ("hand-over, mean, ms", 1e3 * plan.handed_over_s, 1e3 * found.handed_over_s, TAIL_TOLERANCE),
    ]
    return [Held(*each) for each in pairs]


def cases(constants: Constants) -> dict[str, Plan]:
    """Loads of a small layout as it is built, and the whole demand on one that would carry it."""
    each = SMALL.replicas * GatedServer(1.0, constants.run_s, constants.question_s).capacity_alone_per_s
    few = Demand(num_models=1_000, sampled=0.1, num_workers=20)
    found = {
        f"{share:.0%} of two replicas": Plan(constants, replace(few, per_s=float(round(share * each))), SMALL)
        for share in (0.2, 0.4, 0.6, 0.75)
    }
    lifted_demand = replace(ASKED, sampled=0.01, num_workers=0)  # events in a process of their own
    for replicas in (LIFTED.replicas, 2 * LIFTED.replicas):
        plan = Plan(constants, lifted_demand, replace(LIFTED, replicas=replicas))
        found[f"20,000/s, {replicas} replicas"] = plan
    return found


def simulated_table(constants: Constants, seed: int) -> tuple[list[str], list[list[str]], list[Held]]:
    """Columns, rows and every comparison."""
    columns, rows, every = ["", *()], {}, []
    for name, plan in cases(constants).items():
        seconds = min(20.0, PREDICTIONS / plan.demand.per_s)
        columns.append(f"{name}: {plan.demand.per_s:,.0f}/s" if "/s" not in name else name)
        for each in held(plan, Simulation(plan, seconds=seconds, seed=seed).play()):
            rows.setdefault(each.name, []).append(_beside(each))
            every.append(each)
    return columns, [[name, *cells] for name, cells in rows.items()], every


def _beside(each: Held) -> str:
    if not math.isfinite(each.model):
        return f"full · {each.simulated:.3g}"
    return f"{each.model:.3g} · {each.simulated:.3g} ({each.difference:+.0%})"


def limits_table(plans: Sequence[Plan]) -> list[list[str]]:
    """The limits of the first plan in their order, with each plan's figure."""
    by_name = [{each.name: each for each in limits(plan)} for plan in plans]
    found = []
    for name, first in by_name[0].items():
        cells = [f"{each[name].most:,.0f}{'' if each[name].is_passed else ' ✓'}" for each in by_name]
        found.append([f"{name}{first.unit if first.unit != '/s' else ''}", *cells, first.lifted_by])
    return found


def price_rows(constants: Constants, loads: Iterable[float]) -> list[list[str]]:
    """Cores, memory and disk for a load: replicas and shards half busy."""
    rows = []
    for per_s in loads:
        alone = GatedServer(1.0, constants.run_s, constants.question_s).capacity_alone_per_s
        replicas = max(1, math.ceil(per_s / alone * 2))
        shards = max(1, math.ceil(2 * per_s * (constants.agent_record_s + constants.agent_call_s / 8)))
        plan = Plan(constants, replace(ASKED, per_s=per_s, sampled=0.1), Layout(replicas=replicas, shards=shards))
        servers = max(1, math.ceil(plan.redis_work / 0.6))
        plan = replace(plan, layout=replace(plan.layout, redis_servers=servers))
        rows.append([
            f"{per_s:,.0f}", f"{replicas} · {shards} · {servers}", f"{plan.cores}", f"{plan.memory_gb:.1f}",
            f"{plan.rows_per_s:,.0f} · {plan.ledger_gb_a_day:.2f}", f"{plan.control_busy:.2f}",
            f"{plan.answer.mean_s * 1e3:.2f} · {plan.answer.p99_s * 1e3:.2f}",
        ])  # fmt: skip
    return rows


def measured_rows(constants: Constants, loads: Sequence[dict[str, float]]) -> list[list[str]]:
    """Poisson loads on one real worker beside the model of it, which has the costs of the same minutes, loads without a
    pause, stretched by what the worker waited for a core.
    """
    closed = [each for each in loads if not each["per_s"]]
    ones = [1.0] * len(closed)
    run_s, question_s = fitted([each["worker_s"] for each in closed], [1 / each["run_size"] for each in closed], ones)
    rows = []
    for each in (each for each in loads if each["per_s"]):
        stretched = 1 + each["waited_s"] / each["worker_s"]
        kinds = int(each["num_models"])
        server = GatedServer(
            each["per_s"], run_s * stretched, question_s * stretched, constants.answer_cv2, num_kinds=kinds
        )
        busy = each["num"] / each["seconds"] * (each["worker_s"] + each["waited_s"])
        rows.append(
            [
                f"{kinds} · {each['per_s']:,.0f} ({each['num'] / each['seconds']:,.0f})",
                f"{stretched:.1f}",
                _beside(Held("", server.busy, busy, TOLERANCE)),
                _beside(Held("", server.per_s / server.turns_per_s, each["run_size"], TOLERANCE)),
                _beside(Held("", 1e3 * server.latency.mean_s, each["mean_ms"], TAIL_TOLERANCE)),
                _beside(Held("", 1e3 * server.latency.p99_s, each["p99_ms"], TAIL_TOLERANCE)),
            ]
        )
    return rows
