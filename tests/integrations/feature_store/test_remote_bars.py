"""A server that has bars: they are fetched once, the features are made here, and a certificate can make them again."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, UpstreamError
from ml_workbench_service.contracts.contract import iso_of_ms
from ml_workbench_service.contracts.market import recomputing
from ml_workbench_service.evaluation.leakage.perturbations import replaced_after
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.remote import RemoteFeatureStore
from ml_workbench_service.testing.clocks import FixedClock
from tests.integrations.feature_store.bar_files import bars_frame, write_plain
from tests.integrations.feature_store.feature_store_server import Behaviour, FeatureStoreServer

HOUR_MS = 3_600_000
START_MS = int(np.datetime64("2023-01-09", "ms").astype(np.int64))
NAMES = ["close", "sma_20", "rsi_14", "atr_14", "my_signal"]


@pytest.fixture
def lister(folder_store: LocalFeatureStore) -> Iterator[FeatureStoreServer]:
    """A server over the folder that lists what it has, bars among it."""
    with FeatureStoreServer(folder_store, Behaviour(offers_arrow=True)) as running:
        yield running


def test_the_features_are_the_folders_own_to_the_bit(
    lister: FeatureStoreServer, folder_store: LocalFeatureStore
) -> None:
    store = RemoteFeatureStore(lister.url)
    (here,) = store.fetch(["EUR/USD"], "1h", start_ms=START_MS, end_ms=None, features=NAMES)
    (there,) = folder_store.fetch(["EUR/USD"], "1h", start_ms=START_MS, end_ms=None, features=NAMES)
    assert here.opened_ms.tolist() == there.opened_ms.tolist()
    for name in NAMES:
        assert np.array_equal(here.columns[name], there.columns[name], equal_nan=True), name
    assert here.data_source == "feature_store"
    num = len(lister.behaviour.requests)
    store.fetch(["EUR/USD"], "1h", start_ms=START_MS, end_ms=START_MS + 90 * HOUR_MS, features=["ema_50", "close"])
    assert len(lister.behaviour.requests) <= num + 1, "the series is asked for its newest bars alone"
    store.close()


def test_they_can_be_made_again_from_other_bars(lister: FeatureStoreServer) -> None:
    store = RemoteFeatureStore(lister.url)
    again = recomputing(store)
    assert again is not None
    (true,) = store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=NAMES)
    moment_ms = int(true.available_at_ms[400])
    altered = again.altered(lambda bars: replaced_after(bars, moment_ms, seed=1))
    (moved,) = altered.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=NAMES)
    for name in NAMES:
        assert np.array_equal(moved.columns[name][:401], true.columns[name][:401], equal_nan=True), name
    assert not np.array_equal(moved.columns["sma_20"][401:], true.columns["sma_20"][401:])
    seen: set[str] = set()
    again.altered(lambda bars: seen.update(bars.extra) or bars).fetch(  # type: ignore[func-returns-value]
        ["EUR/USD"], "1h", start_ms=None, end_ms=None, features=NAMES
    )
    assert seen == {"my_signal", "volume"}, "a further column of the server counts as the user's own"
    store.close()


def test_a_refused_name_spoils_nothing(lister: FeatureStoreServer) -> None:
    store = RemoteFeatureStore(lister.url)
    for names in (["smaa_20"], ["close", "nobodys"]):
        with pytest.raises(DataValidationError, match="no such feature"):
            store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=names, last=1)
        assert len(store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["sma_20"], last=3)[0]) == 3
    store.close()


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[tuple[FeatureStoreServer, Path, FixedClock]]:
    """A server over a file that grows, and the clock of who asks it."""
    frame = bars_frame(seed=5)
    write_plain(tmp_path, "EURUSD_1h.csv", frame.head(300))
    clock = FixedClock.at_ms(int(frame["opened_ms"][299]) + HOUR_MS)
    with FeatureStoreServer(LocalFeatureStore(FolderBars(tmp_path))) as running:
        yield running, tmp_path, clock


def test_newer_bars_are_added_and_corrected_ones_fetched_anew(
    growing: tuple[FeatureStoreServer, Path, FixedClock],
) -> None:
    server, folder, clock = growing
    store, frame = RemoteFeatureStore(server.url, clock=clock), bars_frame(seed=5)

    def closes() -> list[float]:
        (table,) = store.fetch(["EUR/USD"], "1h", start_ms=None, end_ms=None, features=["close"])
        return list(table.columns["close"])

    assert closes() == frame["close"][:300].to_list()
    num = len(server.behaviour.requests)
    assert closes() == frame["close"][:300].to_list()
    assert len(server.behaviour.requests) == num, "no bar can have become known since"
    write_plain(folder, "EURUSD_1h.csv", frame.head(310))
    clock.moment = FixedClock.at_ms(int(frame["opened_ms"][309]) + HOUR_MS - 1).moment
    assert closes() == frame["close"][:309].to_list(), "the bar under way is not kept"
    corrected = frame.head(320).with_columns(close=frame["low"].head(320))
    write_plain(folder, "EURUSD_1h.csv", corrected)
    clock.moment = FixedClock.at_ms(int(frame["opened_ms"][319]) + HOUR_MS).moment
    assert closes() == corrected["close"].to_list()
    store.close()


@pytest.mark.parametrize("fault", ["error", "nonsense", "infinity", "unsorted", "absent"])
def test_a_failing_server_is_an_error_and_no_other_data(lister: FeatureStoreServer, fault: str) -> None:
    store = RemoteFeatureStore(lister.url)
    lister.behaviour.fault = fault
    lister.behaviour.offers_arrow = False
    with pytest.raises(UpstreamError):
        store.fetch(["EUR/USD"], "1h", start_ms=START_MS, end_ms=None, features=["close"])
    lister.behaviour.fault = None
    (table,) = store.fetch(["EUR/USD"], "1h", start_ms=START_MS, end_ms=None, features=["close"], last=1)
    assert iso_of_ms(int(table.opened_ms[0])) > "2023"
    store.close()
