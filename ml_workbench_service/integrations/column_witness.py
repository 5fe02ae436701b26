"""Point-in-time evidence of ready-made columns: a hash of each value and the moment when it was first seen.

    <STATE_DIR>/witnesses.db
        watched       one row a column of a symbol's bars
        sightings     one row a bar of it: hash of the value, moment of the first look

Whoever reads a user's columns leaves their newest values here: trainings, predictions, and the service's own looks
while files grow. A value that was seen before its label began, and is still the same, did not know the label
(`evaluation/leakage/proof.py`).

Laws: rows are never changed or removed (triggers refuse), and the first sighting of a bar holds. Only the newest
`KEPT_BARS` of a series are noted at a time: older ones are seen too late to witness anything, and those few are what
the windows of the next bars read. Observing never fails a read: what cannot be written is said once, and proves
nothing later.

When it fails: whoever may write to STATE_DIR can forge it. It protects from mistakes, not from their owner.
"""

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from common_lib.exceptions import PlatformError
from common_lib.sqlite_store import Schema, SqliteStore, Table, transaction
from ml_workbench_service.contracts.market import NEVER_MS, Floats, Ints

KEPT_BARS = 1_000
"""Newest bars of a first look: the longest windows and expressions reach back some hundreds."""
BUSY_TIMEOUT_S = 5.0

WATCHED = Table(
    "watched",
    {
        "number": "INTEGER PRIMARY KEY",
        "symbol": "TEXT NOT NULL",
        "timeframe": "TEXT NOT NULL",
        "column_name": "TEXT NOT NULL",
    },
    constraints=("UNIQUE (symbol, timeframe, column_name)",),
)
SIGHTINGS = Table(
    "sightings",
    {
        "watched": "INTEGER NOT NULL REFERENCES watched (number)",
        "opened_ms": "INTEGER NOT NULL",
        "value_hash": "INTEGER NOT NULL",
        "seen_ms": "INTEGER NOT NULL",
    },
    constraints=("PRIMARY KEY (watched, opened_ms)",),
    options="WITHOUT ROWID",
)
_GUARDS = tuple(
    f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'what was seen is never changed'); END"
    for table in ("watched", "sightings")
    for verb in ("UPDATE", "DELETE")
)
SCHEMA = Schema("column witness", (WATCHED, SIGHTINGS), extras=_GUARDS)
_INSERT_WATCHED = WATCHED.insert(without=("number",), verb="INSERT OR IGNORE")
_NUMBER = "SELECT number FROM watched WHERE symbol = ? AND timeframe = ? AND column_name = ?"
_SIGHTINGS = "SELECT opened_ms, value_hash, seen_ms FROM sightings WHERE watched = ? AND opened_ms BETWEEN ? AND ?"
_INSERT = SIGHTINGS.insert(verb="INSERT OR IGNORE").statement

Series = tuple[str, str]
"""Symbol and timeframe."""

log = logging.getLogger(__name__)


class SqliteColumnWitness:
    """A `ColumnWitness` in one SQLite file; its methods may be called from any thread and process.

    Args:
        path: of the database file, `STATE_DIR/witnesses.db`; made with the first sighting.
    """

    def __init__(self, path: Path) -> None:
        # Synced at checkpoints alone: a power cut may take the last sightings, which then prove nothing.
        self._store = SqliteStore(path, SCHEMA, timeout_s=BUSY_TIMEOUT_S, synchronous="NORMAL")
        self._newest_ms: dict[tuple[Series, str], int] = {}
        self._lock = threading.Lock()
        self._fails = False

    def observe(self, series: Series, *, opened_ms: Ints, columns: Mapping[str, Floats], now_ms: int) -> None:
        """See `contracts.market.ColumnWitness`."""
        if not len(opened_ms):
            return
        with self._lock:
            newest_ms = int(opened_ms[-1])
            new = [name for name in columns if newest_ms > self._newest_ms.get((series, name), -1)]
            if not new:
                return
            try:
                self._note(series, opened_ms[-KEPT_BARS:], {name: columns[name][-KEPT_BARS:] for name in new}, now_ms)
            except (sqlite3.Error, OSError, PlatformError) as error:
                if not self._fails:
                    reason = error.message if isinstance(error, PlatformError) else self._store.fault(error)
                    log.warning("own columns are not witnessed: %s; reading goes on", reason)
                self._fails = True
                return
            self._newest_ms |= {(series, name): newest_ms for name in new}
            self._fails = False

    def seen_ms(self, series: Series, column: str, *, opened_ms: Ints, values_N: Floats) -> Ints:
        """See `contracts.market.ColumnWitness`; raises UnavailableError where the file cannot be read."""
        seen_N = np.full(len(opened_ms), NEVER_MS, dtype=np.int64)
        with self._store.translated():
            if not self._store.path.exists() or not len(opened_ms):
                return seen_N
            with closing(self._store.connect()) as connection:
                found = connection.execute(_NUMBER, (*series, column)).fetchone()
                if found is None:
                    return seen_N
                rows = connection.execute(_SIGHTINGS, (*found, int(opened_ms.min()), int(opened_ms.max())))
                sightings = {opened: (value_hash, seen) for opened, value_hash, seen in rows}
        for place, (opened, value_hash) in enumerate(zip(opened_ms.tolist(), _hashes(values_N), strict=True)):
            noted = sightings.get(opened)
            if noted is not None and noted[0] == value_hash:
                seen_N[place] = noted[1]
        return seen_N

    def watched(self) -> dict[Series, tuple[str, ...]]:
        """Columns that were ever seen, by series; raises UnavailableError where the file cannot be read."""
        found: dict[Series, tuple[str, ...]] = {}
        with self._store.translated():
            if not self._store.path.exists():
                return found
            with closing(self._store.connect()) as connection:
                query = "SELECT symbol, timeframe, column_name FROM watched ORDER BY number"
                for symbol, timeframe, column in connection.execute(query):
                    found[symbol, timeframe] = (*found.get((symbol, timeframe), ()), column)
        return found

    def _note(self, series: Series, opened_ms: Ints, columns: Mapping[str, Floats], now_ms: int) -> None:
        self._store.create()
        symbol, timeframe = series
        with closing(self._store.connect()) as connection, transaction(connection):
            for name, values_N in columns.items():
                row = {"symbol": symbol, "timeframe": timeframe, "column_name": name}
                _INSERT_WATCHED(connection, row)
                (number,) = connection.execute(_NUMBER, (symbol, timeframe, name)).fetchone()
                last_ms = self._newest_ms.get((series, name), -1)
                new_N = opened_ms > last_ms
                hashes = _hashes(values_N[new_N])
                pairs = zip(opened_ms[new_N].tolist(), hashes, strict=True)
                connection.executemany(_INSERT, [(number, opened, value_hash, now_ms) for opened, value_hash in pairs])


def _hashes(values_N: Floats) -> list[int]:
    """A signed 64-bit hash of each value; missing is missing, however it is written, and zero has no sign."""
    whole_N = np.where(np.isnan(values_N), np.nan, values_N + 0.0).astype("<f8")
    return [
        int.from_bytes(hashlib.blake2b(value.tobytes(), digest_size=8).digest(), "little", signed=True)
        for value in whole_N
    ]
