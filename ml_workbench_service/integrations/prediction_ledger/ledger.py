"""Prediction ledger: every sampled answer of a live version, and what came true of it, in one bounded SQLite file.

    record(…) ─► queue (bounded) ─► one thread: series of prices, outcomes ─► one transaction a batch ─► predictions.db

Laws: `record` costs the predict path microseconds and never fails it. What cannot be written (a full disk, a locked
file) waits in memory, is tried again with pauses, and is counted once it had to be dropped (`num_unwritten`). The
oldest rows leave when `max_rows` are reached. A process that is killed loses the batch it was about to write, some
tenth of a second. An outcome is known once: nothing overwrites it.
"""

import logging
import math
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common_lib.exceptions import OutcomeConflictError, PlatformError
from common_lib.sqlite_store import transaction
from ml_workbench_service.contracts.market import Bools
from ml_workbench_service.contracts.outcomes import Answered, Making, OutcomeSource, RecordedPrediction
from ml_workbench_service.contracts.runs.records import RecordRun
from ml_workbench_service.integrations.prediction_ledger import rows
from ml_workbench_service.integrations.prediction_ledger.reader import BUSY_TIMEOUT_S, LedgerReader, one, unknown
from ml_workbench_service.integrations.prediction_ledger.writer import KNOW, LedgerWriter, NewRow
from ml_workbench_service.market.outcomes.pending import Found, PendingOutcomes

MAX_ROWS = 1_000_000
QUEUE_CAPACITY = 10_000
"""Answers in memory, before and after the series, while the disk is slow or away."""
GATHER_S = 0.1
"""How long the first answer of a batch waits for company."""
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 15.0
MOST_RECALLED = 20_000
"""Rows that wait for a price again after a start; older ones are left to the feature store."""
SAME_VALUE = 1e-9
"""Two reports of one outcome may differ by their rounding, relative to the value."""
_NEVER_WRITTEN = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""No disk's fault: trying again would change nothing."""

log = logging.getLogger(__name__)


