"""Multiple-testing log: test-set evaluations and trials in one file that only grows: each is on disk before anybody
learns its number.

    <STATE_DIR>/ledgers.db
        readings           one row an evaluation (kind `look`) or trial
        reading_symbols    the symbols of each
        hypotheses         the recipe that an evaluation is about
        hypothesis_series  the series that it bets on
        return_series      each by its digest, once
        results            what an evaluation told: p-value, rows, loss differentials

Laws: rows are never changed or removed (triggers refuse), and the first one of a kind and id holds. Several processes
may write at once. A commit is synced; a process that is killed loses only what it was writing. What cannot be read is
an error and never a smaller count.
"""

import json
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from common_lib.exceptions import DataValidationError, UnavailableError
from common_lib.sqlite_store import Schema, SqliteStore, Table, selected, transaction
from ml_workbench_service.contracts.contract import iso
from ml_workbench_service.contracts.multiple_testing import EvaluationResult, Fingerprint, PartRead, Trial
from ml_workbench_service.integrations.multiple_testing_log.families import HypothesisFamilies

BUSY_TIMEOUT_S = 15.0
MOST_DAYS = 1_000_000
"""Daily returns that one answer carries, some 100 MB: the newest trials'; older trials come without theirs."""

READINGS = Table(
    "readings",
    {
        "number": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "kind": "TEXT NOT NULL CHECK (kind IN ('look', 'trial'))",
        "id": "TEXT NOT NULL",
        "subject": "TEXT NOT NULL",
        "start_ms": "INTEGER NOT NULL",
        "end_ms": "INTEGER NOT NULL CHECK (end_ms > start_ms)",
        "at": "TEXT NOT NULL",
        "model_id": "TEXT NOT NULL",
        "sharpe": "REAL",
        "daily": "BLOB",
    },
    constraints=("UNIQUE (kind, id)",),
)
READING_SYMBOLS = Table(
    "reading_symbols",
    {"symbol": "TEXT NOT NULL", "number": "INTEGER NOT NULL REFERENCES readings (number)"},
    constraints=("PRIMARY KEY (symbol, number)",),
    options="WITHOUT ROWID",
)
HYPOTHESES = Table(
    "hypotheses",
    {"number": "INTEGER PRIMARY KEY REFERENCES readings (number)", "recipe": "TEXT NOT NULL"},
)
HYPOTHESIS_SERIES = Table(
    "hypothesis_series",
    {"number": "INTEGER NOT NULL REFERENCES readings (number)", "digest": "TEXT NOT NULL"},
    constraints=("PRIMARY KEY (number, digest)",),
    options="WITHOUT ROWID",
)
RETURN_SERIES = Table(
    "return_series",
    {
        "digest": "TEXT PRIMARY KEY",
        "symbol": "TEXT NOT NULL",
        "step_ms": "INTEGER NOT NULL",
        "steps": "BLOB NOT NULL",
        "log_close": "BLOB NOT NULL",
    },
)
RESULTS = Table(
    "results",
    {
        "number": "INTEGER PRIMARY KEY REFERENCES readings (number)",
        "p_value": "REAL",
        "from_ms": "INTEGER NOT NULL",
        "until_ms": "INTEGER NOT NULL",
        "own_columns": "TEXT NOT NULL",
        "differentials": "BLOB NOT NULL",
    },
)
_FAMILIES = (HYPOTHESES, HYPOTHESIS_SERIES, RETURN_SERIES, RESULTS)


def _guards(*tables: Table) -> tuple[str, ...]:
    return tuple(
        f"CREATE TRIGGER {table.name}_{verb} BEFORE {verb} ON {table.name} "
        "BEGIN SELECT RAISE(ABORT, 'the ledgers are append-only'); END"
        for table in tables
        for verb in ("UPDATE", "DELETE")
    )


