"""The ledger keeps what was answered and what came true: under every filter, once, and no more than it may."""

import contextlib
import sqlite3
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import OutcomeConflictError, PredictionNotFoundError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.prediction_ledger.reader import LedgerReader, Wanted
from ml_workbench_service.market.outcomes.live_evidence import UNKNOWN_ACTION
from tests.ledger_entries import INPUTS, answered, keep, making, opened, states
from tests.prediction_records import MONDAY

MONDAY_MS = to_ms(MONDAY)
HOUR_MS = 3_600_000
EVERYTHING = Wanted()
ABSTAINS: dict[str, Any] = {
    "status": "abstain", "prediction": None, "confidence": None, "interval": None, "direction": "hold",
    "abstain_reasons": ["novel_input"],
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions.db"


def test_an_answer_comes_back_as_it_was_given(path: Path) -> None:
    entry = answered(3)
    with opened(path) as ledger:
        keep(ledger, entry)
        row, record = ledger.get(entry.record.prediction_id), entry.record
    for name in ("model_id", "version", "symbol", "timeframe", "target", "as_of", "valid_until", "sample", "status",
                 "price", "prediction", "direction", "confidence", "interval", "label"):  # fmt: skip
        assert getattr(row, name) == getattr(record, name), name
    assert record.novelty is not None
    assert row.novelty == record.novelty.score
    assert (row.outcome.state, row.outcome.realised) == ("open", None)
    rows = ledger.live_rows("model", "1.0.0", limit=10)
    assert rows.inputs_MF.tolist() == [INPUTS.tolist()]
    assert (rows.volatility_N[0], rows.side_N[0]) == (0.001, 1)


def test_live_answers_are_those_of_one_version_and_symbol_about_what_its_training_did_not_know(path: Path) -> None:
    late = {"timestamp": MONDAY + timedelta(hours=1, minutes=5), "prediction": 0.0002}
    others = ({"symbol": "GBP/USD"}, {"version": "1.1.0", "version_id": "1.1.0"}, {"sample": "test"})
    with opened(path) as ledger:
        keep(ledger, answered(0, **ABSTAINS), answered(1, **late))
        keep(ledger, *(answered(7 + number, **changes) for number, changes in enumerate(others)))
        found = ledger.live_answers("model", "1.0.0", "EUR/USD")
    assert found.as_of_ms_N.tolist() == [to_ms(MONDAY), to_ms(MONDAY + timedelta(hours=1))]
    assert found.answered_ms_N.tolist() == [to_ms(MONDAY), to_ms(MONDAY + timedelta(hours=1, minutes=5))]
    assert found.abstains_N.tolist() == [True, False]
    assert np.isnan(found.prediction_N[0])
    assert found.prediction_N[1] == 0.0002
    assert found.break_even_N[1] > 0


def test_live_answers_of_a_policy_say_what_follows_from_each_position(path: Path) -> None:
    closed = {**ABSTAINS, "abstain_reasons": ["market_closed"]}
    with opened(path) as ledger:
        keep(
            ledger,
            answered(0, metadata={"actions_by_position": (1, 0, 1)}),
            answered(1, **ABSTAINS),
            answered(2, **closed),
            answered(3),
        )
        found = ledger.live_answers("model", "1.0.0", "EUR/USD").actions_N3
    assert found is not None
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [-1, 0, 1], [UNKNOWN_ACTION] * 3]


def test_a_ledger_of_before_the_actions_is_read_and_goes_on(path: Path) -> None:
    with opened(path) as ledger:
        keep(ledger, answered(0))
    with closing(sqlite3.connect(path)) as connection:  # as the version before left it
        connection.execute("ALTER TABLE predictions DROP COLUMN actions")
        connection.execute("PRAGMA user_version = 1")
    with opened(path) as ledger:
        keep(ledger, answered(1))
        found = ledger.live_answers("model", "1.0.0", "EUR/USD")
    assert len(found.as_of_ms_N) == 2
    assert path.with_name(f"{path.name}.v1.bak").is_file()


def test_a_ledger_without_a_row_has_no_answers(path: Path) -> None:
    with opened(path) as ledger:
        assert len(ledger.live_answers("model", "1.0.0", "EUR/USD").as_of_ms_N) == 0


def test_the_next_bars_price_settles_an_answer_sampled_or_not_and_of_whichever_version(path: Path) -> None:
    with opened(path) as ledger:
        keep(ledger, answered(0, price=1.1), answered(1, price=1.21, version="1.1.0", version_id="1.1.0"))
        keep(ledger, answered(2, price=1.1), is_sampled=False)
        keep(ledger, answered(0, model_id="other", prediction_id="other"), of=making("volatility_1h"))
        shown, _ = ledger.page(EVERYTHING, limit=10)
    outcomes = {row.prediction_id: row.outcome for row in shown}
    assert set(outcomes) == {"EUR/USD-0", "EUR/USD-1", "other"}
    first = outcomes["EUR/USD-0"]
    assert (first.state, first.realised, first.source) == ("known", 1.21 / 1.1 - 1, "stream")
    assert first.at == MONDAY + timedelta(hours=1)
    assert outcomes["EUR/USD-1"].realised == 1.1 / 1.21 - 1
    assert outcomes["other"].state == "open"


