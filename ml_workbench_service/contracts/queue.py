"""The prediction queue's promises: `PredictionQueue`, `Delivery` and the books that must balance.

Stream `ml_workbench:predictions`; an entry has the PredictionRecord's keys as fields (contracts.entries), and
`correlation_id` and `enqueued_at` (ISO 8601). Decisions go to `ml_workbench:decisions`, deployments to
`ml_workbench:deployments`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from ml_workbench_service.contracts.contract import Contract, UtcDatetime
from ml_workbench_service.contracts.prediction import PredictionRecord

KEY_PREFIX = "ml_workbench:"
PREDICTIONS_STREAM = KEY_PREFIX + "predictions"
DECISIONS_STREAM = KEY_PREFIX + "decisions"
DEPLOYMENTS_STREAM = KEY_PREFIX + "deployments"
DEAD_LETTERS_STREAM = PREDICTIONS_STREAM + ":dead"

QueuePolicy = Literal["drop_oldest"]


@dataclass(frozen=True)
class Delivery:
    """One stream entry in the hands of a consumer."""

    entry_id: str  # Redis stream id, `milliseconds-sequence`
    record: PredictionRecord | None  # None: the entry could not be read (`fault` says why)
    enqueued_at: datetime | None
    correlation_id: str
    fault: str = ""


@dataclass(frozen=True)
class Outgoing:
    """One record on its way into the stream."""

    record: PredictionRecord
    correlation_id: str
    offered_at: float  # seconds since the epoch, when /predict handed it over


class GroupBooks(Contract):
    """One consumer group's books: enqueued = acked + pending + undelivered + dropped + expired + dead + balance."""

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


class QueueBooks(Contract):
    """`GET /queue`: the stream, the publisher's outbox, every group, and the default agent's figures on top."""

    length: int
    capacity: int
    policy: QueuePolicy
    outbox: int
    outbox_dropped: int
    oldest_age_s: float | None
    groups: tuple[GroupBooks, ...]
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


class PredictionQueue(Protocol):
    """What producers and consumers of predictions rely on; blocking calls, one connection for each purpose."""

    def publish(self, records: Sequence[PredictionRecord], *, drop_oldest: bool = True) -> int:
        """Appends records in order; returns how many were taken.

        With `drop_oldest` all are taken and the oldest entries beyond the capacity are evicted, settled for every
        group and counted. Without it only as many as there is room for are taken. A `prediction_id` seen within the
        dedupe window counts as taken and as a duplicate, and adds no entry.
        """
        ...

    def consume(self, group: str, consumer: str, *, count: int = 64, block_ms: int = 1000) -> list[Delivery]:
        """The next deliveries: the consumer's own pending entries first, then new ones; empty after `block_ms`."""
        ...

    def ack(self, group: str, entry_ids: Sequence[str]) -> int:
        """Settles entries for the group; deletes those no group needs any more. Acknowledging twice counts once."""
        ...

    def dead_letter(self, group: str, delivery: Delivery, reason: str) -> None:
        """Moves one entry to the dead letters with the reason, settled and counted for the group."""
        ...

    def create_group(self, group: str) -> None:
        """Makes the group where it is missing; its `enqueued` starts from the stream's present length."""
        ...

    def books(self) -> tuple[int, float | None, list[GroupBooks]]:
        """Length, age of the oldest entry in seconds, and every group's books, read in one step."""
        ...


class DeploymentNotice(Contract):
    """An entry of the `deployments` stream."""

    deployment_id: str
    model_id: str
    version: str
    status: str
    deployment_target: str
    at: UtcDatetime
