"""Conformance suite of feature stores: what every one keeps, whoever wrote it.

    from ml_workbench_service.testing.feature_stores import FeatureStoreConformance, StoredBars

    class TestMyStore(FeatureStoreConformance):
        @pytest.fixture(scope="class")
        def stored(self) -> StoredBars:
            return StoredBars(MyStore(...), data_source="feature_store")

A store serves only bars that were known at `as_of`, the same row to the bit whatever range is asked for, and refuses
what it does not have with a sentence that names what it has.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable

FEATURES = ("close", "sma_20", "rsi_14", "macd", "bb_width")
"""The least that a store serves."""
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True)
class StoredBars:
    """A store, and which hourly bars it holds.

    Attributes:
        store: the store under test.
        data_source: what its tables declare.
        symbols: two that it has.
        start: of a range with more than 300 bars and a weekend; there are bars before it, twenty at least.
        end: of that range; there are bars after it.
        optional: features that it describes and does not have for every symbol.
    """

    store: FeatureStore
    data_source: str
    symbols: tuple[str, str] = ("EUR/USD", "GBP/USD")
    start: str = "2023-01-09"
    end: str = "2023-01-28"
    optional: Collection[str] = ("volume", "spread")

    @property
    def start_ms(self) -> int:
        """The first moment of the range."""
        return _ms(self.start)

    @property
    def end_ms(self) -> int:
        """The moment after its last."""
        return _ms(self.end)

    def fetch(self, **changes: Any) -> list[FeatureTable]:
        """Both symbols' hourly tables over the range, but for these arguments of `FeatureStore.fetch`."""
        wanted: dict[str, Any] = {
            "symbols": self.symbols,
            "timeframe": "1h",
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
            "features": FEATURES,
            **changes,
        }
        return self.store.fetch(wanted.pop("symbols"), wanted.pop("timeframe"), **wanted)


