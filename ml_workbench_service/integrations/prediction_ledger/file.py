"""How the ledger's database is opened, and SQLite's errors as ours.

The file appears whole: made aside, then renamed. Write-ahead logging, synced at checkpoints alone: a process that is
killed loses nothing that was committed, a machine that loses its power may lose the last seconds.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from common_lib.exceptions import UnavailableError
from ml_workbench_service.integrations.prediction_ledger.rows import SCHEMA, SCHEMA_VERSION

BUSY_TIMEOUT_S = 5.0


def create(path: Path) -> None:
    """The empty ledger, unless there is a file already; raises sqlite3.Error and OSError."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(staged, isolation_level=None)) as connection:
            connection.executescript(
                f"PRAGMA journal_mode = WAL; BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        for rest in ("-wal", "-shm"):  # of a file that was moved away: not this one's
            path.with_name(path.name + rest).unlink(missing_ok=True)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def connect(path: Path, *, timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """A connection to a file that is there and ours; transactions are begun by hand.

    Raises:
        sqlite3.Error: it is not there, or no ledger.
        UnavailableError: a newer version of this service wrote it.
    """
    address = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise UnavailableError(
                f"{path.name} in STATE_DIR was written by a newer version of this service; upgrade this one"
            )
        if version < SCHEMA_VERSION:
            raise sqlite3.DatabaseError("file is not a prediction ledger")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """A connection for questions; None where nothing was ever written. SQLite's errors become ours."""
    with translated(path):
        if not path.exists():
            yield None
            return
        with closing(connect(path)) as connection:
            yield connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, each with what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise UnavailableError(fault(path, error), retry_after_s=5) from error


def fault(path: Path, error: Exception) -> str:
    """What is wrong with the file, and what to do."""
    code, place = str(getattr(error, "sqlite_errorname", "")), f"{path.name} in STATE_DIR"
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"another process keeps {place} locked; try again"
    if code.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or not (code or isinstance(error, OSError)):
        return f"{place} is damaged or no prediction ledger ({error}); move it away, a new one is begun by itself"
    return f"{place} cannot be read or written ({error}); free space on its disk, or check its rights"
