"""Outcomes from the feature store: training's own labels, once, and an end to asking for what never comes."""

import logging
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import UpstreamError
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, to_ms
from ml_workbench_service.contracts.market import FeatureTable
from ml_workbench_service.contracts.outcomes import PredictionOutcome
from ml_workbench_service.contracts.training import parse_target
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.learning.data.labelling import label_tables
from ml_workbench_service.learning.data.splits import Borders
from ml_workbench_service.market import calendar
from ml_workbench_service.market.calendar import DAY_MS, HOUR_MS
from ml_workbench_service.market.class_labels import break_even
from ml_workbench_service.market.costs import resolved_costs, session_spread
from ml_workbench_service.workflows.settle_outcomes import GIVE_UP_MS, OutcomeResolver, Resolved, resolve_overdue
from tests.ledger_entries import answered, keep, making, opened
from tests.trained_models import InjectedBars, injected_bars

NUM_BARS = 400
MISSING = (200, 201, 260)
Matured = list[tuple[str, str, str, int, float]]


class Intervals:
    """Remembers what it was taught."""

    def __init__(self) -> None:
        self.matured: Matured = []

    def mature(self, model_id: str, version: str, symbol: str, as_of_ms: int, realised: float) -> bool:
        """See `LiveIntervals`."""
        self.matured.append((model_id, version, symbol, as_of_ms, realised))
        return True


class Away:
    """A feature store that is not there."""

    def fetch(self, *_: Any, **__: Any) -> list[FeatureTable]:
        """Fails."""
        raise UpstreamError("the feature store is away; start it")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not needed")


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> tuple[InjectedBars, LocalFeatureStore]:
    """Hours of EUR/USD with some missing, in a folder."""
    whole = injected_bars(NUM_BARS, seed=1)
    kept = np.delete(np.arange(NUM_BARS), MISSING)
    found = InjectedBars(whole.opened_ms[kept], whole.close[kept], whole.signal[kept], whole.r2)
    folder = tmp_path_factory.mktemp("bars")
    found.write(folder, "EUR/USD")
    return found, LocalFeatureStore(FolderBars(folder, fixings=no_fixings))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[PredictionLedger]:
    with opened(tmp_path / "predictions.db") as ledger:
        yield ledger


def moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC)


def ask(ledger: PredictionLedger, at_ms: Sequence[int], target: str, **changes: Any) -> None:
    """Answers without a price, as of these moments; their ids are their places."""
    parsed, bar_ms = parse_target(target), TIMEFRAMES_MS[changes.get("timeframe", "1h")]
    entries = [
        answered(
            prediction_id=f"{place}",
            target=target,
            **{
                "as_of": moment(as_of_ms),
                "timestamp": moment(as_of_ms),
                "valid_until": moment(int(calendar.advance(as_of_ms, parsed.horizon * bar_ms))),
                "price": None,
                **changes,
            },
        )
        for place, as_of_ms in enumerate(at_ms)
    ]
    keep(ledger, *entries, of=making(target, barrier_width=0.5))


def outcomes(ledger: PredictionLedger, num: int) -> list[PredictionOutcome]:
    return [ledger.get(f"{place}").outcome for place in range(num)]


@pytest.mark.parametrize(
    "target", ["price_change_1h", "log_return_4h", "volatility_3h", "direction_2h", "triple_barrier_5h"]
)
def test_what_is_settled_is_what_training_would_have_labelled(
    ledger: PredictionLedger, bars: tuple[InjectedBars, LocalFeatureStore], target: str
) -> None:
    """Every bar that training labels, to the bit, weekends and gaps included; of the others, why there is none."""
    _, store = bars
    table = store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["close"])[0]
    costs = {"EUR/USD": resolved_costs("EUR/USD")}
    labelling = label_tables(
        [table], features=["close"], columns=[table.columns], targets=(parse_target(target),), costs=costs,
        barrier_width=0.5,
    )  # fmt: skip
    labels = labelling.rows[0].labels_NK[:, 0] - (1 if parse_target(target).classes else 0)
    intervals, rows = Intervals(), np.arange(130, len(table))
    as_of = [int(table.available_at_ms[row]) + 90_000 * (row % 3) for row in rows]  # some callers come late
    ask(ledger, as_of, target, price=None)
    if target == "direction_2h":  # training's costs follow the session, which a record states
        with_costs(ledger, table, rows, as_of)
    settled = resolve_overdue(ledger, store, intervals, now_ms=int(table.available_at_ms[-1]) + DAY_MS)
    found = outcomes(ledger, len(rows))
    for row, each in zip(rows.tolist(), found, strict=True):
        if each.state == "known":
            assert each.realised == labels[row]
            assert each.source == "feature_store"
        else:
            assert np.isnan(labels[row])
            assert each.state == "open" or each.reason in ("closure", "missing_bar")
    assert settled.num_known == int(np.isfinite(labels[rows]).sum()) == len(intervals.matured)
    assert {each[4] for each in intervals.matured} <= set(labels[rows].tolist())
    assert any(each.reason == "closure" for each in found)


