"""The service's own looks at users' columns: in the first tenth of a bar, at what was read before."""

from datetime import timedelta
from pathlib import Path

import pytest

from ml_workbench_service.contracts.market import NEVER_MS
from ml_workbench_service.integrations.column_witness import SqliteColumnWitness
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.testing.clocks import FixedClock
from ml_workbench_service.workflows.watch_columns import LONGEST_PAUSE_S, ColumnWatch, is_due
from tests.trained_models import injected_bars

NUM = 200


def test_a_look_is_due_while_it_can_still_witness_something() -> None:
    hour = 400_000 * HOUR_MS
    assert [is_due("1h", hour + minutes * 60_000) for minutes in (0, 6, 7, 59)] == [True, True, False, False]
    assert is_due("1d", hour + DAY_MS // 2)


def test_what_was_read_once_is_seen_as_the_file_grows(tmp_path: Path) -> None:
    bars = injected_bars(NUM, seed=4)
    first_ms = int(bars.opened_ms[-3]) + HOUR_MS
    clock = FixedClock.at_ms(first_ms)
    witness = SqliteColumnWitness(tmp_path / "witnesses.db")
    bars.write(tmp_path, "EUR/USD")
    store = LocalFeatureStore(FolderBars(tmp_path, fixings=no_fixings), witness=witness, clock=clock)
    watch = ColumnWatch(store, witness.watched, clock=clock)
    assert watch.look() == LONGEST_PAUSE_S
    assert witness.watched() == {}  # nobody has ever read it
    store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["close"], last=1)
    clock.moment += timedelta(minutes=90)
    watch.look()  # too late to witness anything, so nobody looks
    clock.moment += timedelta(minutes=30)
    assert watch.look() == pytest.approx(LONGEST_PAUSE_S)
    (table,) = store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["signal"])
    seen = witness.seen_ms(
        ("EUR/USD", "1h"), "signal", opened_ms=table.opened_ms, values_N=table.columns["signal"]
    ).tolist()
    assert seen[-3:] == [first_ms, first_ms + 2 * HOUR_MS, first_ms + 2 * HOUR_MS]
    assert NEVER_MS not in seen
