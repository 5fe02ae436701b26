"""Multiple-testing log: what was noted is never lost, changed or counted twice, whoever writes and whoever dies."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common_lib.exceptions import DataValidationError, UnavailableError
from ml_workbench_service.contracts.multiple_testing import EvaluationResult, PartRead, Subject, Trial
from ml_workbench_service.integrations.multiple_testing_log import log as module
from ml_workbench_service.integrations.multiple_testing_log.log import SCHEMA, SqliteMultipleTestingLog
from ml_workbench_service.market.return_fingerprint import ReturnFingerprint

AT = datetime(2025, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ROOT = Path(__file__).resolve().parents[2]
YEARS = {(datetime(2000, 1, 1) + timedelta(days=day)).strftime("%Y-%m-%d"): 1 / (day + 1) for day in range(1000)}


def part(name: str = "job-1", *, start: int = 0, end: int = 100, subject: Subject = "price", at: datetime = AT,
         symbols: tuple[str, ...] = ("EUR/USD",)) -> PartRead:  # fmt: skip
    return PartRead(id=name, subject=subject, symbols=symbols, start_ms=start, end_ms=end, at=at, model_id="model")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledgers.db"


@pytest.fixture
def multiple_testing(file: Path) -> SqliteMultipleTestingLog:
    return SqliteMultipleTestingLog(file)


def test_evaluations_of_overlapping_parts_add_up_and_the_same_id_counts_once(
    multiple_testing: SqliteMultipleTestingLog,
) -> None:
    assert multiple_testing.record_evaluation(part("a", start=0, end=100)) == 1
    assert multiple_testing.record_evaluation(part("b", start=50, end=150)) == 2
    assert multiple_testing.record_evaluation(part("a", start=0, end=100)) == 2
    assert multiple_testing.record_evaluation(part("c", start=100, end=200)) == 2  # meets b, touches a
    assert multiple_testing.num_evaluations(part("asks only", start=0, end=200)) == 3
    assert multiple_testing.num_evaluations(part("asks only", start=200, end=300)) == 0
    assert multiple_testing.num_evaluations(part("asks only", start=0, end=200)) == 3


def test_a_shared_symbol_and_the_same_subject_make_an_overlap(multiple_testing: SqliteMultipleTestingLog) -> None:
    multiple_testing.record_evaluation(part("a", symbols=("EUR/USD", "GBP/USD")))
    assert multiple_testing.num_evaluations(part(symbols=("GBP/USD", "USD/JPY"))) == 1
    assert multiple_testing.num_evaluations(part(symbols=("USD/JPY",))) == 0
    assert multiple_testing.num_evaluations(part(symbols=("EUR/USD", "GBP/USD"), subject="volatility")) == 0


def test_trials_come_back_as_they_were_noted_oldest_first(multiple_testing: SqliteMultipleTestingLog) -> None:
    days = {"2025-02-28": 1e-17, "2025-02-27": -3.3}
    first = Trial(read=part("job/1", symbols=("USD/JPY", "EUR/USD")), sharpe=0.1 + 0.2, daily_returns=days)
    second = Trial(read=part("job/0", symbols=("EUR/USD",)))
    for trial in (first, second, first.model_copy(update={"sharpe": 9.0})):
        multiple_testing.record_trial(trial)
    found = multiple_testing.trials(part("asks only"))
    assert [each.read.id for each in found] == ["job/1", "job/0"]
    assert found[1] == second
    assert found[0].model_copy(update={"read": second.read}) == first.model_copy(update={"read": second.read})
    assert list(found[0].daily_returns) == ["2025-02-28", "2025-02-27"]
    assert set(found[0].read.symbols) == {"JPY/USD", "EUR/USD"}
    assert multiple_testing.num_trials(part("asks only")) == 2
    assert multiple_testing.num_evaluations(part("asks only")) == 0, "trials are no evaluations"
    assert multiple_testing.trials(part(symbols=("USD/JPY",)))[0].read.id == "job/1"


Reads = st.builds(
    lambda name, start, num, names, subject: part(name, start=start, end=start + num, symbols=names, subject=subject),
    st.sampled_from([f"job-{number}" for number in range(12)]),
    st.integers(-20, 20),
    st.integers(1, 15),
    st.lists(st.sampled_from(["EUR/USD", "GBP/USD", "USD/JPY"]), min_size=1, max_size=3, unique=True).map(tuple),
    st.sampled_from(get_args(Subject)),
)
Steps = st.lists(st.tuples(st.sampled_from(["evaluate", "ask", "try", "reopen"]), Reads), max_size=25)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=Steps)
def test_they_agree_with_a_list_in_memory(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, PartRead]]
) -> None:
    file = tmp_path_factory.mktemp("ledgers") / "ledgers.db"
    multiple_testing = SqliteMultipleTestingLog(file)
    noted: dict[str, dict[str, PartRead]] = {"look": {}, "trial": {}}

    def overlapping(kind: str, read: PartRead) -> list[str]:
        return [
            each.id
            for each in noted[kind].values()
            if max(each.start_ms, read.start_ms) < min(each.end_ms, read.end_ms)
            and set(each.symbols) & set(read.symbols)
            and each.subject == read.subject
        ]

    for verb, read in steps:
        if verb == "reopen":
            multiple_testing = SqliteMultipleTestingLog(file)
        elif verb == "evaluate":
            noted["look"].setdefault(read.id, read)
            assert multiple_testing.record_evaluation(read) == len(overlapping("look", read))
        elif verb == "try":
            noted["trial"].setdefault(read.id, read)
            multiple_testing.record_trial(Trial(read=read))
        assert multiple_testing.num_evaluations(read) == len(overlapping("look", read))
        assert [each.read.id for each in multiple_testing.trials(read)] == overlapping("trial", read)
        assert multiple_testing.num_trials(read) == len(overlapping("trial", read))


def test_nothing_is_created_before_the_first_row(multiple_testing: SqliteMultipleTestingLog, file: Path) -> None:
    assert (
        multiple_testing.num_evaluations(part()),
        multiple_testing.num_trials(part()),
        multiple_testing.trials(part()),
    ) == (0, 0, [])
    assert not file.parent.exists()
    multiple_testing.record_evaluation(part())
    assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sqlite3.connect(file).execute("PRAGMA user_version").fetchone() == (SCHEMA.version,)


@pytest.mark.parametrize(
    "sentence",
    [
        "UPDATE readings SET end_ms = 1",
        "UPDATE readings SET id = 'b'",
        "DELETE FROM readings",
        "UPDATE reading_symbols SET symbol = 'x'",
        "DELETE FROM reading_symbols",
    ],
)
def test_rows_cannot_be_changed_or_removed(
    multiple_testing: SqliteMultipleTestingLog, file: Path, sentence: str
) -> None:
    multiple_testing.record_evaluation(part("a"))
    connection = sqlite3.connect(file)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(sentence)
    connection.close()
    assert multiple_testing.num_evaluations(part()) == 1


def test_not_even_a_replacing_insert_changes_a_row(multiple_testing: SqliteMultipleTestingLog, file: Path) -> None:
    multiple_testing.record_evaluation(part("a"))
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute(
        "INSERT OR REPLACE INTO readings (number, kind, id, subject, start_ms, end_ms, at, model_id) "
        "VALUES (1, 'look', 'other', 'price', 900, 901, '', '')"
    )
    connection.execute(
        "INSERT OR REPLACE INTO readings (kind, id, subject, start_ms, end_ms, at, model_id) "
        "VALUES ('look', 'a', 'price', 900, 901, '', '')"
    )
    connection.close()
    assert (multiple_testing.num_evaluations(part()), multiple_testing.num_evaluations(part(start=900, end=901))) == (
        1,
        0,
    )


def test_parts_without_time_or_symbols_are_refused(multiple_testing: SqliteMultipleTestingLog, file: Path) -> None:
    for wrong in (part(start=5, end=5), part(start=6, end=5), part(symbols=())):
        for ask in (
            multiple_testing.record_evaluation,
            multiple_testing.num_evaluations,
            multiple_testing.trials,
            multiple_testing.num_trials,
        ):
            with pytest.raises(DataValidationError, match="borders"):
                ask(wrong)
        with pytest.raises(DataValidationError, match="borders"):
            multiple_testing.record_trial(Trial(read=wrong))
    assert not file.exists()


def run_python(script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from ml_workbench_service.contracts.multiple_testing import PartRead, Trial
from ml_workbench_service.integrations.multiple_testing_log.log import SqliteMultipleTestingLog
log = SqliteMultipleTestingLog(Path(sys.argv[1]))
days = {f"2024-01-{day:02}": day / 7 for day in range(1, 29)}
for number in range(int(sys.argv[3])):
    read = PartRead(id=f"{sys.argv[2]}/{number}", subject="price", symbols=("EUR/USD", "GBP/USD"), start_ms=0, end_ms=9,
                    at=datetime.now(tz=UTC))
    counted = log.record_evaluation(read)
    log.record_trial(Trial(read=read, sharpe=0.5, daily_returns=days))
    print(counted, flush=True)
"""


