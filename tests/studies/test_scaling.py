"""The scaling model agrees with its simulation on a small case, and every limit moves the way that it must."""

from dataclasses import replace

import pytest

from studies.scaling import constants as kept
from studies.scaling.comparison import held
from studies.scaling.constants import Constants
from studies.scaling.model import Demand, Layout, Limit, Plan, limits
from studies.scaling.queues import GatedServer, pooled_wait_s
from studies.scaling.simulation import Simulation

SEED = 7
RELIEVED: dict[str, dict[str, float]] = {
    "replicas": {"replicas": 3},
    "agents": {"shards": 4},
    "redis-server": {"redis_servers": 2},
    "ledger keeps a row until its outcome": {"ledger_rows": 2_000_000},
    "hand-over's stream between two savings": {"handover_entries": 32_768},
    "memory of a replica": {"replica_gb": 8.0},
    "capacity of a stream": {"queue_capacity": 200},
}
"""Of a layout of two replicas and two shards, what lifts each limit."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Two replicas, half busy, with the constants that are kept."""
    constants = kept.load()
    per_s = 1 / (constants.run_s + constants.question_s)
    return Plan(constants, Demand(per_s=per_s, num_workers=10), Layout(replicas=2, shards=2))


def most(plan: Plan) -> dict[str, Limit]:
    return {each.name: each for each in limits(plan)}


def test_the_model_agrees_with_the_simulation(plan: Plan) -> None:
    found = Simulation(plan, seconds=4_000 / plan.demand.per_s, seed=SEED).play()
    assert [each for each in held(plan, found) if not each.agrees] == []


def test_a_server_of_single_items_is_the_one_in_the_books() -> None:
    """Pollaczek and Khinchine's M/D/1 at half its capacity: half a service's wait."""
    server = GatedServer(per_s=500.0, turn_s=0.0005, item_s=0.0005, most=1)
    assert server.busy == pytest.approx(0.5, abs=0.01)
    assert server.latency.mean_s == pytest.approx(0.0015, rel=0.03)
    assert pooled_wait_s(500.0, 0.001, 1, 0.0) == pytest.approx(0.0005)


def test_what_is_added_lifts_its_limit(plan: Plan) -> None:
    before = most(plan)
    for name, added in RELIEVED.items():
        after = most(replace(plan, layout=replace(plan.layout, **added)))
        assert after[name].most > before[name].most, name


@pytest.mark.parametrize("name", ["ledger keeps a row until its outcome", "ledger's file", "control process"])
def test_a_larger_sample_lowers_its_limits(plan: Plan, name: str) -> None:
    dearer = replace(plan, demand=replace(plan.demand, sampled=1.0))
    assert most(dearer)[name].most < most(plan)[name].most


def test_dearer_constants_lower_their_limits(plan: Plan) -> None:
    dearer = {
        "redis-server": "publish_call_s", "control process": "apply_parcel_s", "replicas": "question_s",
        "agents": "agent_record_s", "ledger's file": "write_row_clock_s", "memory of a replica": "version_mb",
        "events of workers": "route_s",
    }  # fmt: skip
    before = most(plan)
    for name, constant in dearer.items():
        twice: Constants = replace(plan.constants, **{constant: 2 * getattr(plan.constants, constant)})
        assert most(replace(plan, constants=twice))[name].most < before[name].most, name