def test_barriers_of_a_version_with_a_season_lie_where_its_training_put_them(
    ledger: PredictionLedger, bars: tuple[InjectedBars, LocalFeatureStore]
) -> None:
    _, store = bars
    table = store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["close"])[0]
    labelling = label_tables(
        [table], features=["close"], columns=[table.columns], targets=(parse_target("triple_barrier_5h"),),
        costs={"EUR/USD": resolved_costs("EUR/USD")}, barrier_width=0.5,
    )  # fmt: skip
    without_season = labelling.rows[0].labels_NK[:, 0] - 1
    (rows,) = labelling.finish(Borders({"validation": int(table.available_at_ms[len(table) // 2])}))
    labels, asked = rows.labels_NK[:, 0] - 1, np.arange(130, 330)
    assert np.nansum(labels[asked] != without_season[asked]) > 5
    ask(ledger, table.available_at_ms[asked].tolist(), "triple_barrier_5h", price=None)
    now_ms = int(table.available_at_ms[-1]) + DAY_MS
    resolve_overdue(ledger, store, Intervals(), now_ms=now_ms, profiles_of=lambda *_: labelling.profiles)
    found = outcomes(ledger, len(asked))
    assert [each.realised for each in found if each.state == "known"] == [
        label for label in labels[asked].tolist() if np.isfinite(label)
    ]


def test_barriers_of_a_version_that_is_gone_lie_nobody_knows_where(
    ledger: PredictionLedger, bars: tuple[InjectedBars, LocalFeatureStore]
) -> None:
    found, store = bars
    ask(ledger, (found.opened_ms[150:152] + HOUR_MS).tolist(), "triple_barrier_5h", price=None)
    resolve_overdue(ledger, store, Intervals(), profiles_of=lambda *_: None)
    assert [each.reason for each in outcomes(ledger, 2)] == ["no_volatility"] * 2


def test_daily_fixings_are_settled_over_weekends_holidays_and_changes_of_the_clock(ledger: PredictionLedger) -> None:
    """The embedded sample's real rates: every answer of two years, as training labels it."""
    store, target = LocalFeatureStore(SampleRates()), parse_target("log_return_2d")
    start_ms = to_ms(datetime(2022, 1, 1, tzinfo=UTC))
    table = store.fetch(["EUR/USD"], "1d", start_ms=start_ms, end_ms=None, features=["close"], as_of_ms=None)[0]
    costs = {"EUR/USD": resolved_costs("EUR/USD")}
    labels = label_tables(
        [table], features=["close"], columns=[table.columns], targets=(target,), costs=costs
    ).rows[0].labels_NK[:500, 0]  # fmt: skip
    ask(ledger, table.available_at_ms[:500].tolist(), "log_return_2d", timeframe="1d")
    assert resolve_overdue(ledger, store, Intervals()).num_known == 500
    assert [each.realised for each in outcomes(ledger, 500)] == labels.tolist()


def with_costs(ledger: PredictionLedger, table: FeatureTable, rows: Any, as_of: Sequence[int]) -> None:
    """Gives each row the break-even that training takes at its bar."""
    costs = resolved_costs("EUR/USD")
    spread = session_spread(costs, "EUR/USD", table.available_at_ms, calendar="fx")
    values = break_even(costs, "EUR/USD", np.asarray(table.columns["close"]), spread)
    assert len(rows) == len(as_of)
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        connection.executemany(
            "UPDATE predictions SET break_even = ? WHERE prediction_id = ?",
            [(float(values[row]), f"{place}") for place, row in enumerate(rows.tolist())],
        )


def test_a_bar_that_is_missing_for_good_ends_the_asking_with_its_reason(
    ledger: PredictionLedger, bars: tuple[InjectedBars, LocalFeatureStore]
) -> None:
    injected, store = bars
    before_gap, last = int(injected.opened_ms[199]) + HOUR_MS, int(injected.opened_ms[-1]) + HOUR_MS
    within_gap = before_gap + HOUR_MS + 60_000
    ask(ledger, [before_gap, within_gap, last], "price_change_1h", timestamp=moment(last))
    now_ms = last + 2 * HOUR_MS
    assert resolve_overdue(ledger, store, Intervals(), now_ms=now_ms) == Resolved(num_postponed=3)
    assert resolve_overdue(ledger, store, Intervals(), now_ms=now_ms) == Resolved(), "not asked again at once"
    pauses = []
    while (due := ledger.overdue(2**60, limit=9)) and len(pauses) < 6:
        pauses.append(due[-1].num_tries)
        now_ms += HOUR_MS
        resolve_overdue(ledger, store, Intervals(), now_ms=now_ms)
    assert pauses == [1, 2, 3, 4, 5, 6]
    assert resolve_overdue(ledger, store, Intervals(), now_ms=last + HOUR_MS + GIVE_UP_MS + DAY_MS) == Resolved(
        num_unavailable=3
    )
    assert [each.reason for each in outcomes(ledger, 3)] == ["missing_bar", "no_bar", "not_known_yet"]
    assert ledger.overdue(2**60, limit=9) == []


def test_a_price_of_another_market_is_not_settled_with_this_stores_closes(
    ledger: PredictionLedger, bars: tuple[InjectedBars, LocalFeatureStore]
) -> None:
    injected, store = bars
    as_of_ms = int(injected.opened_ms[150]) + HOUR_MS
    close = float(injected.close[150])
    ask(ledger, [as_of_ms], "price_change_1h", price=close * 1.02)
    assert resolve_overdue(ledger, store, Intervals()).num_unavailable == 1
    assert outcomes(ledger, 1)[0].reason == "other_prices"


def test_a_symbol_that_the_store_does_not_serve_waits_and_is_given_up(
    ledger: PredictionLedger, bars: tuple[InjectedBars, LocalFeatureStore]
) -> None:
    _, store = bars
    ask(ledger, [int(bars[0].opened_ms[150])], "price_change_1h", symbol="GBP/USD")
    resolve_overdue(ledger, store, Intervals(), now_ms=int(bars[0].opened_ms[150]) + DAY_MS)
    assert outcomes(ledger, 1)[0].state == "open"
    resolve_overdue(ledger, store, Intervals())
    assert outcomes(ledger, 1)[0].reason == "not_served"


def test_an_outcome_that_a_price_or_a_caller_told_first_is_not_asked_for_and_teaches_once(
    ledger: PredictionLedger, bars: tuple[InjectedBars, LocalFeatureStore]
) -> None:
    injected, store = bars
    ask(ledger, (injected.opened_ms[150:153] + HOUR_MS).tolist(), "price_change_1h")
    ledger.tell("1", 0.5, at_ms=0)
    intervals = Intervals()
    resolve_overdue(ledger, store, intervals)
    resolve_overdue(ledger, store, intervals)
    assert len(intervals.matured) == 2
    assert outcomes(ledger, 3)[1].realised == 0.5


def test_a_store_that_is_away_is_said_once_and_tried_again_with_growing_pauses(
    ledger: PredictionLedger, bars: tuple[InjectedBars, LocalFeatureStore], caplog: pytest.LogCaptureFixture
) -> None:
    injected, store = bars
    ask(ledger, [int(injected.opened_ms[150]) + HOUR_MS], "price_change_1h")
    resolver = OutcomeResolver(ledger, Away(), Intervals(), every_s=0.02)
    with caplog.at_level(logging.INFO):
        resolver.start()
        wait_for(lambda: resolver.num_failures >= 3)
        resolver._store = store
        wait_for(lambda: ledger.get("0").outcome.state == "known")
        resolver.stop()
    said = [each.getMessage() for each in caplog.records if "settled" in each.getMessage()]
    assert len([each for each in said if "the feature store is away" in each]) == 1


def wait_for(is_true: Any, timeout_s: float = 200.0) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        threading.Event().wait(0.01)


def test_nothing_overdue_asks_nobody(ledger: PredictionLedger) -> None:
    assert resolve_overdue(ledger, Away(), Intervals()) == Resolved()
    keep(ledger, answered(0))
    assert resolve_overdue(ledger, Away(), Intervals(), now_ms=to_ms(answered(0).record.as_of)) == Resolved()


LIGHT = """
import sys
from pathlib import Path
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.workflows.settle_outcomes import resolve_overdue
store = LocalFeatureStore(FolderBars(Path(sys.argv[1])))
store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["close"])
heavy = {"torch", "mlflow", "talib", "sklearn", "optuna"} & set(sys.modules)
assert not heavy, heavy
"""


def test_closes_are_fetched_without_indicators_or_torch(tmp_path: Path) -> None:
    injected_bars(50, seed=1).write(tmp_path, "EUR/USD")
    subprocess.run([sys.executable, "-c", LIGHT, str(tmp_path)], check=True, timeout=60, cwd=Path(__file__).parents[2])
