"""Queue log: what is said in `queue_processing.log` of each entry, and how an entry becomes a `Delivery`.

A line for each record at once cost as much as encoding the record; so lines come ten times a second.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import ValidationError

from common_lib.logging import QUEUE_LOGGER, log_events
from ml_workbench_service.contracts.entries import unflatten
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.contracts.queue import Delivery, Outgoing

queue_log = logging.getLogger(QUEUE_LOGGER)

LATE_S = 0.1
MAX_LATE_LINES = 256
REFUSED = b"!"
_WORDS = {b"": "duplicate", REFUSED: "refused"}
Entry = tuple[bytes, list[bytes], int]
"""Id, names and values alternating, how often it was delivered."""


def deliveries_of(group: str, entries: Sequence[Entry], *, redelivered: bool) -> list[Delivery]:
    """The entries as deliveries, each logged with how long it waited."""
    deliveries = [
        delivery_of(entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True)), times)
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


def delivery_of(entry_id: str, fields: Mapping[bytes, bytes], times: int) -> Delivery:
    """The entry as it is handed to a consumer; with the fault where its fields are no record."""
    correlation_id = fields.get(b"correlation_id", b"").decode("utf-8", "replace")
    traceparent = fields.get(b"traceparent", b"").decode("ascii", "replace")
    try:
        record = unflatten(PredictionRecord, fields)
        enqueued_at = datetime.fromisoformat(fields[b"enqueued_at"].decode())
    except (KeyError, ValidationError, ValueError) as error:
        fault = (
            f"the entry is no prediction record ({type(error).__name__}: {error})" if fields else "the entry is gone"
        )
        return Delivery(entry_id, None, None, correlation_id, fault, times)
    return Delivery(entry_id, record, enqueued_at, correlation_id, num_deliveries=times, traceparent=traceparent)


class Answered(NamedTuple):
    """What the queue said of a batch."""

    at_s: float  # seconds since the epoch
    batch: Sequence[Outgoing]
    ids: Sequence[bytes]
    evicted: Sequence[bytes]  # entry id and prediction id, alternating


def log_enqueued(answers: Sequence[Answered]) -> None:
    """A line for each record that entered, was known or was refused, and for each entry that gave way."""
    if not queue_log.isEnabledFor(logging.INFO):
        return
    times_s: list[float] = []
    events: list[tuple[Any, ...]] = []
    for at_s, batch, ids, _ in answers:
        times_s += [at_s] * len(ids)
        events += [
            (
                _WORDS.get(entry_id, "enqueue"),
                item.record.prediction_id,
                None if entry_id in _WORDS else entry_id.decode(),
                round((at_s - item.offered_at) * 1000, 3),
                item.correlation_id,
            )
            for item, entry_id in zip(batch, ids, strict=False)
        ]
    entered = ("prediction_id", "entry_id", "latency_ms", "correlation_id")
    log_events(queue_log, logging.INFO, entered, events, times_s=times_s)
    dropped = [
        (at_s, ("drop_oldest", entry_id.decode(), prediction_id.decode()))
        for at_s, _, _, evicted in answers
        for entry_id, prediction_id in zip(evicted[::2], evicted[1::2], strict=True)
    ]
    gone, moments = [event for _, event in dropped], [at_s for at_s, _ in dropped]
    log_events(queue_log, logging.WARNING, ("entry_id", "prediction_id"), gone, times_s=moments)


class LateQueueLog:
    """The same lines a tenth of a second later: many batches' in one write, apart from the requests they belong to.

    A process that is killed takes the last of them along; the stream has the entries themselves.
    """

    def __init__(self) -> None:
        self._answers: list[Answered] = []
        self._num = 0
        self._timer: asyncio.TimerHandle | None = None

    def note(self, answer: Answered) -> None:
        """Keeps the lines of a batch for a moment; call it in the event loop."""
        self._answers.append(answer)
        self._num += len(answer.batch)
        if self._num >= MAX_LATE_LINES:
            self.write()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATE_S, self.write)

    def write(self) -> None:
        """Writes what is kept."""
        if self._timer is not None:
            self._timer.cancel()
        answers, self._answers, self._num, self._timer = self._answers, [], 0, None
        log_enqueued(answers)
