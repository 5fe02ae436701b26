"""`SqliteMultipleTestingLog`: both counters in one file that only grows: a reading is on disk before anybody learns its
number.

    <STATE_DIR>/ledgers.db
        readings (kind, id, subject, start_ms, end_ms, at, model_id, sharpe, daily)   one row a reading
        reading_symbols (symbol, number)                                              the symbols of each

Laws: rows are never changed or removed (triggers refuse), and the first one of a kind and id holds. Several processes
may write at once. A commit is synced; a process that is killed loses only what it was writing. The file appears whole
(written aside, then renamed), so an empty or foreign one at its place is a fault, not a beginning. What cannot be read
is an error and never a smaller count. Not for network file systems: write-ahead logging needs shared memory.
"""

import errno
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from common_lib.exceptions import DataValidationError, UnavailableError
from ml_workbench_service.contracts.contract import iso
from ml_workbench_service.contracts.multiple_testing import PartRead, Trial

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 15.0
MOST_DAYS = 1_000_000
"""Daily returns that one answer carries, some 100 MB: the newest trials'; older trials come without theirs."""

_SCHEMA = """
CREATE TABLE readings (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('look', 'trial')),
    id TEXT NOT NULL,
    subject TEXT NOT NULL,
    start_ms INTEGER NOT NULL,
    end_ms INTEGER NOT NULL CHECK (end_ms > start_ms),
    at TEXT NOT NULL,
    model_id TEXT NOT NULL,
    sharpe REAL,
    daily BLOB,
    UNIQUE (kind, id)
);
CREATE INDEX readings_by_subject ON readings (kind, subject, start_ms, end_ms);
CREATE TABLE reading_symbols (
    symbol TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES readings (number),
    PRIMARY KEY (symbol, number)
) WITHOUT ROWID;
"""
# Without the last trigger INSERT OR REPLACE would take an old row away unseen: it fires no DELETE trigger by default.
_GUARDS = "".join(
    f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'the ledgers are append-only'); END;\n"
    for table in ("readings", "reading_symbols")
    for verb in ("UPDATE", "DELETE")
) + (
    "CREATE TRIGGER readings_first BEFORE INSERT ON readings WHEN EXISTS (SELECT 1 FROM readings WHERE "
    "(kind = NEW.kind AND id = NEW.id) OR number = NEW.number) BEGIN SELECT RAISE(IGNORE); END;\n"
)
_INSERT = (
    "INSERT OR IGNORE INTO readings (kind, id, subject, start_ms, end_ms, at, model_id, sharpe, daily) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_SYMBOL = "INSERT INTO reading_symbols (symbol, number) SELECT ?, number FROM readings WHERE kind = ? AND id = ?"
_OVERLAPPING = (
    "FROM readings AS r WHERE r.kind = ? AND r.subject = ? AND r.start_ms < ? AND r.end_ms > ? AND EXISTS ("
    "SELECT 1 FROM reading_symbols AS s WHERE s.number = r.number AND s.symbol IN (SELECT value FROM json_each(?)))"
)

_NOT_REACHED = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_PERM", "SQLITE_AUTH")

_Kind = Literal["look", "trial"]


class SqliteMultipleTestingLog:
    """The ledgers of one state folder (see `contracts.multiple_testing.MultipleTestingLog`); safe for threads and
    processes.

    Nothing is opened or created before it is needed; a file that is not there counts nothing.

    Args:
        path: of the database file, `STATE_DIR/ledgers.db`; its folder is made with the first row.

    Every method raises `UnavailableError` where the file cannot be read or written just now: full disk, damaged file,
    another process that holds it for too long, a newer version's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked: tuple[int, int] | None = None
        self._checking = threading.Lock()

    def record_evaluation(self, read: PartRead) -> int:
        """Notes a look before it happens; how many there are at parts that share time, a symbol and the subject.

        Raises:
            DataValidationError: the part has no symbols, or its end is not after its start.
        """
        return self._write("look", read, sharpe=None, daily=None)

    def num_evaluations(self, read: PartRead) -> int:
        """The same without noting anything; raises like `record_evaluation`."""
        return self._count("look", read)

    def try_(self, trial: Trial) -> None:
        """Notes a trial, once for each id, replacing nothing; raises like `record_evaluation`."""
        daily = (
            zlib.compress(json.dumps(trial.daily_returns, allow_nan=False).encode()) if trial.daily_returns else None
        )
        self._write("trial", trial.read, sharpe=trial.sharpe, daily=daily)

    def num_trials(self, read: PartRead) -> int:
        """How many `trials` there are, without reading them; raises like `record_evaluation`."""
        return self._count("trial", read)

    def trials(self, read: PartRead) -> Sequence[Trial]:
        """Trials on parts that share time, a symbol and the subject, oldest first; raises like `<function <lambda> at
        0x7f94ed966480>`.

        All of them, each with its Sharpe ratio; daily returns only as far back as `MOST_DAYS` reach, so that thousands
        of trials of a thousand days do not fill the memory.
        """
        query = (
            "SELECT r.id, r.subject, r.start_ms, r.end_ms, r.at, r.model_id, r.sharpe, r.daily, "
            f"(SELECT json_group_array(symbol) FROM reading_symbols WHERE number = r.number) {_OVERLAPPING} "
            "ORDER BY r.number DESC"
        )
        wanted = _wanted("trial", read)
        found: list[Trial] = []
        names: dict[str, str] = {}  # one string a day, however many trials name it
        num_days = 0
        with self._reading() as connection:
            if connection is None:
                return []
            for row in connection.execute(query, wanted):
                trial = _trial(row, names, with_daily=num_days < MOST_DAYS)
                num_days += len(trial.daily_returns)
                found.append(trial)
        return found[::-1]

    def _count(self, kind: _Kind, read: PartRead) -> int:
        wanted = _wanted(kind, read)
        with self._reading() as connection:
            return 0 if connection is None else _number(connection, wanted)

    def _write(self, kind: _Kind, read: PartRead, *, sharpe: float | None, daily: bytes | None) -> int:
        """Notes a reading, unless its id was noted before; how many overlap it now."""
        wanted = _wanted(kind, read)
        row = (kind, read.id, read.subject, read.start_ms, read.end_ms, iso(read.at), read.model_id, sharpe, daily)
        with _translated(self.path):
            self._create()
            with closing(self._opened()) as connection:
                connection.execute("BEGIN IMMEDIATE")  # what begins as a reader may be overtaken by another writer
                noted = connection.execute(_INSERT, row).rowcount
                if noted:
                    symbols = [(symbol, kind, read.id) for symbol in dict.fromkeys(read.symbols)]
                    connection.executemany(_INSERT_SYMBOL, symbols)
                number = _number(connection, wanted)
                connection.execute("COMMIT")
        return number

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection; None where nothing was ever written."""
        with _translated(self.path):
            if self._is_absent():
                yield None
                return
            with closing(self._opened()) as connection:
                yield connection

    def _is_absent(self) -> bool:
        if self.path.exists():
            return False
        log = self.path.with_name(self.path.name + "-wal")
        if log.exists() and not self.path.exists():
            raise UnavailableError(
                f"{self.path.name} in STATE_DIR is gone while its log {log.name} is there: looks and trials are lost; "
                "restore both from a backup, or move the log away too to begin anew"
            )
        return True

    def _create(self) -> None:
        """The empty file, whole at once; whoever comes second finds it."""
        if not self._is_absent():
            return
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / f".{self.path.name}.lock", timeout=BUSY_TIMEOUT_S, thread_local=False):
                if self._is_absent():
                    staged = folder / f".{self.path.name}.new"
                    staged.unlink(missing_ok=True)
                    with closing(sqlite3.connect(staged, isolation_level=None)) as connection:
                        connection.executescript(
                            f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; BEGIN; {_SCHEMA} {_GUARDS} "
                            f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                        )
                    os.rename(staged, self.path)
                    _sync_folder(folder)
        except Timeout as error:
            raise UnavailableError(
                f"another process is creating {self.path.name} in STATE_DIR and takes its time; try again",
                retry_after_s=5,
            ) from error

    def _opened(self) -> sqlite3.Connection:
        """A connection to a file that is there and ours."""
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise UnavailableError(
                    f"{self.path.name} in STATE_DIR was written by a newer version of this service; upgrade this one"
                )
            if version < SCHEMA_VERSION:
                raise sqlite3.DatabaseError("file is not a ledger")
            self._check_once(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_once(self, connection: sqlite3.Connection) -> None:
        """Every page is looked at once a process and file: a damaged index would count too few without an error."""
        stat = self.path.stat()
        stamp = (stat.st_dev, stat.st_ino)
        with self._checking:
            if self._checked == stamp:
                return
            faults = [line for (line,) in connection.execute("PRAGMA integrity_check(1)")]
            if faults != ["ok"]:
                raise sqlite3.DatabaseError(" ".join(faults[0].split()))
            self._checked = stamp


def _wanted(kind: _Kind, read: PartRead) -> tuple[Any, ...]:
    """The parameters of `_OVERLAPPING`; half-open intervals."""
    if not read.symbols or read.end_ms <= read.start_ms:
        raise DataValidationError.at(
            "read", "A part that is read has symbols, and ends after it begins; give the borders of the part's windows."
        )
    return kind, read.subject, read.end_ms, read.start_ms, json.dumps(read.symbols)


def _number(connection: sqlite3.Connection, wanted: tuple[Any, ...]) -> int:
    (number,) = connection.execute(f"SELECT count(*) {_OVERLAPPING}", wanted).fetchone()
    return int(number)


def _trial(row: tuple[Any, ...], names: dict[str, str], *, with_daily: bool) -> Trial:
    """A row as it was written; it was checked then."""
    trial_id, subject, start_ms, end_ms, at, model_id, sharpe, daily, symbols = row
    returns: Mapping[str, float] = {}
    if daily is not None and with_daily:
        try:
            returns = json.loads(zlib.decompress(daily))
        except (zlib.error, ValueError) as error:
            raise sqlite3.DatabaseError(f"daily returns of {trial_id}") from error
    read = PartRead.model_construct(
        id=trial_id,
        subject=subject,
        symbols=tuple(json.loads(symbols)),
        start_ms=start_ms,
        end_ms=end_ms,
        at=datetime.fromisoformat(at),
        model_id=model_id,
    )
    kept = {names.setdefault(day, day): value for day, value in returns.items()}
    return Trial.model_construct(read=read, sharpe=sharpe, daily_returns=kept)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, each with what to do."""
    place = f"{path.name} in STATE_DIR"
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        code = str(getattr(error, "sqlite_errorname", ""))
        retry_after_s = None
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            retry_after_s = 5
            text = f"other processes keep {place} locked; try again"
        elif code.startswith("SQLITE_FULL") or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk is full: {place} could not be written, so nothing was counted; free some space, try again"
        elif isinstance(error, OSError) or code.startswith(_NOT_REACHED):
            text = f"{place} cannot be opened or written ({error}); check the folder, its rights and its disk"
        else:
            text = (
                f"{place} is damaged or no ledger ({error}), so looks and trials cannot be counted; restore it from a "
                "backup, or move it away to begin anew"
            )
        raise UnavailableError(text, retry_after_s=retry_after_s) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
