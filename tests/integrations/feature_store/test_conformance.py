"""What every feature store keeps, whoever implements it."""

from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import FeatureTable
from tests.integrations.conftest import Shelf

FEATURES = ("close", "sma_20", "rsi_14", "macd", "bb_width")
HOUR_MS = 3_600_000


def ms(text: str) -> int:
    return int(np.datetime64(text, "ms").astype(np.int64))


def fetch(shelf: Shelf, **changes: Any) -> list[FeatureTable]:
    wanted: dict[str, Any] = {"start_ms": ms(shelf.start), "end_ms": ms(shelf.end), "features": FEATURES, **changes}
    symbols = wanted.pop("symbols", ["EURUSD", "GBP/USD"])
    return shelf.store.fetch(symbols, wanted.pop("timeframe", "1h"), **wanted)


def test_tables_come_in_the_order_asked_with_the_symbols_spelt_alike(shelf: Shelf) -> None:
    tables = fetch(shelf, symbols=["gbp_usd", "EURUSD"])
    assert [table.symbol for table in tables] == ["GBP/USD", "EUR/USD"]
    assert {table.timeframe for table in tables} == {"1h"}
    assert {table.data_source for table in tables} == {shelf.data_source}


def test_columns_are_the_asked_ones_in_order_and_as_long_as_the_bars(shelf: Shelf) -> None:
    for table in fetch(shelf):
        assert tuple(table.columns) == FEATURES
        assert all(column.dtype == np.float64 and len(column) == len(table) for column in table.columns.values())
        assert np.all(np.diff(table.opened_ms) > 0)
        assert np.array_equal(table.available_at_ms, table.opened_ms + HOUR_MS)
        assert len(table) > 300
        assert np.all(table.columns["close"] > 0)


def test_start_is_inclusive_and_end_exclusive(shelf: Shelf) -> None:
    whole = fetch(shelf)[0].opened_ms
    part = fetch(shelf, start_ms=int(whole[5]), end_ms=int(whole[9]))[0].opened_ms
    assert part.tolist() == whole[5:9].tolist()


def test_a_row_is_the_same_to_the_bit_whatever_range_is_asked_for(shelf: Shelf) -> None:
    whole = fetch(shelf)[0]
    part = fetch(shelf, start_ms=int(whole.opened_ms[100]), end_ms=int(whole.opened_ms[103]))[0]
    for name in FEATURES:
        assert part.columns[name].tolist() == whole.columns[name][100:103].tolist()


def test_only_bars_known_at_as_of_are_served(shelf: Shelf) -> None:
    whole = fetch(shelf)[0]
    moment = int(whole.available_at_ms[50])
    assert fetch(shelf, as_of_ms=moment)[0].opened_ms[-1] == whole.opened_ms[50]
    assert fetch(shelf, as_of_ms=moment - 1)[0].opened_ms[-1] == whole.opened_ms[49]


def test_an_as_of_in_the_future_brings_no_bar_that_is_not_over(shelf: Shelf) -> None:
    now = fetch(shelf, start_ms=None, end_ms=None, last=3)
    future = fetch(shelf, start_ms=None, end_ms=None, last=3, as_of_ms=ms("2090-01-02"))
    assert [table.opened_ms.tolist() for table in now] == [table.opened_ms.tolist() for table in future]


def test_last_keeps_the_newest_bars_of_what_is_left(shelf: Shelf) -> None:
    whole = fetch(shelf)[0]
    assert fetch(shelf, last=7)[0].opened_ms.tolist() == whole.opened_ms[-7:].tolist()
    backwards = fetch(shelf, start_ms=None, last=30, as_of_ms=int(whole.available_at_ms[-1]))[0]
    assert backwards.opened_ms.tolist() == whole.opened_ms[-30:].tolist()


def test_an_open_range_reaches_the_first_and_the_last_bar(shelf: Shelf) -> None:
    whole = fetch(shelf, start_ms=None, end_ms=None)[0]
    assert whole.opened_ms[0] < ms(shelf.start)
    assert whole.opened_ms[-1] >= ms(shelf.end)
    assert np.isnan(whole.columns["sma_20"][:19]).all()
    assert np.isfinite(whole.columns["sma_20"][19:]).all()


def test_an_unknown_feature_is_refused_with_the_nearest_known_one(shelf: Shelf) -> None:
    with pytest.raises(DataValidationError, match="sma_20"):
        fetch(shelf, features=["close", "smaa_20"])


def test_an_unknown_symbol_is_refused_with_what_is_there(shelf: Shelf) -> None:
    with pytest.raises(DataValidationError, match="EUR"):
        fetch(shelf, symbols=["EUR/USD", "EUR/XTS"])


@pytest.mark.parametrize(("field", "value"), [("symbols", ["EURUSDX"]), ("timeframe", "7h"), ("timeframe", "1m")])
def test_what_is_no_symbol_or_timeframe_here_is_refused(shelf: Shelf, field: str, value: Any) -> None:
    with pytest.raises(DataValidationError):
        fetch(shelf, **{field: value})


def test_a_range_without_a_bar_is_refused(shelf: Shelf) -> None:
    saturday = ms("2023-01-14T06:00")
    with pytest.raises(DataValidationError, match="range"):
        fetch(shelf, start_ms=saturday, end_ms=saturday + 6 * HOUR_MS)
    with pytest.raises(DataValidationError, match="range"):
        fetch(shelf, as_of_ms=ms(shelf.start))


def test_every_described_feature_can_be_fetched_and_has_its_kind(shelf: Shelf) -> None:
    described = [entry for entry in shelf.store.describe() if entry.name not in ("volume", "spread", "my_signal")]
    names = [entry.example for entry in described]
    table = fetch(shelf, symbols=["EURUSD"], features=names)[0]
    assert tuple(table.columns) == tuple(names)
    assert len(names) > 25
    assert all(shelf.store.kind_of(entry.example) == entry.kind for entry in described)
    assert shelf.store.kind_of("ema_50") == "level"
    assert shelf.store.kind_of("rsi_7") == "stationary"


def test_it_says_that_it_is_well(shelf: Shelf) -> None:
    assert shelf.store.check().state == "ok"
