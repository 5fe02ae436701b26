"""SQLite stores with migrations: one table of columns from which DDL, INSERT and SELECT derive, and a numbered schema.

    PRAGMA user_version     the schema's version; 0 is an empty or a foreign file, never one of ours
    <file>.v<N>.bak         the file as it was before it was migrated from version N
    .<file>.lock            held by the process that makes or migrates the file; others wait for it

Opening a file of an earlier version migrates it: a copy beside, then each step in a transaction of its own, so that a
process that is killed leaves a whole file of the version it had reached, and the next one goes on from there. A file of
a newer version is refused with a sentence. A new file appears whole (made aside, then renamed): an empty one at its
place is a fault, not a beginning.

Write-ahead logging needs shared memory, so not for network file systems.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common_lib.exceptions import StorageError, StorageFullError, UnavailableError
from common_lib.storage import check_there, is_full, make_folder

FIRST_VERSION = 1
POLL_S = 0.01
BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR")


class Insert(NamedTuple):
    """An INSERT of a row given by name; bound by position, since binding by name takes half as long again."""

    statement: str
    names: tuple[str, ...]

    def __call__(self, connection: sqlite3.Connection, row: Mapping[str, Any]) -> sqlite3.Cursor:
        """Executes it."""
        return connection.execute(self.statement, [row[name] for name in self.names])


@dataclass(frozen=True)
class Table:
    """A table's columns, declared once.

    Attributes:
        name: of the table.
        columns: by name, in the order on disk, how each is declared: `{"id": "INTEGER PRIMARY KEY"}`.
        constraints: of the whole table, such as `UNIQUE (kind, id)`.
        options: behind the closing parenthesis, such as `WITHOUT ROWID`.
    """

    name: str
    columns: Mapping[str, str]
    constraints: tuple[str, ...] = ()
    options: str = ""

    def create(self) -> str:
        """The CREATE TABLE."""
        columns = (f"{name} {declared}" for name, declared in self.columns.items())
        return f"CREATE TABLE {self.name} ({', '.join([*columns, *self.constraints])}) {self.options}"

    def insert(self, *, without: Iterable[str] = (), verb: str = "INSERT", then: str = "") -> Insert:
        """The INSERT of a row, without columns that SQLite fills or that become known later; `then` follows it."""
        left_out = set(without)
        assert left_out <= set(self.columns), f"{self.name} has no {left_out - set(self.columns)}"
        names = tuple(name for name in self.columns if name not in left_out)
        places = ", ".join("?" * len(names))
        return Insert(f"{verb} INTO {self.name} ({', '.join(names)}) VALUES ({places}) {then}", names)


def selected(names: Iterable[str], **tables: Table) -> str:
    """The columns of a SELECT, each by the alias of the one table that has it: `p.number, s.symbol`."""
    found = []
    for name in names:
        owners = [alias for alias, table in tables.items() if name in table.columns]
        assert len(owners) == 1, f"{name} is a column of {owners or 'no table'}"
        found.append(f"{owners[0]}.{name}")
    return ", ".join(found)


@dataclass(frozen=True)
class Schema:
    """What a kind of file holds, and how earlier versions of it become this one.

    Attributes:
        kind: of the file, as sentences call it: `prediction ledger`.
        tables: as they are now.
        extras: statements that make indexes and triggers, as they are now.
        migrations: by the version that they lead to, from 2 on without a hole, the statements of each step. The
            version of the schema is the last one's number.
    """

    kind: str
    tables: tuple[Table, ...]
    extras: tuple[str, ...] = ()
    migrations: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = list(range(FIRST_VERSION + 1, self.version + 1))
        if sorted(self.migrations) != expected:
            raise TypeError(f"migrations of the {self.kind} are numbered {expected}, not {sorted(self.migrations)}")

    @property
    def version(self) -> int:
        """What a new file is stamped with."""
        return FIRST_VERSION + len(self.migrations)

    def check(self, connection: sqlite3.Connection) -> None:
        """Raises sqlite3.DatabaseError where a table's columns are not the declared ones."""
        for table in self.tables:
            found = [row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")]
            if set(found) != set(table.columns):
                raise sqlite3.DatabaseError(f"table {table.name} has the columns {', '.join(found) or 'of none'}")


class SqliteStore:
    """One file of a schema; its methods may be called from any thread.

    Args:
        path: of the file.
        schema: what it holds.
        timeout_s: how long another process may keep it locked.
        synchronous: `FULL`: a commit is on disk when it returns; `NORMAL`: a power cut may take the last ones.
    """

    def __init__(
        self, path: Path, schema: Schema, *, timeout_s: float, synchronous: Literal["FULL", "NORMAL"] = "FULL"
    ) -> None:
        self.path = path
        self.schema = schema
        self.timeout_s = timeout_s
        self._synchronous = synchronous

    def create(self) -> None:
        """The empty file, unless there is one; raises sqlite3.Error, OSError and UnavailableError."""
        if self.path.exists():
            return
        make_folder(self.path.parent)
        with self._alone():
            if self.path.exists():
                return
            staged = self.path.with_name(f".{self.path.name}.new")
            staged.unlink(missing_ok=True)
            with closing(sqlite3.connect(staged, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                with transaction(connection):
                    for statement in (*(table.create() for table in self.schema.tables), *self.schema.extras):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {self.schema.version}")
            _replace(staged, self.path)

    def connect(self, *, any_thread: bool = False) -> sqlite3.Connection:
        """A connection to a file that is there, ours and of this version; transactions are begun by hand.

        Args:
            any_thread: whether threads that wait for one another share it.

        Raises:
            sqlite3.Error: it is not there, or no file of this kind.
            UnavailableError: a newer version of the service wrote it, another process is migrating it, or its folder is
                gone.
        """
        check_there(self.path)
        address = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(
            address, uri=True, timeout=self.timeout_s, isolation_level=None, check_same_thread=not any_thread
        )
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            if self._version(connection) < self.schema.version:
                self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def translated(self) -> Iterator[None]:
        """SQLite's and the disk's errors as UnavailableError, each with what to do; 507 where there is no room."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            is_busy = str(getattr(error, "sqlite_errorname", "")).startswith(BUSY)
            kind = StorageFullError if is_full(error) else UnavailableError if is_busy else StorageError
            raise kind(self.fault(error), retry_after_s=5 if is_busy else None) from error

    def fault(self, error: Exception) -> str:
        """What is wrong with the file, and what to do."""
        code, place = str(getattr(error, "sqlite_errorname", "")), f"{self.path.name} in STATE_DIR"
        if code.startswith(BUSY):
            return f"another process keeps {place} locked; try again"
        if is_full(error):
            return f"the disk is full: {place} could not be written; free some space, then try again"
        if code.startswith(DAMAGED) or not (code or isinstance(error, OSError)):
            return (
                f"{place} is damaged or no {self.schema.kind} ({error}); restore it from a backup, or move it away: a "
                "new one is begun by itself"
            )
        return f"{place} cannot be opened or written ({error}); check the folder, its rights and its disk"

    def _version(self, connection: sqlite3.Connection) -> int:
        """The file's, where it is one that this code reads or migrates."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > self.schema.version:
            raise UnavailableError(
                f"{self.path.name} in STATE_DIR is of version {version}, written by a newer version of this service; "
                f"this one reads versions up to {self.schema.version}. Upgrade the service, or restore a backup from "
                "before the upgrade (make restore)."
            )
        if version < FIRST_VERSION:
            raise sqlite3.DatabaseError(f"file is not a {self.schema.kind}")
        return int(version)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        with self._alone():
            version = self._version(connection)  # another process may have been at it meanwhile
            if version < self.schema.version:
                copy(connection, self.path.with_name(f"{self.path.name}.v{version}.bak"))
            for number in range(version + 1, self.schema.version + 1):
                with transaction(connection):
                    for statement in self.schema.migrations[number]:
                        connection.execute(statement)
                    if number == self.schema.version:
                        self.schema.check(connection)
                    connection.execute(f"PRAGMA user_version = {number}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process makes or migrates the file."""
        deadline = time.monotonic() + self.timeout_s
        with self.path.with_name(f".{self.path.name}.lock").open("wb") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise UnavailableError(
                            f"another process makes or migrates {self.path.name} in STATE_DIR and takes its time; try "
                            "again",
                            retry_after_s=5,
                        ) from error
                    time.sleep(POLL_S)
            yield


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All of it or nothing; what begins as a reader could be overtaken by another writer, so it begins as a writer."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def copy(connection: sqlite3.Connection, target: Path) -> None:
    """Everything that is committed, as one file, on disk when this returns; writers go on meanwhile."""
    staged = target.with_name(f".{target.name}.new")
    staged.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(staged)) as copied:
            connection.backup(copied)
        _replace(staged, target)
    finally:
        staged.unlink(missing_ok=True)


def _replace(staged: Path, target: Path) -> None:
    _sync(staged)
    staged.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
