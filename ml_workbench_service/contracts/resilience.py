"""Resilience testing: what `POST /resilience` asks for, and the report that is the job's result.

Times of a report are seconds since the flood began; latencies are milliseconds.
"""

from typing import Literal

from pydantic import Field, model_validator

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.queue import QueuePolicy
from ml_workbench_service.contracts.training import JobPriority

Scenario = Literal["steady", "burst", "flood"]
"""`steady` evenly spaced, `burst` a second's records at once each second, `flood` Poisson arrivals; all open loop."""

Invariant = Literal[
    "nothing_lost", "applied_once", "order", "books_balance", "pending_empty", "dead_letters", "outbox", "state_exact"
]
MOST_RECORDS = 120_000
"""Of one run: the histories of more would not fit into a worker's usual memory."""


class ResilienceRequest(Asked):
    """`POST /resilience`. A run has a queue, a server and agents of its own; the service's are not touched."""

    scenario: Scenario = "flood"
    rate_per_s: Finite = Field(default=500, gt=0, le=10_000, description="Records offered per second, on average.")
    duration_s: Finite = Field(default=5, ge=0.5, le=600, description="How long records are offered.")
    faults: tuple[str, ...] = Field(
        default=(), max_length=8, description="Injected at random moments; GET /resilience/faults lists them."
    )
    seed: int | None = Field(
        default=None, ge=0, le=2**31 - 1, description="Of every random moment; unset: drawn, and in the report."
    )
    capacity: int = Field(default=10_000, ge=1, le=50_000, description="Of the run's queue.")
    policy: QueuePolicy = "drop_oldest"
    outbox_capacity: int = Field(default=10_000, ge=1, le=1_000_000, description="Records kept while Redis is away.")
    num_symbols: int = Field(default=4, ge=1, le=64)
    num_agents: int = Field(default=1, ge=1, le=4)
    num_standbys: int = Field(default=0, ge=0, le=2, description="Further processes of each agent that stand by.")
    num_shards: int = Field(default=1, ge=1, le=4, description="Streams; each agent has a process for each.")
    ttl_s: Finite | None = Field(default=None, gt=0, le=3600, description="Entries that waited longer are expired.")
    fsync: Literal["always", "everysec"] = Field(
        default="always", description="Of the run's Redis. With `always`, acknowledged means on disk."
    )
    priority: JobPriority = Field(default=JobPriority.NORMAL, description="Among the waiting jobs of the same key.")

    @model_validator(mode="after")
    def _fits(self) -> "ResilienceRequest":
        if self.rate_per_s * self.duration_s > MOST_RECORDS:
            raise ValueError(f"rate_per_s times duration_s is at most {MOST_RECORDS} records; lower one of them")
        if len(set(self.faults)) != len(self.faults):
            raise ValueError("a fault stands twice in `faults`; name each once")
        return self


class FaultDescription(Contract):
    """One fault that can be injected."""

    name: str
    summary: str


class FaultList(Contract):
    """`GET /resilience/faults`."""

    faults: tuple[FaultDescription, ...]


class FaultEvent(Contract):
    """Something done to the run, or seen in it."""

    at_s: Finite
    fault: str
    what: str


class Verdict(Contract):
    """Whether one invariant held, with the first counter-examples where it did not."""

    invariant: Invariant
    holds: bool
    num_checked: int
    num_violations: int
    counter_examples: tuple[str, ...] = ()


class GroupAccount(Contract):
    """Where the records that the server took went, for one agent's group.

    taken = applied + dropped_oldest + expired + dead_lettered + flushed + missing; a record that was applied and then
    wiped out by FLUSHALL before it could be acknowledged counts as applied here.
    """

    group: str
    taken: int
    applied: int
    dropped_oldest: int
    expired: int
    dead_lettered: int
    flushed: int = Field(description="Lost by the operator's act: FLUSHALL in the middle of the run.")
    missing: int = Field(description="Accounted for by nothing: lost.")
    applied_then_evicted: int = 0


class Percentiles(Contract):
    """A distribution of milliseconds."""

    num: int
    p50_ms: Finite
    p90_ms: Finite
    p99_ms: Finite
    p999_ms: Finite
    max_ms: Finite


class DepthSample(Contract):
    """The stream at one moment."""

    at_s: Finite
    length: int
    pending: int
    undelivered: int


class Throughput(Contract):
    """Records per second, over the time in which they came."""

    offered_per_s: Finite
    taken_per_s: Finite
    applied_per_s: Finite


class ResilienceReport(Contract):
    """The `result` of a resilience job."""

    request: ResilienceRequest
    seed: int
    passed: bool
    verdicts: tuple[Verdict, ...]
    num_offered: int
    num_acknowledged: int = Field(description="Records of which a producer was told that the queue has them.")
    num_refused: int = Field(default=0, description="For want of room, by the policy `reject`.")
    num_outbox_dropped: int
    num_poison: int
    accounts: tuple[GroupAccount, ...]
    throughput: Throughput
    latency: Percentiles | None = Field(description="From the moment a record was due to its decision in the stream.")
    latency_in_queue: Percentiles | None = Field(description="From the record's stream entry to its decision's.")
    lateness: Percentiles | None = Field(description="How late the open loop offered records.")
    depth: tuple[DepthSample, ...]
    timeline: tuple[FaultEvent, ...]
    notes: tuple[str, ...] = ()
    duration_s: Finite
    table: str = Field(description="The report for people.")