def _first_of_a_key_holds(table: Table, *key: str) -> str:
    same = " AND ".join(f"{name} = NEW.{name}" for name in key)
    return (
        f"CREATE TRIGGER {table.name}_first BEFORE INSERT ON {table.name} WHEN EXISTS (SELECT 1 FROM {table.name} "
        f"WHERE {same}) BEGIN SELECT RAISE(IGNORE); END"
    )


_FAMILY_EXTRAS = (
    "CREATE INDEX hypotheses_by_recipe ON hypotheses (recipe)",
    *_guards(*_FAMILIES),
    _first_of_a_key_holds(HYPOTHESES, "number"),
    _first_of_a_key_holds(HYPOTHESIS_SERIES, "number", "digest"),
    _first_of_a_key_holds(RETURN_SERIES, "digest"),
    _first_of_a_key_holds(RESULTS, "number"),
)
# Without it INSERT OR REPLACE would take an old row away unseen: that fires no DELETE trigger by default.
_FIRST_HOLDS = (
    "CREATE TRIGGER readings_first BEFORE INSERT ON readings WHEN EXISTS (SELECT 1 FROM readings WHERE "
    "(kind = NEW.kind AND id = NEW.id) OR number = NEW.number) BEGIN SELECT RAISE(IGNORE); END"
)
SCHEMA = Schema(
    "multiple-testing log",
    (READINGS, READING_SYMBOLS, *_FAMILIES),
    extras=(
        "CREATE INDEX readings_by_subject ON readings (kind, subject, start_ms, end_ms)",
        *_guards(READINGS, READING_SYMBOLS), _FIRST_HOLDS, *_FAMILY_EXTRAS,
    ),
    migrations={2: (*(table.create() for table in _FAMILIES), *_FAMILY_EXTRAS)},
)  # fmt: skip
_INSERT = READINGS.insert(without=("number",), verb="INSERT OR IGNORE")
_INSERT_HYPOTHESIS = HYPOTHESES.insert(verb="INSERT OR IGNORE")
_INSERT_HYPOTHESIS_SERIES = HYPOTHESIS_SERIES.insert(verb="INSERT OR IGNORE")
_INSERT_SERIES = RETURN_SERIES.insert(verb="INSERT OR IGNORE")
_INSERT_RESULT = RESULTS.insert(verb="INSERT OR IGNORE")
_NUMBER = "SELECT number FROM readings WHERE kind = 'look' AND id = ?"
_RESULTS = (
    "SELECT s.p_value, s.from_ms, s.until_ms, s.own_columns, s.differentials FROM hypotheses AS h "
    "JOIN results AS s ON s.number = h.number WHERE h.recipe = ? ORDER BY h.number"
)
_INSERT_SYMBOL = "INSERT INTO reading_symbols (symbol, number) SELECT ?, number FROM readings WHERE kind = ? AND id = ?"
_OVERLAPPING = (
    "FROM readings AS r WHERE r.kind = ? AND r.subject = ? AND r.start_ms < ? AND r.end_ms > ? AND EXISTS ("
    "SELECT 1 FROM reading_symbols AS s WHERE s.number = r.number AND s.symbol IN (SELECT value FROM json_each(?)))"
)
_OF_A_TRIAL = tuple(name for name in READINGS.columns if name not in ("number", "kind"))
_TRIALS = (
    f"SELECT {selected(_OF_A_TRIAL, r=READINGS)}, "
    "(SELECT json_group_array(symbol) FROM reading_symbols WHERE number = r.number) "
    f"{_OVERLAPPING} ORDER BY r.number DESC"
)

_Kind = Literal["look", "trial"]


