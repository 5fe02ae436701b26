"""Opening the outside things: what is set is used and nothing else; what is unset is looked for once, then embedded."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common_lib.exceptions import DataValidationError, UnavailableError
from ml_workbench_service import resources as workbench
from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.integrations.feature_store.remote import RemoteFeatureStore
from ml_workbench_service.market.features.expression_store import ExpressionStore
from ml_workbench_service.resources import (
    Addresses,
    close_workbench,
    open_feature_store,
    open_for_worker,
    open_workbench,
    resolve,
)
from ml_workbench_service.settings import EMBEDDED, Settings
from tests.integrations.feature_store.bar_files import bars_frame, write_plain
from tests.service_process import free_port

STORE = json.dumps({"status": "healthy", "service": "feature-store"})
OUTSIDE = ("FEATURE_STORE_URL", "EXPERIMENT_TRACKING_URI", "REDIS_URL", "STRATEGY_ENGINE_URL", "API_KEY")
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve("/health", "text")` is the address of a server that answers that path alone, after `slow_s` seconds."""
    servers: list[ThreadingHTTPServer] = []

    def start(path: str, text: str, *, status: int = 200, slow_s: float = 0.0) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(slow_s)
                try:
                    self.send_response(status if self.path == path else 404)
                    self.end_headers()
                    self.wfile.write(text.encode())
                except (BrokenPipeError, ConnectionResetError):
                    return

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _nobody_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set, and nothing listens at the original specification's addresses."""
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(workbench, "DEFAULT_FEATURE_STORE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(workbench, "DEFAULT_EXPERIMENT_TRACKING_URI", f"http://127.0.0.1:{free_port()}")


def looked(folder: Path, **settings: str) -> Addresses:
    """Addresses with a REDIS_URL that is never contacted."""
    set_ = Settings.model_validate({"STATE_DIR": folder, "REDIS_URL": "redis://127.0.0.1:1/0", **settings})
    return resolve(set_, EmbeddedRedis(folder))


def test_unset_and_nothing_there_is_embedded(tmp_path: Path) -> None:
    found = looked(tmp_path)
    assert found.feature_store == EMBEDDED
    assert found.tracking == f"sqlite:///{tmp_path}/mlflow.db"
    assert (found.tracking_is_embedded, found.redis_is_embedded) == (True, False)


def test_unset_and_the_real_servers_there_they_are_used(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, tracking = serve("/health", STORE), serve("/version", "3.17.0")
    monkeypatch.setattr(workbench, "DEFAULT_FEATURE_STORE_URL", store)
    monkeypatch.setattr(workbench, "DEFAULT_EXPERIMENT_TRACKING_URI", tracking)
    found = looked(tmp_path)
    assert (found.feature_store, found.tracking, found.tracking_is_embedded) == (store, tracking, False)


@pytest.mark.parametrize(
    ("path", "text", "status"),
    [
        ("/health", '{"status": "healthy"}', 200),
        ("/health", '{"service": "another"}', 200),
        ("/health", '["feature-store"]', 200),
        ("/health", "feature-store", 200),
        ("/health", STORE, 500),
        ("/health", STORE, 302),
        ("/elsewhere", STORE, 200),
        ("/version", "<html>a router</html>", 200),
        ("/version", "", 200),
        ("/version", "1" * 100, 200),
    ],
)
def test_something_else_at_the_seeds_address_is_not_taken_for_the_server(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str, text: str, status: int
) -> None:
    address = serve(path, text, status=status)
    monkeypatch.setattr(workbench, "DEFAULT_FEATURE_STORE_URL", address)
    monkeypatch.setattr(workbench, "DEFAULT_EXPERIMENT_TRACKING_URI", address)
    found = looked(tmp_path)
    assert (found.feature_store, found.tracking_is_embedded) == (EMBEDDED, True)


def test_a_server_that_does_not_answer_holds_the_start_up_only_briefly(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbench, "DEFAULT_FEATURE_STORE_URL", serve("/health", STORE, slow_s=12))
    monkeypatch.setattr(workbench, "DEFAULT_EXPERIMENT_TRACKING_URI", serve("/version", "3.17.0", slow_s=12))
    began = time.monotonic()
    found = looked(tmp_path)
    assert time.monotonic() - began < 10, "they would have answered after 12 s"
    assert (found.feature_store, found.tracking_is_embedded) == (EMBEDDED, True)


def test_what_is_set_is_used_and_nothing_else(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "DEFAULT_FEATURE_STORE_URL", serve("/health", STORE))
    absent = f"http://127.0.0.1:{free_port()}"
    found = looked(tmp_path, FEATURE_STORE_URL=absent, EXPERIMENT_TRACKING_URI="http://mlflow.example:5000")
    assert (found.feature_store, found.tracking) == (absent, "http://mlflow.example:5000")
    assert not found.tracking_is_embedded
    found = looked(tmp_path, FEATURE_STORE_URL=EMBEDDED, EXPERIMENT_TRACKING_URI=EMBEDDED)
    assert (found.feature_store, found.tracking_is_embedded) == (EMBEDDED, True)
    assert looked(tmp_path, EXPERIMENT_TRACKING_URI="disabled").tracking == "disabled"


def test_each_choice_is_one_line_without_a_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    looked(tmp_path, REDIS_URL="redis://user:pa55@127.0.0.1:1/0")
    said = {record.getMessage(): record.__dict__ for record in caplog.records}
    assert set(said) == {"feature store", "experiment tracking", "redis"}
    assert (said["feature store"]["address"], said["feature store"]["is_set"]) == (EMBEDDED, False)
    assert (said["redis"]["address"], said["redis"]["is_set"]) == ("redis://***@127.0.0.1:1/0", True)
    assert "pa55" not in str(said)


def test_without_redis_the_rest_opens_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_workbench_service.integrations.embedded_redis.shutil.which", lambda _: None)
    monkeypatch.setattr("ml_workbench_service.integrations.embedded_redis.find_spec", lambda _: None)
    settings = Settings(STATE_DIR=tmp_path, MODEL_REGISTRY_PATH=tmp_path / "registry")
    found = resolve(settings, EmbeddedRedis(tmp_path))
    assert (found.redis, found.redis_is_embedded) == (None, True)
    assert "install Redis" in found.redis_fault
    opened = open_workbench(settings, found)
    assert (opened.queue, opened.deployments) == (None, None)
    assert opened.registry.model_ids() == []
    with pytest.raises(UnavailableError, match="install Redis"):
        opened.required_queue()


def test_the_address_says_which_store_it_is(tmp_path: Path) -> None:
    write_plain(tmp_path, "EURUSD_1h.csv", bars_frame(seed=1))
    sample = open_feature_store(EMBEDDED)
    assert isinstance(sample, ExpressionStore)
    assert isinstance(sample.columns, LocalFeatureStore)
    folder = open_feature_store(f"file://{tmp_path}")
    assert isinstance(folder, ExpressionStore)
    assert isinstance(folder.columns, LocalFeatureStore)
    assert folder.check().mode == "folder"
    spaced = tmp_path / "my bars"
    spaced.mkdir()
    write_plain(spaced, "EURUSD_1h.csv", bars_frame(seed=1))
    assert open_feature_store("file://" + str(spaced).replace(" ", "%20")).check().state == "ok"
    remote = open_feature_store("https://store.example/base")
    assert isinstance(remote, ExpressionStore)
    assert isinstance(remote.columns, RemoteFeatureStore)
    for wrong in ("ftp://x", "here", "", "sqlite:///x"):
        with pytest.raises(DataValidationError, match="file:///folder/of/bars"):
            open_feature_store(wrong)


def test_a_worker_opens_what_the_service_resolved(tmp_path: Path) -> None:
    settings = Settings(
        STATE_DIR=tmp_path,
        MODEL_REGISTRY_PATH=tmp_path / "registry",
        FEATURE_STORE_URL=EMBEDDED,
        EXPERIMENT_TRACKING_URI="sqlite:///x.db",
        REDIS_URL="unix:///nowhere/redis.sock",
        PREDICTION_QUEUE_CAPACITY=7,
        STRATEGY_ENGINE_URL="http://engine.example",
    )
    with open_for_worker(settings) as opened:
        assert opened.addresses.tracking == "sqlite:///x.db"
        assert opened.queue is not None
        assert opened.queue.capacity == 7
        assert opened.strategy_engine is not None
        assert opened.registry.root == tmp_path / "registry"
        assert opened.history.root == opened.registry.root
    close_workbench(opened)  # once more does no harm
