"""Expressions out of a feature store: of its own series and of others, point in time, the same bits in every range."""

from pathlib import Path

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import FeatureTable, Recomputing, recomputing
from ml_workbench_service.evaluation.leakage.perturbations import cut_after, replaced_after
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.features.expression_store import ExpressionStore
from tests.integrations.feature_store.bar_files import bars_frame, write_plain

EUR, GBP = "EUR/USD", "GBP/USD"
OWN = ("zscore(close, 50)", "rank(my_signal, 30)", "close / delay(close, 24) - 1", "sin_hour()")
OTHERS = (
    'ret("GBP/USD", 1)', 'at("1d", rsi_5)', 'at("4h", zscore(close, 20))', 'close / of("GBP/USD", sma_20)',
    'zscore(close / "GBP/USD", 50)', 'lag(at("1d", ret(close, 1)), 30)', 'at("4h", ret("GBP/USD", 3))',
)  # fmt: skip


@pytest.fixture(scope="module")
def store(folder_store: LocalFeatureStore) -> ExpressionStore:
    return ExpressionStore(folder_store)


def fetched(
    store: ExpressionStore, *features: str, symbol: str = EUR, timeframe: str = "1h", start_ms: int | None = None,
    as_of_ms: int | None = None, last: int | None = None,
) -> FeatureTable:  # fmt: skip
    return store.fetch(
        [symbol], timeframe, start_ms=start_ms, end_ms=None, features=features, as_of_ms=as_of_ms, last=last
    )[0]


def test_columns_come_under_the_texts_they_were_asked_by(store: ExpressionStore) -> None:
    asked = ("rsi_14", "zscore( close,50 )", "at('D1', rsi_5)", "close")
    assert tuple(fetched(store, *asked).columns) == asked


def test_a_row_is_the_same_to_the_bit_whatever_range_is_asked_for(store: ExpressionStore) -> None:
    whole = fetched(store, *OWN, *OTHERS)
    chance = np.random.default_rng(0)
    for row in chance.integers(900, len(whole) - 1, 8):
        begin = int(whole.opened_ms[row])
        from_there = fetched(store, *OWN, *OTHERS, start_ms=begin)
        as_known = fetched(store, *OWN, *OTHERS, as_of_ms=int(whole.available_at_ms[row]), last=1)
        assert from_there.opened_ms[0] == as_known.opened_ms[-1] == begin
        assert len(as_known) == 1
        for name in (*OWN, *OTHERS):
            wanted = whole.columns[name][row]
            assert np.array_equal(from_there.columns[name][0], wanted, equal_nan=True), name
            assert np.array_equal(as_known.columns[name][0], wanted, equal_nan=True), name


def test_most_rows_have_every_value(store: ExpressionStore) -> None:
    whole = fetched(store, *OWN[:1], *OTHERS)
    for name, column in whole.columns.items():
        assert np.isfinite(column[800:]).mean() > 0.9, name


@pytest.mark.parametrize("timeframe", ["4h", "1d"])
def test_a_coarser_bar_is_read_once_it_is_over_and_no_sooner(store: ExpressionStore, timeframe: str) -> None:
    coarse = fetched(store, "rsi_5", "close", timeframe=timeframe)
    hours = fetched(store, f'at("{timeframe}", rsi_5)', f'at("{timeframe}", close)', "close")
    chance = np.random.default_rng(1)
    num_read = 0
    for row in chance.choice(np.arange(400, len(hours)), 200, replace=False):
        over = np.flatnonzero(coarse.available_at_ms <= hours.available_at_ms[row])
        read = hours.columns[f'at("{timeframe}", close)'][row]
        if np.isfinite(read):
            num_read += 1
            assert read == coarse.columns["close"][over[-1]]
            assert hours.columns[f'at("{timeframe}", rsi_5)'][row] == coarse.columns["rsi_5"][over[-1]]
    assert num_read > 190


def test_another_symbols_bar_is_the_one_of_the_same_opening(store: ExpressionStore) -> None:
    other = fetched(store, "close", symbol=GBP)
    here = fetched(store, '"GBP/USD"', 'ret("GBP/USD", 3)')
    assert here.opened_ms.tolist() == other.opened_ms.tolist()
    assert here.columns['"GBP/USD"'].tobytes() == other.columns["close"].tobytes()
    moves = other.columns["close"][3:] / other.columns["close"][:-3] - 1
    known = np.isfinite(here.columns['ret("GBP/USD", 3)'][3:])
    np.testing.assert_array_equal(here.columns['ret("GBP/USD", 3)'][3:][known], moves[known])