def test_several_processes_and_threads_write_at_once_from_the_very_first_row(file: Path) -> None:
    processes = [run_python(WRITER, str(file), name, "15") for name in ("a", "b")]
    counted: list[int] = []
    lock = threading.Lock()

    def write(name: str) -> None:
        multiple_testing = SqliteMultipleTestingLog(file)
        for number in range(15):
            found = multiple_testing.record_evaluation(part(f"{name}/{number}", start=0, end=9))
            with lock:
                counted.append(found)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("d", "e")]
    for thread in threads:
        thread.start()
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        counted += map(int, out.split())
    for thread in threads:
        thread.join()
    assert sorted(counted) == list(range(1, 61)), "every evaluation has a number of its own"
    assert SqliteMultipleTestingLog(file).num_trials(part(start=0, end=9)) == 30


def test_a_kill_in_the_middle_of_writing_loses_no_row_that_was_counted(file: Path) -> None:
    done = 0
    for attempt in range(2):
        process = run_python(WRITER, str(file), f"life-{attempt}", "100000")
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(5 + 4 * attempt)]
        os.kill(process.pid, signal.SIGKILL)
        said += map(int, process.stdout.read().split())
        process.wait()
        process.stdout.close()
        assert said[0] == done + 1, "the next life goes on where the last one ended"
        multiple_testing = SqliteMultipleTestingLog(file)
        evaluations, trials = (
            multiple_testing.num_evaluations(part(start=0, end=9)),
            multiple_testing.trials(part(start=0, end=9)),
        )
        assert said[-1] <= evaluations <= said[-1] + 1
        assert len(said) <= sum(each.read.id.startswith(f"life-{attempt}/") for each in trials) <= len(said) + 1
        assert all(len(each.daily_returns) == 28 and len(each.read.symbols) == 2 for each in trials)
        done = evaluations


