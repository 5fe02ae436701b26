"""Prediction queue on the wire: its streams, `Delivery`, `Lease` and the accounting that must balance.

Stream `ml_workbench:predictions` (or one for each shard, see `stream_names`); an entry has the PredictionRecord's keys
as fields (contracts.entries), and `correlation_id`, `enqueued_at` (ISO 8601) and, where traces are sent, `traceparent`.
Decisions go to `ml_workbench:decisions`, deployments to `ml_workbench:deployments`.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol
from zlib import crc32

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime, utc_now
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.prediction import PredictionRecord

if TYPE_CHECKING:  # it is numpy's, which clients do without
    from ml_workbench_service.contracts.runs.records import RunRow

KEY_PREFIX = "ml_workbench:"
PREDICTIONS_STREAM = KEY_PREFIX + "predictions"
DECISIONS_STREAM = KEY_PREFIX + "decisions"
DEPLOYMENTS_STREAM = KEY_PREFIX + "deployments"
DEAD_LETTERS_STREAM = PREDICTIONS_STREAM + ":dead"

LATENCY_BOUNDS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
"""Upper bounds of the histogram that the scripts keep; Redis stamps entries to the millisecond."""

QueuePolicy = Literal["drop_oldest", "reject", "block"]
"""What becomes of a record when the queue is at its capacity: it takes the place of the oldest entry · it is refused
and counted · it waits in the outbox of whoever publishes it."""
FullMode = Literal["drop_oldest", "reject", "wait"]
"""How one call behaves at capacity: evicts · refuses, and counts, what has no room · takes what fits and stops."""


def stream_names(num_shards: int) -> tuple[str, ...]:
    """The streams of so many shards: one has the plain name; several are named by place and number."""
    if num_shards == 1:
        return (PREDICTIONS_STREAM,)
    return tuple(f"{PREDICTIONS_STREAM}:shard{place}of{num_shards}" for place in range(num_shards))


def shard_of(symbol: str, num_shards: int) -> int:
    """Where a symbol's records go: CRC-32 of its name, so that every process and language finds the same place."""
    return crc32(symbol.encode()) % num_shards


@dataclass(frozen=True)
class Lease:
    """The right to consume for a group. Of two holders the scripts know the later one by its higher term."""

    group: str
    owner: str
    term: int


@dataclass(frozen=True)
class LeaseHolder:
    """Who holds a lease at the moment: a beat that stands still while time passes says that the holder is dead."""

    owner: str
    term: int
    beat: int


@dataclass(frozen=True)
class Delivery:
    """One stream entry in the hands of a consumer."""

    entry_id: str  # Redis stream id, `milliseconds-sequence`
    record: PredictionRecord | None  # None: the entry could not be read (`fault` says why)
    enqueued_at: datetime | None
    correlation_id: str
    fault: str = ""
    num_deliveries: int = 1  # how often it was handed out, this time included
    traceparent: str = ""  # of the span that published it; empty where nothing was traced


class Persistence(NamedTuple):
    """Whether the server keeps on disk what it has acknowledged, as a sentence."""

    is_failing: bool
    said: str


class Outgoing(NamedTuple):
    """One record on its way into the stream."""

    record: "PredictionRecord | RunRow"
    correlation_id: str
    offered_at: float  # seconds since the epoch, when /predict handed it over
    traceparent: str = ""  # of the span that publishes it, where that is traced


@dataclass(frozen=True)
class Enqueued:
    """What became of the records of one call: the first `num_handled` of them entered, were known, or were refused."""

    num_handled: int
    refused: tuple[str, ...] = ()  # prediction ids; at capacity, in mode `reject`
    evicted: tuple[str, ...] = ()  # prediction ids; what gave way to them


class SymbolAccounting(Contract):
    """What one symbol lost in one group."""

    dropped_oldest: int = 0
    expired: int = 0
    dead_lettered: int = 0