def test_nothing_moves_before_a_moment_after_which_every_series_is_another(store: ExpressionStore) -> None:
    true = fetched(store, *OWN, *OTHERS)
    again = recomputing(store)
    assert again is not None
    for row in (900, 1000, 1111, len(true) - 30):
        moment_ms = int(true.available_at_ms[row])
        others = again.altered(lambda bars, moment_ms=moment_ms: replaced_after(bars, moment_ms, seed=3))
        shorter = again.altered(lambda bars, moment_ms=moment_ms: cut_after(bars, moment_ms))
        replaced = fetched(others, *OWN, *OTHERS)
        short = fetched(shorter, *OWN, *OTHERS)
        for name in (*OWN, *OTHERS):
            assert np.array_equal(true.columns[name][: row + 1], replaced.columns[name][: row + 1], equal_nan=True), (
                name
            )
            assert np.allclose(short.columns[name], true.columns[name][: row + 1], rtol=1e-9, equal_nan=True), name
        moved = [name for name in OTHERS if not np.array_equal(
            true.columns[name][row + 1 :], replaced.columns[name][row + 1 :], equal_nan=True)]  # fmt: skip
        assert len(moved) >= len(OTHERS) - 2  # a daily value may stand until the end


def test_a_bar_that_is_missing_there_is_a_missing_value_here(tmp_path: Path) -> None:
    euro, pound = bars_frame(seed=1, num_weeks=4), bars_frame(seed=2, num_weeks=4)
    gone = 200
    write_plain(tmp_path, "EURUSD_1h.csv", euro)
    write_plain(tmp_path, "GBPUSD_1h.csv", pound.with_row_index().filter(~_between("index", gone, 3)).drop("index"))
    store = ExpressionStore(LocalFeatureStore(FolderBars(tmp_path, fixings=no_fixings)))
    here = fetched(store, '"GBP/USD"', 'ret("GBP/USD", 1)', 'mean("GBP/USD", 3) / close')
    missing = {name: np.flatnonzero(np.isnan(column)).tolist() for name, column in here.columns.items()}
    assert missing['"GBP/USD"'] == [gone, gone + 1, gone + 2]
    assert missing['ret("GBP/USD", 1)'] == [0, gone, gone + 1, gone + 2, gone + 3]
    assert missing['mean("GBP/USD", 3) / close'] == [0, 1, *range(gone, gone + 5)]


def _between(name: str, first: int, num: int):  # type: ignore[no-untyped-def]
    import polars as pl

    return pl.col(name).is_between(first, first + num - 1)


def test_a_coarser_bar_that_never_came_is_not_stood_in_for_by_the_one_before(tmp_path: Path) -> None:
    write_plain(tmp_path, "EURUSD_1h.csv", bars_frame(seed=1, num_weeks=4))
    days = bars_frame(seed=1, num_weeks=4, timeframe="1d")
    gone_ms = int(days["opened_ms"][7])
    write_plain(tmp_path, "EURUSD_1d.csv", days.filter(days["opened_ms"] != gone_ms))
    store = ExpressionStore(LocalFeatureStore(FolderBars(tmp_path, fixings=no_fixings)))
    here = fetched(store, 'at("1d", close)')
    known = fetched(store, "close", timeframe="1d")
    after = np.flatnonzero((here.available_at_ms > gone_ms) & (here.available_at_ms < gone_ms + 72 * HOUR_MS))
    holes = here.opened_ms[after][np.isnan(here.columns['at("1d", close)'][after])]
    assert len(holes)
    assert holes[0] >= gone_ms + 24 * HOUR_MS  # it was due by then
    later = here.available_at_ms >= int(known.available_at_ms[known.opened_ms > gone_ms][0])
    assert np.isfinite(here.columns['at("1d", close)'][later]).all()


def test_what_cannot_be_read_is_refused_at_its_entry_and_character(store: ExpressionStore) -> None:
    for features, path, says in (
        (("close", "zscore(close, 2)"), "features.1", "at character 15"),
        (('ret("USD/SEK", 1)',), "", "USD/SEK"),
        (('at("15m", close)',), "features.0", "1h or coarser"),
        (("zscore(clse, 20)",), "", "close"),
    ):
        with pytest.raises(DataValidationError) as caught:
            fetched(store, *features)
        assert says in caught.value.message, features
        assert caught.value.details["errors"][0]["path"].startswith(path)


def test_simulated_hours_are_not_set_beside_real_days(sample_source: SampleRates) -> None:
    sample = ExpressionStore(LocalFeatureStore(sample_source))
    with pytest.raises(DataValidationError, match="two histories of prices"):
        fetched(sample, 'at("1d", rsi_14)', last=5)
    table = fetched(sample, 'at("4h", rsi_14)', 'ret("GBP/USD", 1)', last=5)
    assert np.isfinite(np.column_stack(list(table.columns.values()))).all()


def test_kinds_follow_from_units(store: ExpressionStore) -> None:
    assert store.kind_of("close") == "level"
    assert store.kind_of('close / of("GBP/USD", close)') == "level"
    assert store.kind_of('at("1d", my_signal)') == "stationary"
    with pytest.raises(DataValidationError, match="divide it by a price"):
        store.kind_of("diff(close, 1)")


def test_a_store_in_front_is_what_the_one_behind_is(folder_store: LocalFeatureStore) -> None:
    front = ExpressionStore(folder_store)
    assert front.describe() == folder_store.describe()
    assert front.check() == folder_store.check()
    assert front.witness is folder_store.witness
    assert isinstance(front, Recomputing)