class PredictionLedger(LedgerReader):
    """The ledger of one service; every method may be called from any thread.

    Args:
        path: of the database, `STATE_DIR/predictions.db`; made with the first row.
        max_rows: most rows that are kept.
        capacity: answers kept in memory while the disk is away.
        timeout_s: how long another process may keep the file locked.
    """

    def __init__(
        self, path: Path, *, max_rows: int = MAX_ROWS, capacity: int = QUEUE_CAPACITY, timeout_s: float = BUSY_TIMEOUT_S
    ) -> None:
        super().__init__(path, timeout_s=timeout_s)
        self._capacity = capacity
        self._writer = LedgerWriter(self._store, max_rows=max_rows)
        self._queue: deque[_Left | threading.Event] = deque()
        self._num_left = 0  # answers in the queue
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._counting = threading.Lock()
        self._num_unwritten = 0
        self._num_failures = 0
        self._series_by_key = PendingOutcomes()
        self._rows: list[NewRow] = []
        self._outcomes: list[tuple[Any, ...]] = []
        self.feed: Callable[[], object] | None = None
        """Brings what other processes have handed over; None: there are none."""

    def start(self) -> None:
        """Starts the thread that writes."""
        self._thread = threading.Thread(target=self._run, name="prediction-ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes what waits, once, and ends the thread."""
        self._stopping = True
        self._hurry.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def record(self, answered: Answered, making: Making, *, is_sampled: bool) -> None:
        """See `contracts.ledger.Ledger`."""
        if is_sampled or answered.record.price is not None:
            self._leave(_Left(answered, making, 1, is_sampled))

    def record_run(self, run: RecordRun, making: Making, *, is_sampled_N: Bools) -> None:
        """See `contracts.ledger.Ledger`."""
        self._leave(_Left(run, making, len(run), is_sampled_N))

    def _leave(self, left: "_Left") -> None:
        if self._num_left >= self._capacity:
            self._num_unwritten += left.num_sampled
            return
        with self._counting:
            self._num_left += left.num
        self._queue.append(left)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Waits until what was recorded so far, by predict workers too, has been written, or was tried to; whether that
        was in time.
        """
        if self.feed is not None:
            self.feed()
        return self.write_out(timeout_s)

    def write_out(self, timeout_s: float = 2.0) -> bool:
        """The same for what this process has recorded."""
        if self._thread is None:
            return False
        done = threading.Event()
        self._queue.append(done)
        self._hurry.set()
        self._wake.set()
        return done.wait(timeout_s)

    @property
    def num_waiting(self) -> int:
        """Answers, and outcomes, that are in memory alone."""
        return self._num_left + len(self._rows) + len(self._outcomes)

    @property
    def num_unwritten(self) -> int:
        """Sampled answers that were lost since the start: there was no room in memory while the disk was away."""
        return self._num_unwritten

    def num_by_state(self) -> dict[str, int]:
        """Rows by the state of their outcome."""
        return self._writer.counts()

    def tell(self, prediction_id: str, realised: float, *, at_ms: int) -> tuple[RecordedPrediction, bool]:
        """What came true, from a caller; the row, and whether that was news. The same value again is none.

        Raises:
            PredictionNotFoundError: there is no such row.
            OutcomeConflictError: another outcome is known, or there can be none.
            UnavailableError: the file cannot be written.
        """
        if not self.path.exists():
            raise unknown()
        with self._writing() as connection:
            row = one(connection, prediction_id)
            if row is None:
                raise unknown()
            if row.outcome.state == "known":
                _check_same(row, realised)
                return row, False
            if row.outcome.state == "none":
                raise OutcomeConflictError(
                    "this prediction foretells nothing that could come true: it abstained, or its model has no target; "
                    "report outcomes of others"
                )
            connection.execute(
                "UPDATE predictions SET state = 1, realised = ?, known_ms = ?, source = 'caller', reason = NULL, "
                "settle_ms = NULL WHERE prediction_id = ?",
                (realised, at_ms, prediction_id),
            )
            told = one(connection, prediction_id)
        assert told is not None
        self._writer.count({rows.STATES.index(row.outcome.state): -1}, {rows.KNOWN: 1})
        return told, True

    def resolve(self, found: Iterable[Found], *, reasons: Mapping[str, str]) -> set[str]:
        """Outcomes from the feature store; the ids of those that were open until now.

        Args:
            reasons: by id, why there will be no outcome.

        Raises:
            UnavailableError: the file cannot be written.
        """
        resolved: dict[str, int] = {}
        with self._writing() as connection:
            for each in found:
                values = _outcome(each, "feature_store", reasons.get(each.prediction_id))
                if connection.execute(KNOW, values).rowcount:
                    resolved[each.prediction_id] = values[0]
        self._writer.count(*({rows.OPEN: -1, state: 1} for state in resolved.values()))
        return set(resolved)

    def postpone(self, until_ms: Mapping[str, int]) -> None:
        """Has these rows overdue again at their moment; raises UnavailableError."""
        with self._writing() as connection:
            connection.executemany(
                "UPDATE predictions SET settle_ms = ?, num_tries = num_tries + 1 WHERE prediction_id = ? AND state = 0",
                [(moment_ms, prediction_id) for prediction_id, moment_ms in until_ms.items()],
            )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; raises UnavailableError where the file cannot be written."""
        with self._store.translated(), closing(self._store.connect()) as connection, transaction(connection):
            yield connection

    def _run(self) -> None:
        self._attempt(self._recall)
        while not self._stopping:
            self._wake.wait(self._pause_s())
            self._wake.clear()
            self._hurry.wait(GATHER_S)
            self._hurry.clear()
            self._turn()
        self._turn()
        if self._rows:
            log.warning("%d predictions never reached the ledger", len(self._rows))
        self._writer.disconnect()

    def _recall(self) -> None:
        for each in self._writer.newest_waiting(MOST_RECALLED):
            self._series_by_key.recall(each.asked())

    def _turn(self) -> None:
        """One batch."""
        markers = self._take()
        if self._rows or self._outcomes:
            self._attempt(self._write)
        for marker in markers:
            marker.set()

    def _pause_s(self) -> float | None:
        """Until somebody records; while something could not be written, until it is tried again."""
        if self._stopping or self._queue:
            return 0.0
        if not self._rows and not self._outcomes:
            return None
        return float(min(FIRST_RETRY_S * 2 ** min(self._num_failures, 16), LAST_RETRY_S))

    def _take(self) -> list[threading.Event]:
        """Everything in the queue goes through the series, in order; who waits for it to be written."""
        markers: list[threading.Event] = []
        for _ in range(len(self._queue)):
            item = self._queue.popleft()
            if isinstance(item, threading.Event):
                markers.append(item)
                continue
            try:
                for each in item.entries(self._series_by_key):
                    self._enter(each)
            except Exception:  # what cannot be kept must not end the keeping of all others
                log.exception("%d predictions were not entered into the ledger", item.num)
                self._num_unwritten += item.num_sampled
            with self._counting:
                self._num_left -= item.num
        if (excess := len(self._rows) - self._capacity) > 0:
            del self._rows[:excess]
            self._num_unwritten += excess
        del self._outcomes[: -2 * self._capacity]  # these are resolved from the feature store
        return markers

    def _enter(self, entry: rows.Entry) -> None:
        is_past = entry.is_past  # its price would make late what is asked about the present
        found = [] if is_past else self._series_by_key.take(entry.asked, now_ms=entry.answered_ms)
        if entry.row is not None:
            self._rows.append(entry.row)
        self._outcomes.extend(_outcome(each, "stream", each.missing) for each in found)

    def _write(self) -> None:
        try:
            self._writer.write(self._rows, self._outcomes)
        except _NEVER_WRITTEN:
            log.exception("%d predictions are no rows of the ledger and are left out", len(self._rows))
            self._num_unwritten += len(self._rows)
        self._rows, self._outcomes = [], []

    def _attempt(self, work: Callable[[], None]) -> None:
        """Does it, or says once that it failed and keeps everything for the next time."""
        try:
            work()
        except (sqlite3.Error, OSError, PlatformError) as error:
            self._writer.disconnect()
            if not self._num_failures:
                reason = error.message if isinstance(error, PlatformError) else self._store.fault(error)
                log.error("the prediction ledger is not written: %s; predictions go on", reason)
            self._num_failures += 1
            return
        if self._num_failures:
            log.info("the prediction ledger is written again")
        self._num_failures = 0


class _Left(NamedTuple):
    """What serving left: one answer, or a run's.

    Attributes:
        num: answers.
        is_sampled: whether a level's sample has it; of a run each.
    """

    what: Answered | RecordRun
    making: Making
    num: int
    is_sampled: bool | Bools

    @property
    def num_sampled(self) -> int:
        """Those that become rows."""
        return int(np.sum(self.is_sampled))

    def entries(self, pending: PendingOutcomes) -> Iterator[rows.Entry]:
        """Each that says something: that becomes a row, or brings the price of a bar not seen before."""
        if isinstance(self.what, Answered):
            yield rows.entry_of(self.what, self.making, is_sampled=bool(self.is_sampled))
        else:
            yield from rows.entries_of(self.what, self.making, np.asarray(self.is_sampled), is_new=pending.is_new)


def _outcome(found: Found, source: OutcomeSource, reason: str | None) -> tuple[Any, ...]:
    """The values of `KNOW`."""
    if found.realised is None:
        return rows.UNAVAILABLE, None, found.at_ms, None, reason, found.prediction_id
    return rows.KNOWN, found.realised, found.at_ms, source, None, found.prediction_id


def _check_same(row: RecordedPrediction, realised: float) -> None:
    """Raises OutcomeConflictError where another value is known."""
    known = row.outcome.realised
    assert known is not None
    if not math.isclose(known, realised, rel_tol=SAME_VALUE, abs_tol=1e-15):
        raise OutcomeConflictError(
            f"another outcome of this prediction is known (source {row.outcome.source}, {known!r}); it is known "
            "once, so this one was not taken"
        )