class LatencyHistogram(Contract):
    """From enqueueing to acknowledgment, by the server's clock: how many took at most each bound, and longer."""

    bounds_ms: tuple[int, ...] = LATENCY_BOUNDS_MS
    counts: tuple[int, ...] = Field(
        default=(0,) * (len(LATENCY_BOUNDS_MS) + 1), description="One for each bound, and one for what took longer."
    )
    num: int = 0
    sum_ms: Finite = 0.0


class GroupAccounting(Contract):
    """Accounting of a consumer group: enqueued = acked + pending + undelivered + dropped + expired + dead + balance."""

    group: str
    enqueued: int
    acked: int
    pending: int
    undelivered: int
    dropped_oldest: int
    expired: int
    dead_lettered: int
    duplicates: int
    balance: int
    by_symbol: dict[str, SymbolAccounting] = Field(default_factory=dict, description="Symbols that lost something.")
    latency: LatencyHistogram = LatencyHistogram()


class ShardAccounting(Contract):
    """One stream of several."""

    stream: str
    length: int
    oldest_age_s: float | None
    groups: tuple[GroupAccounting, ...]


class QueueAccounting(Contract):
    """`GET /queue`: streams, the publisher's outbox, every group, and the default agent's figures on top."""

    length: int
    capacity: int = Field(description="Of each shard.")
    policy: QueuePolicy
    outbox: int
    outbox_dropped: int
    outbox_dropped_by_symbol: dict[str, int] = Field(default_factory=dict)
    refused: int = Field(default=0, description="Records refused at capacity, by the policy `reject`.")
    refused_by_symbol: dict[str, int] = Field(default_factory=dict)
    dead_letters: int = Field(default=0, description="Kept at the moment; see /queue/dead-letters.")
    oldest_age_s: float | None
    num_shards: int = 1
    groups: tuple[GroupAccounting, ...]
    shards: tuple[ShardAccounting, ...] = Field(
        default=(), description="Each stream by itself, where there are several."
    )
    group: str | None = None
    enqueued: int = 0
    acked: int = 0
    pending: int = 0
    undelivered: int = 0
    dropped_oldest: int = 0
    expired: int = 0
    dead_lettered: int = 0
    duplicates: int = 0
    balance: int = 0
    by_symbol: dict[str, SymbolAccounting] = Field(default_factory=dict)
    latency: LatencyHistogram = LatencyHistogram()


@dataclass(frozen=True)
class StreamAccounting:
    """The accounting of one stream, read in one step."""

    stream: str
    length: int
    oldest_age_s: float | None
    refused_by_symbol: dict[str, int]
    num_dead_letters: int
    groups: tuple[GroupAccounting, ...]


class DeadLetter(Contract):
    """An entry that a group gave up, with the reason; `fields` are the entry's own, as texts."""

    id: str
    entry_id: str
    group: str
    reason: str
    prediction_id: str | None
    symbol: str | None
    model_id: str | None
    at: UtcDatetime
    fields: dict[str, str]


class DeadLetterList(Contract):
    """`GET /queue/dead-letters`, oldest first."""

    dead_letters: tuple[DeadLetter, ...]
    next_cursor: str | None = None


class Requeued(Contract):
    """A dead letter that is back in the stream, for the group that gave it up."""

    id: str
    group: str
    entry_id: str


class LeaseSource(Protocol):
    """What leader election asks of the queue."""

    def acquire(
        self, group: str, owner: str, *, known_term: int = 0, instead_of: LeaseHolder | None = None
    ) -> Lease | LeaseHolder:
        """The lease, where nobody holds it or the holder is still as the caller saw it; else who holds it."""
        ...


class DeploymentNotice(Contract):
    """An entry of the `deployments` stream: a version went live, failed to, or was undeployed."""

    deployment_id: str
    model_id: str
    version: str
    status: str
    deployment_target: str
    at: UtcDatetime

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentNotice":
        """What has just become of a deployment."""
        return cls(
            deployment_id=deployment.id,
            model_id=deployment.model_id,
            version=deployment.version,
            status=deployment.status,
            deployment_target=deployment.deployment_target,
            at=utc_now(),
        )
