"""What was seen of a user's columns, and when: the first sighting holds, and a changed value was never seen."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from ml_workbench_service.contracts.market import NEVER_MS
from ml_workbench_service.integrations.column_witness import KEPT_BARS, SqliteColumnWitness
from ml_workbench_service.market.calendar import HOUR_MS

SERIES = ("EUR/USD", "1h")
OPENED = HOUR_MS * np.arange(10, dtype=np.int64)
VALUES = np.arange(10.0)
VALUES[4] = np.nan


@pytest.fixture
def witness(tmp_path: Path) -> SqliteColumnWitness:
    """A new one."""
    return SqliteColumnWitness(tmp_path / "state" / "witnesses.db")


def seen(witness: SqliteColumnWitness, values: np.ndarray = VALUES, column: str = "own") -> list[int]:
    """When each value was seen."""
    return [int(each) for each in witness.seen_ms(SERIES, column, opened_ms=OPENED, values_N=values)]


def test_each_value_has_the_moment_of_the_look_that_saw_it_first(witness: SqliteColumnWitness) -> None:
    witness.observe(SERIES, opened_ms=OPENED[:6], columns={"own": VALUES[:6]}, now_ms=100)
    witness.observe(SERIES, opened_ms=OPENED[:8], columns={"own": VALUES[:8]}, now_ms=200)
    assert seen(witness) == [100] * 6 + [200] * 2 + [NEVER_MS] * 2
    assert seen(witness, column="other") == [NEVER_MS] * 10


def test_a_value_that_changed_after_it_was_seen_was_never_seen_and_stays_so(witness: SqliteColumnWitness) -> None:
    witness.observe(SERIES, opened_ms=OPENED, columns={"own": VALUES}, now_ms=100)
    changed = VALUES.copy()
    changed[3], changed[4] = -1.0, 0.0  # a hole that was filled later is a change too
    assert seen(witness, changed) == [100] * 3 + [NEVER_MS] * 2 + [100] * 5
    again = SqliteColumnWitness(witness._store.path)  # another process, which remembers nothing
    again.observe(SERIES, opened_ms=OPENED, columns={"own": changed}, now_ms=200)
    assert seen(again, changed) == [100] * 3 + [NEVER_MS] * 2 + [100] * 5
    assert seen(again) == [100] * 10


def test_a_first_look_notes_the_newest_bars_alone(witness: SqliteColumnWitness) -> None:
    opened = HOUR_MS * np.arange(KEPT_BARS + 5, dtype=np.int64)
    values = np.zeros(len(opened))
    witness.observe(SERIES, opened_ms=opened, columns={"own": values}, now_ms=100)
    found = witness.seen_ms(SERIES, "own", opened_ms=opened, values_N=-values)
    assert found.tolist() == [NEVER_MS] * 5 + [100] * KEPT_BARS  # minus zero is zero


def test_what_was_seen_can_neither_be_changed_nor_removed(witness: SqliteColumnWitness) -> None:
    witness.observe(SERIES, opened_ms=OPENED, columns={"own": VALUES, "more": VALUES}, now_ms=100)
    assert witness.watched() == {SERIES: ("own", "more")}
    connection = sqlite3.connect(witness._store.path)
    for statement in ("UPDATE sightings SET seen_ms = 1", "DELETE FROM sightings", "DELETE FROM watched"):
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            connection.execute(statement)
    connection.close()


def test_a_file_that_cannot_be_written_stops_no_reading_and_proves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    witness = SqliteColumnWitness(tmp_path / "state" / "witnesses.db")
    for moment in (100, 200):
        witness.observe(SERIES, opened_ms=OPENED, columns={"own": VALUES}, now_ms=moment)
    assert len(caplog.records) == 1
    assert "not witnessed" in caplog.records[0].message
    assert set(seen(witness)) == {NEVER_MS}
