"""Whatever befalls the ledger's file, predictions go on, and what memory could hold is written once it is over."""

import json
import logging
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from common_lib.exceptions import UnavailableError
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.prediction_ledger.reader import Wanted
from ml_workbench_service.integrations.prediction_ledger.rows import SCHEMA
from tests.ledger_entries import answered, awaited, keep, making, num_waiting, opened, states

ROOT = Path(__file__).parents[3]
EVERYTHING = Wanted()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions.db"


def test_a_full_queue_drops_and_counts_and_record_never_fails(path: Path) -> None:
    ledger = PredictionLedger(path, capacity=10)
    for number in range(25):
        ledger.record(answered(number), making(), is_sampled=True)
        ledger.record(answered(number), making(), is_sampled=False)
    assert num_waiting(ledger) == 10
    assert ledger.num_unwritten == 20
    ledger.start()
    ledger.close()
    assert sum(states(path).values()) == 5


def test_while_the_file_is_locked_answers_wait_and_then_they_are_written(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(path, timeout_s=0.05) as ledger, caplog.at_level(logging.INFO):
        keep(ledger, answered(0))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            keep(ledger, answered(1), answered(2))
            keep(ledger, answered(3))
            assert num_waiting(ledger) == 3
            with pytest.raises(UnavailableError, match="locked"):
                ledger.tell("EUR/USD-0", 0.0, at_ms=0)
            other.execute("ROLLBACK")
        awaited(lambda: num_waiting(ledger) == 0)
        assert ledger.num_unwritten == 0
        assert sum(states(path).values()) == 4
    said = [each.getMessage() for each in caplog.records]
    assert len([each for each in said if "is not written" in each]) == 1
    assert len([each for each in said if "is written again" in each]) == 1


FULL_DISK = """
import json, resource, sys
from pathlib import Path
from tests.ledger_entries import answered, keep, making, num_waiting, opened
path = Path(sys.argv[1])
with opened(path) as ledger:
    keep(ledger, answered(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))  # no file may grow beyond it
    for number in range(1, 600):
        ledger.record(answered(number), making(), is_sampled=True)
    ledger.flush(10.0)
    while_full = num_waiting(ledger)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    while num_waiting(ledger):
        ledger.flush(10.0)
    print(json.dumps([while_full, ledger.num_unwritten, sum(ledger.num_by_state().values())]))
"""


def test_a_full_disk_loses_nothing_that_fits_into_memory(path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    while_full, num_unwritten, num_rows = json.loads(ended.stdout)
    assert while_full > 0, "the limit never hurt"
    assert (num_unwritten, num_rows) == (0, 600)
    assert sum(states(path).values()) == 600


KILLED = """
import sys
from pathlib import Path
from tests.ledger_entries import answered, making, opened
with opened(Path(sys.argv[1])) as ledger:
    number = 0
    while True:
        for _ in range(50):
            ledger.record(answered(number), making(), is_sampled=True)
            number += 1
        ledger.flush(10.0)
        print(number, flush=True)
"""


def test_a_killed_process_loses_no_more_than_the_batch_it_was_writing(path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(6):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    told = int(rest[-1]) if rest else told
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    found = sum(states(path).values())
    assert told <= found <= told + 50
    with opened(path) as ledger:
        keep(ledger, answered(found))
        assert sum(ledger.num_by_state().values()) == found + 1


def test_a_damaged_file_is_said_and_a_new_one_begun_once_it_is_moved_away(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)
    with opened(path) as ledger:
        keep(ledger, answered(0))
        assert num_waiting(ledger) == 1
        with pytest.raises(UnavailableError, match="move it away"):
            ledger.page(EVERYTHING, limit=1)
        path.rename(tmp_path / "kept")
        awaited(lambda: num_waiting(ledger) == 0)
        assert ledger.get("EUR/USD-0").outcome.state == "open"


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    with opened(path) as ledger:
        keep(ledger, answered(0))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA.version + 1}")
    with opened(path) as ledger:
        keep(ledger, answered(1))
        with pytest.raises(UnavailableError, match=r"newer version.*Upgrade"):
            ledger.page(EVERYTHING, limit=1)
    assert sum(states(path).values()) == 1
