"""Feature stores of every kind, for the conformance suite and for tests of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.remote import RemoteFeatureStore
from ml_workbench_service.integrations.feature_store.sample_rates import SampleRates
from ml_workbench_service.market.features.expression_store import ExpressionStore
from ml_workbench_service.testing.feature_stores import StoredBars
from tests.integrations.feature_store.bar_files import bars_frame, write_plain
from tests.integrations.feature_store.feature_store_server import Behaviour, FeatureStoreServer
from tests.integrations.object_store import ObjectStore
from tests.integrations.registry_places import BucketPlace, FolderPlace, OpenPlace, place_of


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server, found by whoever reads this process's environment."""
    with pytest.MonkeyPatch.context() as patched:
        store = ObjectStore(tmp_path_factory.mktemp("object_store"))
        for name, value in store.environment.items():
            patched.setenv(name, value)
        yield store
        store.close()


@pytest.fixture
def registry_places(request: pytest.FixtureRequest) -> OpenPlace:
    """Opens an empty place for a registry by its kind; the server is started for those who need it."""

    def opened(kind: str, folder: Path) -> FolderPlace | BucketPlace:
        return place_of(kind, folder, lambda: request.getfixturevalue("object_store").new_bucket())

    return opened


OPTIONAL = ("volume", "spread", "my_signal")
STORES = ("sample", "folder", "expressions", "remote-json", "remote-arrow", "remote-single", "remote-bars")


@pytest.fixture(scope="session")
def bars_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve weeks of EUR/USD and GBP/USD hours from December 2022, the former with a signal of the user's own."""
    folder = tmp_path_factory.mktemp("bars")
    euro, pound = bars_frame(seed=1), bars_frame(seed=2, level=1.25)
    signal = [None if row % 50 == 0 else float(row % 7) for row in range(len(euro))]
    write_plain(folder, "EURUSD_1h.csv", euro, my_signal=signal, volume=[10.0] * len(euro))
    write_plain(folder, "GBP_USD-H1.csv", pound)
    return folder


@pytest.fixture(scope="session")
def sample_source() -> SampleRates:
    """One sample for all tests, since its series are cached."""
    return SampleRates()


@pytest.fixture(scope="session")
def folder_store(bars_folder: Path) -> LocalFeatureStore:
    """The folder's store."""
    return LocalFeatureStore(FolderBars(bars_folder))


@pytest.fixture(scope="session", params=STORES)
def stored(
    request: pytest.FixtureRequest, sample_source: SampleRates, folder_store: LocalFeatureStore
) -> Iterator[StoredBars]:
    """Each implementation, and each way to speak to a server."""
    if request.param == "sample":
        yield StoredBars(LocalFeatureStore(sample_source), "simulated")
        return
    if request.param == "folder":
        yield StoredBars(folder_store, "file", optional=OPTIONAL)
        return
    if request.param == "expressions":
        yield StoredBars(ExpressionStore(folder_store), "file", optional=OPTIONAL)
        return
    behaviour = Behaviour(
        offers_batch=request.param != "remote-single",
        offers_arrow=request.param in ("remote-arrow", "remote-bars"),
        offers_list=request.param == "remote-bars",  # by which it is asked for bars alone
    )
    with FeatureStoreServer(folder_store, behaviour) as server:
        store = RemoteFeatureStore(server.url)
        yield StoredBars(store, "feature_store", optional=OPTIONAL)
        store.close()


@pytest.fixture
def server(folder_store: LocalFeatureStore) -> Iterator[FeatureStoreServer]:
    """A Feature Store server over the folder that lists no bars, so that its columns come ready-made."""
    with FeatureStoreServer(folder_store, Behaviour(offers_list=False)) as running:
        yield running
