"""SQLite stores: statements follow from one table of columns, and files of earlier versions are migrated whole."""

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common_lib.exceptions import UnavailableError
from common_lib.sqlite_store import Schema, SqliteStore, Table, selected
from ml_workbench_service.integrations.multiple_testing_log import log as multiple_testing_log
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
from ml_workbench_service.integrations.prediction_ledger import rows
from ml_workbench_service.integrations.prediction_ledger.reader import LedgerReader, Wanted
from tests.previous_version.reading import DATA

ROOT = Path(__file__).parents[1]
NOTES = Table("notes", {"id": "INTEGER PRIMARY KEY", "text": "TEXT NOT NULL"}, constraints=("UNIQUE (text)",))
FIRST = Schema("notebook", (NOTES,))
SECOND = Schema(
    "notebook",
    (replace(NOTES, columns={**NOTES.columns, "mood": "TEXT NOT NULL DEFAULT 'calm'"}),),
    migrations={2: ("ALTER TABLE notes ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'",)},
)
ENDLESS = (
    "INSERT INTO notes WITH RECURSIVE n (i) AS (SELECT 9 UNION ALL SELECT i + 1 FROM n) SELECT i, i, 'calm' FROM n"
)
OPENING = """
import sys
from pathlib import Path
from common_lib.sqlite_store import SqliteStore
from tests import test_sqlite_store as here
schema = {"second": here.SECOND, "endless": here.later(here.SECOND, 3, here.ENDLESS)}[sys.argv[2]]
print("ready", flush=True)
sys.stdin.readline()
connection = SqliteStore(Path(sys.argv[1]), schema, timeout_s=60.0).connect()
print(connection.execute("SELECT count(*) FROM notes WHERE mood = 'calm'").fetchone()[0])
"""


def later(schema: Schema, number: int, *statements: str, **columns: Mapping[str, str]) -> Schema:
    """The schema after one more step, with these further columns by table."""
    tables = tuple(replace(each, columns={**each.columns, **columns.get(each.name, {})}) for each in schema.tables)
    return replace(schema, tables=tables, migrations={**schema.migrations, number: statements})


def opened(path: Path, schema: Schema) -> sqlite3.Connection:
    return SqliteStore(path, schema, timeout_s=10.0).connect()


def contents(path: Path, table: str) -> list[dict[str, Any]]:
    """Every row, as whoever knows nothing of us reads it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY number")]


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A notebook of the first version with three notes."""
    file = tmp_path / "notes.db"
    SqliteStore(file, FIRST, timeout_s=10.0).create()
    with closing(opened(file, FIRST)) as connection:
        for each in "abc":
            NOTES.insert(without=("id",))(connection, {"text": each})
    return file


def test_statements_follow_from_the_columns() -> None:
    other = Table("moods", {"mood": "TEXT"})
    assert NOTES.create().strip() == "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL, UNIQUE (text))"
    assert NOTES.insert(without=("id",)).statement.strip() == "INSERT INTO notes (text) VALUES (?)"
    assert selected(("mood", "text"), n=NOTES, m=other) == "m.mood, n.text"
    for unknown in (lambda: NOTES.insert(without=("txet",)), lambda: selected(("txet",), n=NOTES)):
        with pytest.raises(AssertionError, match="txet"):
            unknown()
    with pytest.raises(AssertionError, match=r"id.*a.*b"):
        selected(("id",), a=NOTES, b=NOTES)


def test_steps_are_numbered_without_a_hole() -> None:
    with pytest.raises(TypeError, match=r"numbered \[2\]"):
        Schema("notebook", (NOTES,), migrations={3: ()})


def test_an_earlier_file_is_migrated_once_with_a_copy_beside(path: Path) -> None:
    with closing(opened(path, SECOND)) as connection:
        assert connection.execute("SELECT text, mood FROM notes ORDER BY id").fetchall() == [
            ("a", "calm"), ("b", "calm"), ("c", "calm"),
        ]  # fmt: skip
    kept = path.with_name("notes.db.v1.bak")
    assert (version(path), version(kept)) == (2, 1)
    with closing(opened(kept, FIRST)) as connection:
        assert [text for (text,) in connection.execute("SELECT text FROM notes")] == ["a", "b", "c"]
    kept.unlink()
    opened(path, SECOND).close()
    assert not kept.exists()


def test_a_new_file_and_a_migrated_one_are_alike(path: Path, tmp_path: Path) -> None:
    opened(path, SECOND).close()
    SqliteStore(tmp_path / "new.db", SECOND, timeout_s=10.0).create()
    described = []
    for file in (path, tmp_path / "new.db"):
        with closing(sqlite3.connect(file)) as connection:
            described.append(connection.execute("PRAGMA table_info(notes)").fetchall())
    assert described[0] == described[1]


def test_a_newer_file_is_refused_with_a_sentence_and_never_called_damaged(path: Path) -> None:
    opened(path, SECOND).close()
    with pytest.raises(UnavailableError) as caught:
        opened(path, FIRST)
    assert "notes.db in STATE_DIR is of version 2" in caught.value.message
    assert "reads versions up to 1. Upgrade the service, or restore a backup" in caught.value.message
    assert "damaged" not in caught.value.message
    assert version(path) == 2


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (("UPDATE notes SET text = text || '!'", "ALTER TABLE notes ADD COLUMN mood TEXT", "no SQL"), "syntax"),
        (("UPDATE notes SET text = text || '!'",), "table notes has the columns id, text"),
    ],
)
def test_a_step_that_fails_changes_nothing(path: Path, statements: tuple[str, ...], reason: str) -> None:
    broken = later(FIRST, 2, *statements, notes={"mood": "TEXT"})
    with pytest.raises(sqlite3.Error, match=reason):
        opened(path, broken)
    assert version(path) == 1
    with closing(opened(path, FIRST)) as connection:
        assert [text for (text,) in connection.execute("SELECT text FROM notes")] == ["a", "b", "c"]