class SqliteMultipleTestingLog:
    """The log of one state folder (see `contracts.multiple_testing.MultipleTestingLog`); for any threads and processes.

    Nothing is opened or created before it is needed; a file that is not there counts nothing.

    Args:
        path: of the database file, `STATE_DIR/ledgers.db`; its folder is made with the first row.
        schema, timeout_s: of the store.

    Every method raises `UnavailableError` where the file cannot be read or written just now: full disk, damaged file,
    another process that holds it for too long, a newer version's file.
    """

    def __init__(self, path: Path, *, schema: Schema = SCHEMA, timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self._store = SqliteStore(path, schema, timeout_s=timeout_s)
        self._checked: tuple[int, int] | None = None
        self._checking = threading.Lock()
        self._families = HypothesisFamilies()
        self._kept_lock = threading.Lock()
        self._kept: tuple[tuple[int, int], sqlite3.Connection] | None = None

    def record_evaluation(self, read: PartRead, *, recipe: str = "", series: Sequence[Fingerprint] = ()) -> int:
        """Notes an evaluation before it happens; how many there are on parts that share time, a symbol and the subject.

        Raises:
            DataValidationError: the part has no symbols, or its end is not after its start.
        """
        return self._write("look", read, sharpe=None, daily=None, recipe=recipe, series=series)

    def record_result(self, evaluation: str, result: EvaluationResult) -> None:
        """Notes what the evaluation of this id told, once; raises like `record_evaluation`, and where there is none."""
        with self._store.translated(), closing(self._opened()) as connection, transaction(connection):
            found = connection.execute(_NUMBER, (evaluation,)).fetchone()
            if found is None:
                raise DataValidationError.at("evaluation", f"{evaluation} was not noted before it happened.")
            _INSERT_RESULT(
                connection,
                {
                    "number": found[0], "p_value": result.p_value, "from_ms": result.from_ms,
                    "until_ms": result.until_ms, "own_columns": result.own_columns,
                    "differentials": zlib.compress(result.differentials),
                },
            )  # fmt: skip

    def results(self, recipe: str) -> Sequence[EvaluationResult]:
        """What all evaluations of a recipe told, in the order of their evaluations."""
        with self._reading() as connection:
            rows = [] if connection is None else connection.execute(_RESULTS, (recipe,)).fetchall()
        return [
            EvaluationResult(p_value, from_ms, until_ms, own_columns, zlib.decompress(differentials))
            for p_value, from_ms, until_ms, own_columns, differentials in rows
        ]

    def other_p_values(self, evaluation: str) -> Sequence[float | None]:
        """Today's p-values of all other hypotheses in this evaluation's family; None where one was never told."""
        return self.other_p_values_of([evaluation])[evaluation]

    def other_p_values_of(self, evaluations: Sequence[str]) -> Mapping[str, Sequence[float | None]]:
        """The same of many evaluations, in one reading of the log; none where it has not changed since the last."""
        with self._store.translated(), self._kept_lock:
            if self._is_absent():
                return dict.fromkeys(evaluations, ())
            stat = self.path.stat()
            connection = self._kept_open((stat.st_dev, stat.st_ino))
            try:
                (changes,) = connection.execute("PRAGMA data_version").fetchone()  # by all other connections
                return self._families.other_p_values(connection, evaluations, as_of=(self._kept, changes))
            except BaseException:
                self._kept = None
                raise

    def _kept_open(self, file: tuple[int, int]) -> sqlite3.Connection:
        """The connection that tells whether the log has changed; of another file a new one."""
        if self._kept is None or self._kept[0] != file:
            self._kept = None
            self._kept = file, self._opened(any_thread=True)
        return self._kept[1]

    def num_evaluations(self, read: PartRead) -> int:
        """The same without noting anything; raises like `record_evaluation`."""
        return self._count("look", read)

    def record_trial(self, trial: Trial) -> None:
        """Notes a trial, once for each id, replacing nothing; raises like `record_evaluation`."""
        daily = (
            zlib.compress(json.dumps(trial.daily_returns, allow_nan=False).encode()) if trial.daily_returns else None
        )
        self._write("trial", trial.read, sharpe=trial.sharpe, daily=daily)

    def num_trials(self, read: PartRead) -> int:
        """How many `trials` there are, without reading them; raises like `record_evaluation`."""
        return self._count("trial", read)

    def trials(self, read: PartRead) -> Sequence[Trial]:
        """Trials on parts that share time, a symbol and the subject, oldest first; raises as above.

        All of them, each with its Sharpe ratio; daily returns only as far back as `MOST_DAYS` reach, so that thousands
        of trials of a thousand days do not fill the memory.
        """
        wanted = _wanted("trial", read)
        found: list[Trial] = []
        names: dict[str, str] = {}  # one string a day, however many trials name it
        num_days = 0
        with self._reading() as connection:
            if connection is None:
                return []
            for row in connection.execute(_TRIALS, wanted):
                trial = _trial(row, names, with_daily=num_days < MOST_DAYS)
                num_days += len(trial.daily_returns)
                found.append(trial)
        return found[::-1]

    def _count(self, kind: _Kind, read: PartRead) -> int:
        wanted = _wanted(kind, read)
        with self._reading() as connection:
            return 0 if connection is None else _number(connection, wanted)

    def _write(
        self, kind: _Kind, read: PartRead, *, sharpe: float | None, daily: bytes | None, recipe: str = "",
        series: Sequence[Fingerprint] = (),
    ) -> int:  # fmt: skip
        """Notes a reading, unless its id was noted before; how many overlap it now."""
        wanted = _wanted(kind, read)
        row = {
            "kind": kind, "id": read.id, "subject": read.subject, "start_ms": read.start_ms, "end_ms": read.end_ms,
            "at": iso(read.at), "model_id": read.model_id, "sharpe": sharpe, "daily": daily,
        }  # fmt: skip
        with self._store.translated():
            if self._is_absent():
                self._store.create()
            with closing(self._opened()) as connection, transaction(connection):
                if _INSERT(connection, row).rowcount:
                    symbols = [(symbol, kind, read.id) for symbol in dict.fromkeys(read.symbols)]
                    connection.executemany(_INSERT_SYMBOL, symbols)
                    if recipe:
                        _note_hypothesis(connection, read.id, recipe, series)
                return _number(connection, wanted)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection; None where nothing was ever written."""
        with self._store.translated():
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
                f"{self.path.name} in STATE_DIR is gone while its log {log.name} is there: evaluations and trials are "
                "lost; restore both from a backup, or move the log away too to begin anew"
            )
        return True

    def _opened(self, *, any_thread: bool = False) -> sqlite3.Connection:
        """A connection to a file that is there, ours and whole."""
        connection = self._store.connect(any_thread=any_thread)
        try:
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


def _note_hypothesis(
    connection: sqlite3.Connection, evaluation: str, recipe: str, series: Sequence[Fingerprint]
) -> None:
    (number,) = connection.execute(_NUMBER, (evaluation,)).fetchone()
    _INSERT_HYPOTHESIS(connection, {"number": number, "recipe": recipe})
    for each in series:
        packed = {
            "steps": zlib.compress(each.steps_B.astype("<i8").tobytes()),
            "log_close": zlib.compress(each.log_close_B.astype("<f8").tobytes()),
        }
        row = {"digest": each.digest, "symbol": each.symbol, "step_ms": each.step_ms, **packed}
        _INSERT_SERIES(connection, row)
        _INSERT_HYPOTHESIS_SERIES(connection, {"number": number, "digest": each.digest})


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


def _trial(values: tuple[Any, ...], names: dict[str, str], *, with_daily: bool) -> Trial:
    """A row of `_TRIALS` as it was written; it was checked then."""
    row = dict(zip((*_OF_A_TRIAL, "symbols"), values, strict=True))
    returns: Mapping[str, float] = {}
    if row["daily"] is not None and with_daily:
        try:
            returns = json.loads(zlib.decompress(row["daily"]))
        except (zlib.error, ValueError) as error:
            raise sqlite3.DatabaseError(f"daily returns of {row['id']}") from error
    same = {name: row[name] for name in ("id", "subject", "start_ms", "end_ms", "model_id")}
    at = datetime.fromisoformat(row["at"])
    read = PartRead.model_construct(**same, symbols=tuple(json.loads(row["symbols"])), at=at)
    kept = {names.setdefault(day, day): value for day, value in returns.items()}
    return Trial.model_construct(read=read, sharpe=row["sharpe"], daily_returns=kept)
