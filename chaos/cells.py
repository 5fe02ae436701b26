"""Rows of the chaos table: which faults, alone and together, and the flood that they meet."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_workbench_service.contracts.resilience import ResilienceRequest

DURATION_S = 2.5
SMALL = {"capacity": 100}  # the service's default: whatever stalls is evicted
SMALL_OUTBOX = {"outbox_capacity": 100, "rate_per_s": 1000}


@dataclass(frozen=True)
class Cell:
    """One row.

    Attributes:
        name: of the row.
        faults: injected together.
        changes: of the request.
        is_promised: False of a row that is measured and promises nothing.
    """

    name: str
    faults: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    is_promised: bool = True

    def request(self, seed: int) -> ResilienceRequest:
        """One run."""
        usual: dict[str, Any] = {"scenario": "flood", "rate_per_s": 500, "duration_s": DURATION_S}
        return ResilienceRequest.model_validate({**usual, "faults": self.faults, **self.changes, "seed": seed})

    def seeds(self, base: int, num_runs: int) -> list[int]:
        """The seeds of its runs."""
        rng = random.Random(f"{base} {self.name}")
        return [rng.randrange(2**31) for _ in range(num_runs)]


CELLS = (
    Cell("no fault", ()),
    Cell("no fault, 2,000/s", (), {"rate_per_s": 2000}),
    Cell("two agents, bursts", (), {"scenario": "burst", "num_agents": 2}),
    Cell("two shards, agent_killed", ("agent_killed",), {"num_shards": 2}),
    Cell("slow_consumer", ("slow_consumer",), SMALL),
    Cell("dead_consumer", ("dead_consumer",), SMALL),
    Cell("slow_consumer, expiry", ("slow_consumer",), {"ttl_s": 0.15}),
    Cell("slow_consumer, reject", ("slow_consumer",), SMALL | {"policy": "reject"}),
    Cell("slow_consumer, block", ("slow_consumer",), SMALL | {"policy": "block"}),
    Cell("poison", ("poison",)),
    Cell("deadly_poison", ("deadly_poison",)),
    Cell("burst_beyond_capacity", ("burst_beyond_capacity",), SMALL),
    Cell("redis_killed", ("redis_killed",)),
    Cell("redis_frozen", ("redis_frozen",)),
    Cell("redis_paused", ("redis_paused",)),
    Cell("redis_disk_full", ("redis_disk_full",)),
    Cell("redis_disk_full_always", ("redis_disk_full_always",)),
    Cell("flush", ("flush",)),
    Cell("connection_reset", ("connection_reset",)),
    Cell("connection_cut", ("connection_cut",)),
    Cell("connection_slow", ("connection_slow",)),
    Cell("connection_refused", ("connection_refused",)),
    Cell("black_hole", ("black_hole",)),
    Cell("agent_killed", ("agent_killed",)),
    Cell("agent_killed, standby", ("agent_killed",), {"num_standbys": 1}),
    Cell("consumer_frozen", ("consumer_frozen",)),
    Cell("publisher_killed", ("publisher_killed",)),
    Cell("clock_step", ("clock_step",)),
    Cell("disk_full", ("disk_full",)),
    Cell("small outbox, redis_killed", ("redis_killed",), SMALL_OUTBOX),
    Cell("redis_killed + agent_killed", ("redis_killed", "agent_killed")),
    Cell("connection_reset + agent_killed", ("connection_reset", "agent_killed"), {"num_agents": 2}),
    Cell("connection_cut + publisher_killed", ("connection_cut", "publisher_killed")),
    Cell("burst_beyond_capacity + agent_killed", ("burst_beyond_capacity", "agent_killed"), SMALL),
    Cell("poison + agent_killed", ("poison", "agent_killed")),
    Cell("clock_step + redis_killed", ("clock_step", "redis_killed")),
    Cell("flush + clock_step", ("flush", "clock_step")),
    Cell("disk_full + redis_killed", ("disk_full", "redis_killed")),
    Cell("everysec, redis_killed", ("redis_killed",), {"fsync": "everysec", "rate_per_s": 2000}, is_promised=False),
)


def cells_named(wanted: str | None) -> tuple[Cell, ...]:
    """The cells whose names are between the semicolons; all for None."""
    words = None if wanted is None else [word.strip() for word in wanted.split(";")]
    return tuple(cell for cell in CELLS if words is None or cell.name in words)