def test_a_full_disk_counts_nothing_and_says_so(multiple_testing: SqliteMultipleTestingLog, file: Path) -> None:
    """A real SQLITE_FULL: no page may be added to the file."""
    multiple_testing.record_evaluation(part("a"))

    class Full(SqliteMultipleTestingLog):
        def _opened(self) -> sqlite3.Connection:
            connection = super()._opened()
            connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size at least
            return connection

    with pytest.raises(UnavailableError, match=r"disk is full.*could not be written.*free some space"):
        Full(file).record_trial(Trial(read=part("t"), daily_returns=YEARS))
    assert (multiple_testing.num_trials(part()), multiple_testing.num_evaluations(part())) == (0, 1)
    multiple_testing.record_trial(Trial(read=part("t"), daily_returns=YEARS))
    assert multiple_testing.num_trials(part()) == 1


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(UnavailableError, match="cannot be opened or written"):
        SqliteMultipleTestingLog(tmp_path / "state" / "ledgers.db").record_evaluation(part())


def test_a_process_that_holds_the_file_for_too_long_is_told_of(
    multiple_testing: SqliteMultipleTestingLog, file: Path
) -> None:
    multiple_testing.record_evaluation(part("a"))
    impatient = SqliteMultipleTestingLog(file, timeout_s=0.1)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked; try again") as caught:
        impatient.record_evaluation(part("b"))
    assert caught.value.retry_after_s == 5
    assert multiple_testing.num_evaluations(part()) == 1, "reading goes on"
    other.close()
    assert multiple_testing.record_evaluation(part("b")) == 2