def test_directions_and_barriers_are_classes_by_the_answers_own_costs_and_volatility(path: Path) -> None:
    with opened(path) as ledger:
        for number, price in enumerate((1.1, 1.10005, 1.11, 1.10)):
            keep(ledger, answered(number, price=price, model_id="direction", prediction_id=f"d{number}"),
                 of=making("direction_1h"))  # fmt: skip
            keep(ledger, answered(number, price=price, model_id="barrier", prediction_id=f"b{number}",
                                  valid_until=MONDAY + timedelta(hours=number + 2)),
                 of=making("triple_barrier_2h", barrier_width=2.0))  # fmt: skip
        found = {row.prediction_id: row.outcome.realised for row in ledger.page(EVERYTHING, limit=20)[0]}
    assert [found[f"d{number}"] for number in range(4)] == [0.0, 1.0, -1.0, None]
    assert [found[f"b{number}"] for number in range(4)] == [1.0, 1.0, None, None]


def test_what_foretells_nothing_has_no_outcome_and_a_horizon_over_a_closure_never_will(path: Path) -> None:
    friday = answered(118, prediction_id="friday", valid_until=MONDAY + timedelta(hours=167))
    with opened(path) as ledger:
        keep(ledger, answered(0, **ABSTAINS), friday)
        keep(ledger, answered(0, prediction_id="score", target=None), of=making(None))
        keep(ledger, answered(0, prediction_id="regime", target="market_regime"), of=making("market_regime"))
        assert ledger.get("EUR/USD-0").outcome.state == "none"
        assert ledger.get("EUR/USD-0").abstain_reasons == ("novel_input",)
        assert ledger.get("score").outcome.state == "none"
        assert ledger.get("regime").outcome.state == "open"
        assert (ledger.get("friday").outcome.state, ledger.get("friday").outcome.reason) == ("unavailable", "closure")
        assert ledger.overdue(2**60, limit=10) == [], "no price tells of a regime"
        assert ledger.num_by_state() == {"open": 1, "known": 0, "unavailable": 1, "none": 2}


def test_a_list_is_paged_newest_first_under_every_filter(path: Path) -> None:
    chance = np.random.default_rng(0)
    entries = [
        answered(
            number,
            prediction_id=f"p{number}",
            model_id=str(chance.choice(["a", "b"])),
            version=(version := str(chance.choice(["1.0.0", "1.1.0"]))),
            version_id=version,
            symbol=str(chance.choice(["EUR/USD", "GBP/USD"])),
            price=float(chance.choice([1.0, 1.5])),
        )
        for number in range(120)
    ]
    with opened(path) as ledger:
        keep(ledger, *entries)
        everything, _ = ledger.page(EVERYTHING, limit=200)
        assert [row.prediction_id for row in everything] == [f"p{number}" for number in range(119, -1, -1)]
        first, last = MONDAY_MS + 10 * HOUR_MS, MONDAY_MS + 90 * HOUR_MS
        wanted: list[dict[str, Any]] = [
            {"model_id": "a"}, {"version": "1.1.0"}, {"symbol": "GBP/USD"}, {"from_ms": first}, {"to_ms": last},
            {"is_known": True}, {"is_known": False}, {"model_id": "b", "version": "1.0.0", "symbol": "EUR/USD"},
            {"model_id": "a", "from_ms": first, "to_ms": last, "is_known": True}, {"model_id": "none"},
        ]  # fmt: skip
        for each in wanted:
            walked, before = [], None
            while True:
                shown, before = ledger.page(Wanted(**each), limit=7, before=before)
                walked += shown
                if before is None:
                    break
            names = {"from_ms", "to_ms", "is_known"}
            kept = [
                row
                for row in everything
                if all(getattr(row, name) == value for name, value in each.items() if name not in names)
                and each.get("from_ms", 0) <= to_ms(row.as_of) <= each.get("to_ms", 2**60)
                and each.get("is_known") in (None, row.outcome.state == "known")
            ]
            assert walked == kept, each


def test_a_callers_outcome_is_known_once(path: Path) -> None:
    with opened(path) as ledger:
        keep(ledger, answered(0))
        told, is_news = ledger.tell("EUR/USD-0", 0.01, at_ms=MONDAY_MS + HOUR_MS)
        assert is_news
        assert (told.outcome.state, told.outcome.realised, told.outcome.source) == ("known", 0.01, "caller")
        again, is_news = ledger.tell("EUR/USD-0", 0.01 * (1 + 1e-12), at_ms=MONDAY_MS + 2 * HOUR_MS)
        assert not is_news
        assert again == told
        with pytest.raises(OutcomeConflictError, match="source caller"):
            ledger.tell("EUR/USD-0", 0.02, at_ms=MONDAY_MS + HOUR_MS)
        keep(ledger, answered(1, price=2.0))
        assert ledger.get("EUR/USD-0") == told, "a later price changes nothing"
        with pytest.raises(PredictionNotFoundError, match="GET /api/v1/predictions"):
            ledger.tell("nobody", 0.0, at_ms=0)