@pytest.mark.parametrize("empty", [True, False])
def test_an_empty_and_a_foreign_file_are_no_stores(tmp_path: Path, empty: bool) -> None:
    file = tmp_path / "notes.db"
    if empty:
        file.touch()
    else:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE theirs (x)")
    store = SqliteStore(file, SECOND, timeout_s=10.0)
    with pytest.raises(UnavailableError, match=r"damaged or no notebook.*restore it from a backup"), store.translated():
        store.connect()


def opening(path: Path, schema: str) -> "subprocess.Popen[str]":
    """A process about to open the file; it does so once it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPENING, str(path), schema],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.more
def test_of_processes_that_open_at_once_one_migrates_and_the_others_wait(path: Path) -> None:
    processes = [opening(path, "second") for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        said, complaint = process.communicate(timeout=120)
        assert (said, complaint) == ("3\n", ""), "a second ALTER TABLE would fail"


def test_a_migration_that_is_killed_goes_on_where_it_was(path: Path) -> None:
    with opening(path, "endless") as process:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while version(path) < 2:
            assert time.monotonic() < deadline, "the first step never came"
            time.sleep(0.01)
        time.sleep(0.2)  # well into the second
        process.kill()
    assert version(path) == 2
    third = later(SECOND, 3, "UPDATE notes SET mood = 'glad'")
    with closing(opened(path, third)) as connection:
        assert connection.execute("SELECT text, mood FROM notes").fetchall() == [
            ("a", "glad"), ("b", "glad"), ("c", "glad"),
        ]  # fmt: skip
    assert version(path.with_name("notes.db.v1.bak")) == 1


def test_a_column_more_in_the_prediction_ledger_that_version_010_wrote(tmp_path: Path) -> None:
    file = Path(shutil.copy(DATA / "state" / "predictions.db", tmp_path))
    before = contents(file, "predictions")
    statement = "ALTER TABLE predictions ADD COLUMN venue TEXT"
    schema = later(rows.SCHEMA, 3, statement, predictions={"venue": "TEXT"})
    page, _ = LedgerReader(file, schema=schema).page(Wanted(), limit=1000)
    assert len(page) == len(before) > 0
    assert contents(file, "predictions") == [{**row, "actions": None, "venue": None} for row in before]
    assert contents(file.with_name("predictions.db.v1.bak"), "predictions") == before


def test_a_column_more_in_the_multiple_testing_log_that_version_010_wrote(tmp_path: Path) -> None:
    file = Path(shutil.copy(DATA / "state" / "ledgers.db", tmp_path))
    before = {name: contents(file, name) for name in ("readings", "reading_symbols")}
    statement = "ALTER TABLE readings ADD COLUMN venue TEXT NOT NULL DEFAULT ''"
    schema = later(multiple_testing_log.SCHEMA, 3, statement, readings={"venue": "TEXT NOT NULL DEFAULT ''"})
    connection = SqliteMultipleTestingLog(file, schema=schema)._opened()
    with closing(connection), pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("DELETE FROM readings")
    kept = file.with_name("ledgers.db.v1.bak")
    assert (version(file), version(kept)) == (3, 1)
    assert contents(file, "readings") == [{**row, "venue": ""} for row in before["readings"]] != []
    assert contents(file, "reading_symbols") == before["reading_symbols"] != []
    assert {name: contents(kept, name) for name in before} == before


def described(path: Path, schema: Schema) -> tuple[list[Any], list[list[Any]]]:
    """Tables, indices and triggers, and each table's columns."""
    with closing(sqlite3.connect(path)) as connection:
        kinds = connection.execute("SELECT type, name FROM sqlite_schema ORDER BY name").fetchall()
        return kinds, [connection.execute(f"PRAGMA table_info({each.name})").fetchall() for each in schema.tables]


def test_a_prediction_ledger_of_version_010_is_migrated_once_and_keeps_every_row(tmp_path: Path) -> None:
    source = DATA / "state" / "predictions.db"
    file, kept = Path(shutil.copy(source, tmp_path)), tmp_path / "predictions.db.v1.bak"
    with closing(opened(file, rows.SCHEMA)) as connection:
        rows.SCHEMA.check(connection)
    assert (version(file), version(kept)) == (2, 1)
    assert contents(file, "predictions") == [{**row, "actions": None} for row in contents(source, "predictions")] != []
    SqliteStore(tmp_path / "new.db", rows.SCHEMA, timeout_s=10.0).create()
    assert described(file, rows.SCHEMA) == described(tmp_path / "new.db", rows.SCHEMA)
    kept.unlink()
    opened(file, rows.SCHEMA).close()
    assert list(tmp_path.glob("*.bak")) == []


def test_a_multiple_testing_log_of_version_010_is_migrated_once_and_keeps_every_row(tmp_path: Path) -> None:
    schema, source = multiple_testing_log.SCHEMA, DATA / "state" / "ledgers.db"
    file, kept = Path(shutil.copy(source, tmp_path)), tmp_path / "ledgers.db.v1.bak"
    with closing(opened(file, schema)) as connection:
        schema.check(connection)
    assert (version(file), version(kept)) == (2, 1)
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(kept)) as copy:
        assert list(copy.iterdump()) == list(original.iterdump())
    for name in ("readings", "reading_symbols"):
        assert contents(file, name) == contents(source, name) != []
    SqliteStore(tmp_path / "new.db", schema, timeout_s=10.0).create()
    assert described(file, schema) == described(tmp_path / "new.db", schema)
    kept.unlink()
    opened(file, schema).close()
    assert list(tmp_path.glob("*.bak")) == []
