"""Prediction ledger, writing: batches of rows and outcomes go in, the oldest rows out; the number of each state.

Its connection belongs to one thread; the counts may be read and changed from any.
"""

import logging
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from common_lib.sqlite_store import SqliteStore, transaction
from ml_workbench_service.integrations.prediction_ledger import rows
from ml_workbench_service.integrations.prediction_ledger.rows import SeriesKey, Waiting

EVICTED_AT_ONCE = 1000
KNOW = (
    "UPDATE predictions SET state = ?, realised = ?, known_ms = ?, source = ?, reason = ?, settle_ms = NULL "
    "WHERE prediction_id = ? AND state = 0"
)
"""An outcome of a row that is still open; nothing overwrites one that is known."""

NewRow = tuple[SeriesKey, dict[str, Any]]
Changes = Mapping[int, int]

log = logging.getLogger(__name__)


class LedgerWriter:
    """Writes one ledger.

    Args:
        store: its file, made with the first row.
        max_rows: most rows that are kept.
    """

    def __init__(self, store: SqliteStore, *, max_rows: int) -> None:
        self._store = store
        self._path = store.path
        self._max_rows = max_rows
        self._connection: sqlite3.Connection | None = None
        self._series: dict[SeriesKey, int] = {}
        self._counts = [0] * len(rows.STATES)
        self._counted: tuple[int, int] | None = None
        self._counting = threading.Lock()

    def counts(self) -> dict[str, int]:
        """Rows by the state of their outcome."""
        with self._counting:
            return dict(zip(rows.STATES, self._counts, strict=True))

    def count(self, *changes: Changes) -> None:
        """What somebody has just written."""
        with self._counting:
            for each in changes:
                for state, change in each.items():
                    self._counts[state] += change

    def newest_waiting(self, most: int) -> list[Waiting]:
        """Rows that a price may still tell of, oldest first; counts the rows. Raises sqlite3.Error and OSError."""
        if not self._path.exists():
            return []
        query = f"{rows.WAITING} AND p.sample != '{rows.HISTORICAL}' ORDER BY p.number DESC LIMIT ?"
        return [Waiting(*row) for row in reversed(self._connected().execute(query, (most,)).fetchall())]

    def write(self, new: Sequence[NewRow], outcomes: Sequence[tuple[Any, ...]]) -> None:
        """One transaction: new rows, outcomes, and the oldest rows out; raises sqlite3.Error and OSError."""
        connection = self._connected()
        changes: list[Changes] = []
        with transaction(connection):
            for key, values in new:
                if key not in self._series:
                    self._series[key] = rows.series_id(connection, key)
                values["series"] = self._series[key]
                if rows.INSERT(connection, values).rowcount:
                    changes.append({values["state"]: 1})
            for outcome in outcomes:
                if connection.execute(KNOW, outcome).rowcount:
                    changes.append({rows.OPEN: -1, outcome[0]: 1})
            num_rows = sum(self._counts) + sum(sum(each.values()) for each in changes)
            changes.append(self._evict(connection, num_rows))
        self.count(*changes)

    def disconnect(self) -> None:
        """Gives the connection back; the next batch opens the file again."""
        self._series.clear()
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        """A connection to the file that is there now."""
        if self._connection is not None and not self._path.exists():
            log.warning("%s is gone; the prediction ledger begins anew", self._path.name)
            self.disconnect()
        if self._connection is None:
            if not self._path.exists():
                for rest in ("-wal", "-shm"):  # of a file that was moved away: not the new one's
                    self._path.with_name(self._path.name + rest).unlink(missing_ok=True)
            self._store.create()
            self._connection = self._store.connect()
            self._count_once(self._connection)
        return self._connection

    def _count_once(self, connection: sqlite3.Connection) -> None:
        """The rows of a file that this process has not counted yet; from then on it counts what it changes."""
        stat = self._path.stat()
        if self._counted != (stat.st_dev, stat.st_ino):
            counts: dict[int, int] = dict(connection.execute("SELECT state, count(*) FROM predictions GROUP BY state"))
            with self._counting:
                self._counts = [counts.get(state, 0) for state in range(len(rows.STATES))]
            self._counted = (stat.st_dev, stat.st_ino)

    def _evict(self, connection: sqlite3.Connection, num_rows: int) -> Changes:
        """The oldest rows leave, some at once, where there are more than may be; how many of each state."""
        excess = num_rows - self._max_rows
        if excess <= 0:
            return {}
        leaving = excess + min(EVICTED_AT_ONCE, self._max_rows // 100)
        oldest = "number IN (SELECT number FROM predictions ORDER BY number LIMIT ?)"
        query = f"SELECT state, count(*) FROM predictions WHERE {oldest} GROUP BY state"
        found = connection.execute(query, (leaving,)).fetchall()
        connection.execute(f"DELETE FROM predictions WHERE {oldest}", (leaving,))
        connection.execute("DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM predictions WHERE series = series.id)")
        self._series.clear()
        return {state: -num for state, num in found}