def damaged(file: Path, kind: str) -> None:
    whole = file.read_bytes()
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("no database at all" * 100)
    elif kind == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "zeroes":
        file.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    elif kind == "index":  # a page of the index says that it holds one entry, and nothing else is wrong
        [(page,)] = sqlite3.connect(file).execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'readings_by_subject'"
        )
        place = (page - 1) * 4096 + 3
        file.write_bytes(whole[:place] + bytes((0, 1)) + whole[place + 2 :])
    elif kind == "foreign":
        file.unlink()
        sqlite3.connect(file).executescript("CREATE TABLE t (x)")


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "zeroes", "index", "foreign"])
def test_a_damaged_file_is_an_error_and_never_a_smaller_count(file: Path, kind: str) -> None:
    first = SqliteMultipleTestingLog(file)
    for number in range(60):
        first.record_evaluation(part(f"job-{number}"))
    damaged(file, kind)
    for ask in (
        SqliteMultipleTestingLog(file).num_evaluations,
        SqliteMultipleTestingLog(file).record_evaluation,
        SqliteMultipleTestingLog(file).trials,
    ):
        with pytest.raises(UnavailableError, match=r"damaged or no multiple-testing log.*restore.*move"):
            ask(part())


def test_a_file_of_a_newer_version_is_left_alone(multiple_testing: SqliteMultipleTestingLog, file: Path) -> None:
    multiple_testing.record_evaluation(part())
    sqlite3.connect(file).execute(f"PRAGMA user_version = {SCHEMA.version + 1}")
    for ask in (multiple_testing.record_evaluation, multiple_testing.num_evaluations):
        with pytest.raises(UnavailableError, match="newer version"):
            ask(part())


def test_a_log_without_its_file_is_a_loss_and_said(multiple_testing: SqliteMultipleTestingLog, file: Path) -> None:
    multiple_testing.record_evaluation(part())
    reader = sqlite3.connect(file)  # keeps the log
    reader.execute("SELECT count(*) FROM readings").fetchone()
    multiple_testing.record_evaluation(part("b"))
    assert file.with_name("ledgers.db-wal").exists()
    file.unlink()
    for ask in (SqliteMultipleTestingLog(file).record_evaluation, SqliteMultipleTestingLog(file).num_evaluations):
        with pytest.raises(UnavailableError, match="restore both from a backup"):
            ask(part())
    reader.close()