def test_who_abstained_has_nothing_to_report_but_an_unavailable_outcome_may_be_reported(path: Path) -> None:
    with opened(path) as ledger:
        friday = answered(118, prediction_id="friday", valid_until=MONDAY + timedelta(hours=167))
        keep(ledger, answered(0, **ABSTAINS), friday)
        with pytest.raises(OutcomeConflictError, match="abstained"):
            ledger.tell("EUR/USD-0", 0.0, at_ms=MONDAY_MS)
        told, is_news = ledger.tell("friday", 0.5, at_ms=MONDAY_MS)
        assert is_news
        assert (told.outcome.state, told.outcome.reason) == ("known", None)
        assert ledger.num_by_state() == states(path)


def test_before_anything_was_written_there_is_nothing_and_no_file(path: Path) -> None:
    with opened(path) as ledger:
        assert ledger.page(EVERYTHING, limit=10) == ([], None)
        assert ledger.overdue(2**60, limit=10) == []
        assert len(ledger.live_rows("model", "1.0.0", limit=10)) == 0
        with pytest.raises(PredictionNotFoundError):
            ledger.get("x")
    assert not path.exists()


def test_the_oldest_rows_leave_and_the_counts_say_what_is_there(path: Path) -> None:
    with opened(path, max_rows=100) as ledger:
        for start in range(0, 1000, 50):
            keep(ledger, *(answered(number, symbol=["EUR/USD", "GBP/USD"][number % 2], prediction_id=f"p{number}")
                           for number in range(start, start + 50)))  # fmt: skip
            assert sum(states(path).values()) <= 100
            assert ledger.num_by_state() == states(path)
        shown, _ = ledger.page(EVERYTHING, limit=200)
    assert 90 <= len(shown) <= 100
    assert [row.prediction_id for row in shown] == [f"p{number}" for number in range(999, 999 - len(shown), -1)]


def record_many(ledger: PredictionLedger, place: int, num: int) -> None:
    for number in range(num):
        ledger.record(
            answered(number, model_id=f"m{place}", prediction_id=f"{place}-{number}"), making(), is_sampled=True
        )


def read_until(ledger: PredictionLedger, stop: threading.Event) -> None:
    """Pages, live rows and outcomes told; a second outcome for the same record is a conflict, and no fault."""
    while not stop.is_set():
        shown, _ = ledger.page(EVERYTHING, limit=20)
        ledger.live_rows("m0", "1.0.0", limit=100)
        with contextlib.suppress(OutcomeConflictError):
            for row in shown[:1]:
                ledger.tell(row.prediction_id, 0.5, at_ms=0)


def test_many_threads_record_and_read_at_once(path: Path) -> None:
    num_threads, num_each, stop = 4, 400, threading.Event()
    with opened(path) as ledger, ThreadPoolExecutor(num_threads + 2) as pool:
        readers = [pool.submit(read_until, ledger, stop) for _ in range(2)]
        try:
            writers = [pool.submit(record_many, ledger, place, num_each) for place in range(num_threads)]
            for writer in writers:
                writer.result()
            assert ledger.flush(20.0)
        finally:
            stop.set()
        for reader in readers:
            reader.result()
        assert ledger.num_unwritten == 0
        assert sum(states(path).values()) == num_threads * num_each
        assert ledger.num_by_state() == states(path)


def test_after_a_start_what_waited_is_settled_by_the_next_price(path: Path) -> None:
    with opened(path) as before:
        keep(before, answered(0, price=1.0))
    with opened(path) as after:
        keep(after, answered(1, price=1.5))
        assert after.get("EUR/USD-0").outcome.realised == 0.5
        assert after.num_by_state() == states(path)


def test_reading_many_answers_takes_little_more_memory_than_their_columns(path: Path) -> None:
    with opened(path) as ledger:
        keep(ledger, *(answered(number) for number in range(200)))
    with closing(sqlite3.connect(path)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(predictions)")]
        others = ", ".join(name for name in columns if name not in ("number", "prediction_id"))
        for copy in range(150):
            query = f"INSERT INTO predictions (prediction_id, {others}) SELECT prediction_id || ?, {others} "
            connection.execute(f"{query} FROM predictions ORDER BY number LIMIT 200", (f"-{copy}",))
        connection.commit()
    reader = LedgerReader(path)

    def bytes_beside(read: Callable[[], Any]) -> float:
        """The most that was held while it read, by what it returned."""
        read()
        tracemalloc.start()
        try:
            kept = read()
            now, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(kept.as_of_ms_N) == 30_200
        return most / now

    assert bytes_beside(lambda: reader.live_answers("model", "1.0.0", "EUR/USD")) < 4
    assert bytes_beside(lambda: reader.live_rows("model", "1.0.0", limit=50_000)) < 5
