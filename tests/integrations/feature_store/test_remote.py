"""The client of the Feature Store Service believes nothing, waits for nothing long, and never makes anything up."""

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError, PlatformError, UpstreamError, UpstreamTimeoutError
from common_lib.logging import correlated
from ml_workbench_service.contracts.market import FeatureTable, recomputing
from ml_workbench_service.integrations.feature_store.remote import RemoteFeatureStore, answers_as_feature_store
from tests.integrations.feature_store.feature_store_server import FeatureStoreServer

START_MS, END_MS = (int(np.datetime64(day, "ms").astype(np.int64)) for day in ("2023-01-09", "2023-01-14"))


@pytest.fixture
def store(server: FeatureStoreServer) -> Iterator[RemoteFeatureStore]:
    client = RemoteFeatureStore(server.url, timeout_s=20, max_bytes=1 << 20)
    yield client
    client.close()


def fetch(store: RemoteFeatureStore, *features: str, symbol: str = "EUR/USD", **changes: int) -> FeatureTable:
    wanted = features or ("close", "sma_20")
    return store.fetch([symbol], "1h", start_ms=START_MS, end_ms=END_MS, features=wanted, **changes)[0]


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("error", UpstreamError, "status 500"),
        ("nonsense", UpstreamError, "not JSON"),
        ("slow", UpstreamTimeoutError, "did not answer within"),
        ("drip", UpstreamTimeoutError, "did not answer within"),
        ("oversized", UpstreamError, "too long"),
        ("redirect", UpstreamError, "redirects"),
        ("infinity", UpstreamError, "NaN"),
        ("nan", UpstreamError, "NaN"),
        ("unequal", UpstreamError, "values for"),
        ("unsorted", UpstreamError, "do not increase"),
        ("absent", UpstreamError, "feature close of EUR/USD is missing"),
    ],
)
def test_a_failing_server_is_an_error_that_says_what_was_wrong(
    server: FeatureStoreServer, store: RemoteFeatureStore, fault: str, error: type[PlatformError], says: str
) -> None:
    fetch(store)  # the server's own first steps are slow on a busy machine, and not what is tested
    server.behaviour.fault = fault
    hasty = RemoteFeatureStore(server.url, timeout_s=0.4) if error is UpstreamTimeoutError else store
    with pytest.raises(error, match=says) as caught:
        fetch(hasty)
    assert caught.value.status == (504 if error is UpstreamTimeoutError else 502)
    server.behaviour.fault = None
    assert len(fetch(store)) == 118


@pytest.mark.parametrize(
    ("fault", "says"), [("nan", "NaN"), ("infinity", "NaN"), ("absent", "close"), ("unsorted", "increase")]
)
def test_arrow_is_believed_no_more_than_json(
    server: FeatureStoreServer, store: RemoteFeatureStore, fault: str, says: str
) -> None:
    server.behaviour.offers_arrow = True
    server.behaviour.fault = fault
    with pytest.raises(UpstreamError, match=says):
        fetch(store)


def test_missing_values_stay_missing_in_json_and_arrow(server: FeatureStoreServer, store: RemoteFeatureStore) -> None:
    through_json = fetch(store, "my_signal").columns["my_signal"]
    server.behaviour.offers_arrow = True
    through_arrow = fetch(store, "my_signal").columns["my_signal"]
    assert np.isnan(through_json).sum() >= 2
    assert np.array_equal(through_json, through_arrow, equal_nan=True)


def test_nobody_listening_is_an_upstream_error_and_no_other_data() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    store = RemoteFeatureStore(url, timeout_s=1)
    with pytest.raises(UpstreamError, match="cannot be reached"):
        fetch(store)
    assert store.check().state == "down"
    assert not answers_as_feature_store(url, timeout_s=0.3)
    store.close()


def test_the_single_route_is_used_where_there_is_no_batch_and_remembered(
    server: FeatureStoreServer, store: RemoteFeatureStore
) -> None:
    server.behaviour.offers_batch = False
    fetch(store)
    fetch(store)
    assert [method for method, _, _ in server.behaviour.requests] == ["POST", "GET", "GET"]
    assert server.behaviour.requests[1][1] == "/api/v1/features/EUR%2FUSD"


def test_a_refused_symbol_does_not_pass_for_a_missing_batch_route(
    server: FeatureStoreServer, store: RemoteFeatureStore
) -> None:
    with pytest.raises(DataValidationError, match="no bars of EUR/CHF"):
        fetch(store, symbol="EUR/CHF")
    fetch(store)
    assert server.behaviour.requests[-1][0] == "POST"


def test_key_and_correlation_id_travel_along(server: FeatureStoreServer) -> None:
    server.behaviour.api_key = "secret"
    with RemoteStore(server.url, "secret") as store, correlated("abc-1"):
        fetch(store)
    assert server.behaviour.requests[-1][2]["x-correlation-id"] == "abc-1"
    with RemoteStore(server.url, None) as store, pytest.raises(UpstreamError, match="API_KEY"):
        fetch(store)


class RemoteStore:
    """A store that closes itself."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.store = RemoteFeatureStore(url, api_key=api_key)

    def __enter__(self) -> RemoteFeatureStore:
        return self.store

    def __exit__(self, *_: object) -> None:
        self.store.close()


def test_available_at_makes_a_bar_known_later(server: FeatureStoreServer, store: RemoteFeatureStore) -> None:
    server.behaviour.available_after_ms = 1_800_000
    table = fetch(store)
    assert np.array_equal(table.available_at_ms, table.opened_ms + 3_600_000 + 1_800_000)
    assert len(fetch(store, as_of_ms=int(table.opened_ms[10]) + 3_600_000)) == 10


def test_a_server_with_features_of_its_own_is_asked_for_them(
    server: FeatureStoreServer, store: RemoteFeatureStore
) -> None:
    assert np.nanmax(fetch(store, "my_signal").columns["my_signal"]) == 6.0
    assert store.kind_of("my_signal") == "stationary"
    with pytest.raises(DataValidationError):
        store.kind_of("no such name")
    assert "sma_{period}" in {entry.name for entry in store.describe()}
    assert recomputing(store) is None
    server.behaviour.offers_list = True
    assert "my_signal" in {entry.name for entry in store.describe()}