def test_daily_returns_of_older_trials_are_left_out_once_they_would_fill_the_memory(
    multiple_testing: SqliteMultipleTestingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(60):
        multiple_testing.record_trial(Trial(read=part(f"job/{number}"), sharpe=number / 7, daily_returns=YEARS))
    monkeypatch.setattr(module, "MOST_DAYS", 10_000)
    tracemalloc.start()
    found = multiple_testing.trials(part())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [each.read.id for each in found] == [f"job/{number}" for number in range(60)], "all count"
    assert [each.sharpe for each in found] == [number / 7 for number in range(60)]
    assert [len(each.daily_returns) for each in found] == [0] * 50 + [1000] * 10
    assert found[-1].daily_returns == YEARS
    assert most < 3_000_000


def test_a_note_waits_for_the_disk(multiple_testing: SqliteMultipleTestingLog) -> None:
    """`synchronous = FULL` on every connection; 2 is its number."""
    multiple_testing.record_evaluation(part())
    connection = multiple_testing._opened()
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.close()


def series(symbol: str = "EUR/USD", *, seed: int = 0, inverted: bool = False) -> ReturnFingerprint:
    moves = np.random.default_rng(seed).standard_normal(200)
    days = 86_400_000 * np.arange(1, 201)
    return ReturnFingerprint.of(symbol, days, np.exp(0.01 * np.cumsum(-moves if inverted else moves)))


def told(p_value: float | None, differentials: bytes = b"rows") -> EvaluationResult:
    return EvaluationResult(p_value, 10, 20, "columns", differentials)


def test_all_recipes_on_one_series_and_subject_are_one_family(multiple_testing: SqliteMultipleTestingLog) -> None:
    log = multiple_testing
    log.record_evaluation(part("a"), recipe="A", series=[series()])
    log.record_result("a", told(0.01))
    log.record_evaluation(part("b", start=500, end=600, symbols=("USD/EUR",)), recipe="B",
                          series=[series("USD/EUR", inverted=True)])  # fmt: skip
    log.record_result("b", told(0.2))
    log.record_evaluation(part("c", start=900, end=950, symbols=("MY/OWN",)), recipe="C", series=[series("MY/OWN")])
    assert log.other_p_values("a") == (0.2, None), "other names and times, the third was never told"
    assert log.other_p_values("c") == (0.01, 0.2)
    log.record_evaluation(part("other"), recipe="D", series=[series(seed=7)])
    log.record_evaluation(part("regime", subject="regime"), recipe="E", series=[series()])
    assert log.other_p_values("a") == (0.2, None), "another series of the same name, and another subject"
    assert log.other_p_values("other") == log.other_p_values("nobody") == ()


def test_many_evaluations_are_answered_in_one_reading_and_alike(multiple_testing: SqliteMultipleTestingLog) -> None:
    log = multiple_testing
    for number in range(15):
        name = f"job-{number}"
        own = [series(seed=number % 3)]
        log.record_evaluation(part(name, start=number, end=number + 40), recipe=f"R{number % 7}", series=own)
        log.record_result(name, told(0.01 * (number + 1)))
        log.record_trial(Trial(read=part(f"{name}/trial", start=number, end=number + 10)))
        log.record_trial(Trial(read=part(f"{name}/agent/1", start=number, end=number + 10)))
    log.record_evaluation(part("volatile", subject="volatility"), recipe="V", series=[series()])
    names = [*(f"job-{number}" for number in range(15)), "volatile", "nobody"]
    alone = {each: SqliteMultipleTestingLog(log.path).other_p_values(each) for each in names}
    assert alone["volatile"] == alone["nobody"] == ()
    assert alone["job-0"].count(None) == 14, "other jobs' trials, without those of agents' grids"
    reader = SqliteMultipleTestingLog(log.path)
    with statements_of(reader) as statements:
        assert reader.other_p_values_of(names) == alone
        first = len(statements)
        assert reader.other_p_values_of(names[::-1]) == alone
    assert first < len(names), "it was read for all of them at once"
    assert len(statements) == first, "nothing is read again while nobody has written"
    log.record_evaluation(part("one more"), recipe="new", series=[series()])
    assert len(reader.other_p_values("job-0")) == len(alone["job-0"]) + 1
    log.record_result("one more", told(0.5))
    assert 0.5 in reader.other_p_values("job-0")


@contextmanager
def statements_of(log: SqliteMultipleTestingLog) -> Iterator[list[str]]:
    """The SELECTs that reading it takes from here on."""
    found: list[str] = []
    opened = log._opened

    def traced(*, any_thread: bool = False) -> sqlite3.Connection:
        connection = opened(any_thread=any_thread)
        connection.set_trace_callback(lambda text: found.append(text) if text.startswith("SELECT") else None)
        return connection

    log._opened = traced  # type: ignore[method-assign]
    yield found


def test_a_recipe_is_one_hypothesis_with_its_latest_answer(multiple_testing: SqliteMultipleTestingLog) -> None:
    log = multiple_testing
    log.record_evaluation(part("judged"), recipe="J", series=[series()])
    for number, p_value in enumerate((0.4, 0.03, None)):
        log.record_evaluation(part(f"r{number}"), recipe="R", series=[series()])
        if p_value is not None:
            log.record_result(f"r{number}", told(p_value, b"%d" % number))
    assert log.other_p_values("judged") == (0.03,), "the third training was killed"
    assert log.other_p_values("r0") == (None,), "its own later trainings are itself"
    assert [each.differentials for each in log.results("R")] == [b"0", b"1"]
    assert log.results("R")[1] == told(0.03, b"1")
    assert log.results("nobody") == []


def test_what_has_no_recipe_counts_where_it_overlaps_in_time(multiple_testing: SqliteMultipleTestingLog) -> None:
    log = multiple_testing
    log.record_evaluation(part("old"))
    log.record_evaluation(part("late", start=500, end=600))
    log.record_evaluation(part("mine", start=50, end=80), recipe="M", series=[series()])
    log.record_evaluation(part("mine/walk", start=50, end=80))
    assert log.other_p_values("mine") == (None,), "one earlier evaluation; its own walk tells of the same model"


def test_a_result_is_noted_once_and_never_changed(multiple_testing: SqliteMultipleTestingLog, file: Path) -> None:
    multiple_testing.record_evaluation(part("a"), recipe="A", series=[series()])
    multiple_testing.record_result("a", told(0.01))
    multiple_testing.record_result("a", told(0.0001))
    multiple_testing.record_evaluation(part("a"), recipe="another", series=[series(seed=3)])
    assert [each.p_value for each in multiple_testing.results("A")] == [0.01]
    assert multiple_testing.results("another") == []
    with pytest.raises(DataValidationError):
        multiple_testing.record_result("nobody", told(0.5))
    with closing(sqlite3.connect(file)) as connection:
        for table in ("hypotheses", "hypothesis_series", "return_series", "results"):
            (num,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            assert num == 1
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(f"DELETE FROM {table}")
