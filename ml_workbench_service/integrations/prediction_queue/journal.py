"""What the queue says in `queue_processing.log` of each entry, and how an entry becomes a `Delivery`."""

import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from common_lib.logging import QUEUE_LOGGER, log_events
from ml_workbench_service.contracts.entries import unflatten
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import Delivery, Outgoing

queue_log = logging.getLogger(QUEUE_LOGGER)

REFUSED = b"!"
_WORDS = {b"": "duplicate", REFUSED: "refused"}
Entry = tuple[bytes, list[bytes], int]
"""Id, names and values alternating, how often it was delivered."""


def deliveries_of(group: str, entries: Sequence[Entry], *, redelivered: bool) -> list[Delivery]:
    """The entries as deliveries, each logged with how long it waited."""
    deliveries = [
        _delivery(entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True)), times)
        for entry_id, flat, times in entries
    ]
    if queue_log.isEnabledFor(logging.INFO):
        now = datetime.now(tz=UTC)
        names = ("group", "prediction_id", "entry_id", "latency_ms", "redelivered", "correlation_id")
        events = [
            (
                "dequeue",
                group,
                None if delivery.record is None else delivery.record.prediction_id,
                delivery.entry_id,
                None if delivery.enqueued_at is None else round((now - delivery.enqueued_at).total_seconds() * 1000, 3),
                redelivered,
                delivery.correlation_id,
            )
            for delivery in deliveries
        ]
        log_events(queue_log, logging.INFO, names, events)
    return deliveries


def _delivery(entry_id: str, fields: dict[bytes, bytes], times: int) -> Delivery:
    correlation_id = fields.get(b"correlation_id", b"").decode("utf-8", "replace")
    try:
        record = unflatten(PredictionRecord, fields)
        enqueued_at = datetime.fromisoformat(fields[b"enqueued_at"].decode())
    except (KeyError, ValidationError, ValueError) as error:
        fault = (
            f"the entry is no prediction record ({type(error).__name__}: {error})" if fields else "the entry is gone"
        )
        return Delivery(entry_id, None, None, correlation_id, fault, times)
    return Delivery(entry_id, record, enqueued_at, correlation_id, num_deliveries=times)


def log_enqueued(batch: Sequence[Outgoing], ids: Sequence[bytes], evicted: Sequence[bytes]) -> None:
    """A line for each record that entered, was known or was refused, and for each entry that gave way."""
    if not queue_log.isEnabledFor(logging.INFO):
        return
    now = time.time()
    events = [
        (
            _WORDS.get(entry_id, "enqueue"),
            item.record.prediction_id,
            None if entry_id in _WORDS else entry_id.decode(),
            round((now - item.offered_at) * 1000, 3),
            item.correlation_id,
        )
        for item, entry_id in zip(batch, ids, strict=False)
    ]
    log_events(queue_log, logging.INFO, ("prediction_id", "entry_id", "latency_ms", "correlation_id"), events)
    dropped = [
        ("drop_oldest", entry_id.decode(), prediction_id.decode())
        for entry_id, prediction_id in zip(evicted[::2], evicted[1::2], strict=True)
    ]
    log_events(queue_log, logging.WARNING, ("entry_id", "prediction_id"), dropped)