class FeatureStoreConformance:
    """What a feature store keeps; a subclass, or its `conftest.py`, has the fixture `stored`."""

    def test_tables_come_in_the_order_asked_with_the_symbols_spelt_alike(self, stored: StoredBars) -> None:
        """`gbp_usd`, `GBPUSD` and `GBP/USD` are one symbol, and it is answered as `GBP/USD`."""
        first, second = stored.symbols
        tables = stored.fetch(symbols=[second.lower().replace("/", "_"), first.replace("/", "")])
        assert [table.symbol for table in tables] == [second, first]
        assert {table.timeframe for table in tables} == {"1h"}
        assert {table.data_source for table in tables} == {stored.data_source}

    def test_columns_are_the_asked_ones_in_order_and_as_long_as_the_bars(self, stored: StoredBars) -> None:
        """Float64, in order of time, and a bar is known when it is over."""
        for table in stored.fetch():
            assert tuple(table.columns) == FEATURES
            assert all(column.dtype == np.float64 and len(column) == len(table) for column in table.columns.values())
            assert np.all(np.diff(table.opened_ms) > 0)
            assert np.array_equal(table.available_at_ms, table.opened_ms + HOUR_MS)
            assert len(table) > 300
            assert np.all(table.columns["close"] > 0)

    def test_start_is_inclusive_and_end_exclusive(self, stored: StoredBars) -> None:
        """Both are moments at which a bar opens: two ranges that meet share no bar."""
        whole = stored.fetch()[0].opened_ms
        part = stored.fetch(start_ms=int(whole[5]), end_ms=int(whole[9]))[0].opened_ms
        assert part.tolist() == whole[5:9].tolist()

    def test_a_row_is_the_same_to_the_bit_whatever_range_is_asked_for(self, stored: StoredBars) -> None:
        """Usual cause: a recursive mean (EMA, RSI) that begins where the range does; compute from the first bar."""
        whole = stored.fetch()[0]
        part = stored.fetch(start_ms=int(whole.opened_ms[100]), end_ms=int(whole.opened_ms[103]))[0]
        for name in FEATURES:
            assert part.columns[name].tolist() == whole.columns[name][100:103].tolist()

    def test_only_bars_known_at_as_of_are_served(self, stored: StoredBars) -> None:
        """A bar that closes at that very moment is known; one that closes a millisecond later is not."""
        whole = stored.fetch()[0]
        moment = int(whole.available_at_ms[50])
        assert stored.fetch(as_of_ms=moment)[0].opened_ms[-1] == whole.opened_ms[50]
        assert stored.fetch(as_of_ms=moment - 1)[0].opened_ms[-1] == whole.opened_ms[49]

    def test_an_as_of_in_the_future_brings_no_bar_that_is_not_over(self, stored: StoredBars) -> None:
        """Whatever moment is asked about, the bar under way stays out: its values still change."""
        now = stored.fetch(start_ms=None, end_ms=None, last=3)
        future = stored.fetch(start_ms=None, end_ms=None, last=3, as_of_ms=_ms("2090-01-02"))
        assert [table.opened_ms.tolist() for table in now] == [table.opened_ms.tolist() for table in future]

    def test_last_keeps_the_newest_bars_of_what_is_left(self, stored: StoredBars) -> None:
        """It counts after range and `as_of` have been applied."""
        whole = stored.fetch()[0]
        assert stored.fetch(last=7)[0].opened_ms.tolist() == whole.opened_ms[-7:].tolist()
        backwards = stored.fetch(start_ms=None, last=30, as_of_ms=int(whole.available_at_ms[-1]))[0]
        assert backwards.opened_ms.tolist() == whole.opened_ms[-30:].tolist()

    def test_an_open_range_reaches_the_first_and_the_last_bar(self, stored: StoredBars) -> None:
        """A feature without enough bars is missing, not made up: the first 19 of a mean over 20 are NaN."""
        whole = stored.fetch(start_ms=None, end_ms=None)[0]
        assert whole.opened_ms[0] < stored.start_ms
        assert whole.opened_ms[-1] >= stored.end_ms
        assert np.isnan(whole.columns["sma_20"][:19]).all()
        assert np.isfinite(whole.columns["sma_20"][19:]).all()

    def test_an_unknown_feature_is_refused_with_the_nearest_known_one(self, stored: StoredBars) -> None:
        """Of a misspelt name the answer names what was meant."""
        with pytest.raises(DataValidationError, match="sma_20"):
            stored.fetch(features=["close", "smaa_20"])

    def test_an_unknown_symbol_is_refused_with_what_is_there(self, stored: StoredBars) -> None:
        """Never with another symbol's bars."""
        base = stored.symbols[0].partition("/")[0]
        with pytest.raises(DataValidationError, match=base):
            stored.fetch(symbols=[stored.symbols[0], f"{base}/XTS"])

    @pytest.mark.parametrize(("field", "value"), [("symbols", ["EURUSDX"]), ("timeframe", "7h")])
    def test_what_is_no_symbol_or_timeframe_is_refused(self, stored: StoredBars, field: str, value: Any) -> None:
        """As an error of the request (422), not of the store."""
        with pytest.raises(DataValidationError):
            stored.fetch(**{field: value})

    def test_a_range_without_a_bar_is_refused(self, stored: StoredBars) -> None:
        """A Saturday's hours are empty, and so is everything before the first bar was over."""
        days = range(stored.start_ms, stored.end_ms, DAY_MS)
        saturday = next(day for day in days if (day // DAY_MS + 4) % 7 == 6)  # 1970-01-01 was a Thursday, 4 of a week
        with pytest.raises(DataValidationError, match="range"):
            stored.fetch(start_ms=saturday + 6 * HOUR_MS, end_ms=saturday + 12 * HOUR_MS)
        with pytest.raises(DataValidationError, match="range"):
            stored.fetch(as_of_ms=stored.start_ms)

    def test_every_described_feature_can_be_fetched_and_has_its_kind(self, stored: StoredBars) -> None:
        """`describe` is what `GET /features` shows: each example works as it stands, `kind_of` says its kind."""
        described = [entry for entry in stored.store.describe() if entry.name not in stored.optional]
        names = [entry.example for entry in described]
        table = stored.fetch(symbols=stored.symbols[:1], features=names)[0]
        assert tuple(table.columns) == tuple(names)
        assert len(names) >= len(FEATURES)
        assert all(stored.store.kind_of(entry.example) == entry.kind for entry in described)
        assert stored.store.kind_of("sma_20") == "level"
        assert stored.store.kind_of("rsi_14") == "stationary"

    def test_the_series_that_it_lists_reach_from_the_first_to_the_last_bar(self, stored: StoredBars) -> None:
        """`series` is what `GET /series` shows; a store that cannot list them lists none."""
        whole = stored.fetch(start_ms=None, end_ms=None, features=["close"])
        for table in whole:
            for each in stored.store.series().series:
                if (each.symbol, each.timeframe) == (table.symbol, table.timeframe):
                    assert each.first is not None
                    assert each.last is not None
                    ends = [int(moment.timestamp() * 1000) for moment in (each.first, each.last)]
                    assert ends == [table.opened_ms[0], table.opened_ms[-1]]
                    assert each.num_rows == len(table)

    def test_it_says_that_it_is_well(self, stored: StoredBars) -> None:
        """`/health/ready` asks; where something is wrong it says what, and never raises."""
        assert stored.store.check().state == "ok"


def _ms(text: str) -> int:
    return int(np.datetime64(text, "ms").astype(np.int64))
