"""Whoever is asked outside and sends a byte now and then holds nobody: every exchange ends as a whole."""

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import redis

from common_lib.exceptions import UpstreamTimeoutError
from ml_workbench_service.api.door.probes import TRACKING_TIMEOUT_S, fault_of_server
from ml_workbench_service.exchanges.bounded_http import BoundedTransport, probed, within
from ml_workbench_service.integrations import strategy_engine
from ml_workbench_service.integrations.feature_store.remote import RemoteFeatureStore, answers_as_feature_store
from ml_workbench_service.integrations.prediction_queue.connection import NO_RETRY, client
from ml_workbench_service.resources import _is_mlflow
from tests.integrations.model_cards import model_card
from tests.integrations.test_deployment_history import deployment

DRIP_S = 0.05
PATIENCE_S = 0.4
MOST_S = 30.0
"""Far more than any patience here, far less than what drips for ever."""
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"


class Dripping:
    """Takes connections and answers each with `at_once`, then a byte every `DRIP_S` without an end."""

    def __init__(self, at_once: bytes) -> None:
        self._at_once = at_once
        self._stopping = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._stopping.set()
        self._socket.close()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._drip, args=(connection,), daemon=True).start()

    def _drip(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(self._at_once)
                while not self._stopping.wait(DRIP_S):
                    connection.sendall(b"1")
            except OSError:
                return


@pytest.fixture(params=[b"", b"HTTP/1.1 200 OK\r\nX-Long: ", HEAD], ids=["status line", "headers", "body"])
def dripping(request: pytest.FixtureRequest) -> Iterator[str]:
    server = Dripping(request.param)
    yield server.url
    server.close()


@pytest.fixture
def bounded() -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < MOST_S


pytestmark = pytest.mark.usefixtures("bounded")


def test_an_exchange_ends_as_a_whole(dripping: str) -> None:
    with (
        httpx.Client(transport=BoundedTransport(), timeout=MOST_S) as client,
        within(PATIENCE_S),
        pytest.raises(httpx.TimeoutException),
    ):
        client.get(dripping)


def test_the_feature_store_is_late(dripping: str) -> None:
    store = RemoteFeatureStore(dripping, timeout_s=PATIENCE_S)
    with pytest.raises(UpstreamTimeoutError, match=r"0\.4 s"):
        store.describe()
    store.close()


def test_the_strategy_engine_holds_no_deployment(dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy_engine, "READ_TIMEOUT_S", PATIENCE_S)
    engine = strategy_engine.StrategyEngine(dripping, api_key=None, own_url="http://127.0.0.1:8005")
    try:
        engine.register(deployment(), model_card())  # it has consented once its headers are there
    except UpstreamTimeoutError as error:
        assert "did not answer in time" in error.message  # noqa: PT017


def test_what_only_looks_says_that_nobody_is_there(dripping: str) -> None:
    assert not answers_as_feature_store(dripping, timeout_s=PATIENCE_S)
    with pytest.raises(httpx.TimeoutException):
        probed(dripping, timeout_s=PATIENCE_S)
    assert not _is_mlflow(dripping)


def test_readiness_does_not_wait_for_a_tracking_server_that_drips(dripping: str) -> None:
    begun = time.monotonic()
    fault_of_server(dripping)  # one whose status came is there, whatever its body does
    assert TRACKING_TIMEOUT_S < MOST_S
    assert time.monotonic() - begun < MOST_S


def test_an_answer_of_redis_ends_as_a_whole() -> None:
    server = Dripping(b"$100000\r\n")
    asking = client(server.url.replace("http", "redis"), NO_RETRY, socket_timeout_s=PATIENCE_S)
    with pytest.raises(redis.TimeoutError, match="whole answer"):
        asking.get("anything")
    asking.close()
    server.close()


def test_without_a_deadline_the_client_behaves_as_httpx_does(dripping: str) -> None:
    with httpx.Client(transport=BoundedTransport(), timeout=DRIP_S / 10) as client, pytest.raises(httpx.ReadTimeout):
        client.get(dripping)


def test_errors_are_httpx_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with httpx.Client(transport=BoundedTransport(retries=1), timeout=MOST_S) as client:
        with pytest.raises(httpx.ConnectError):
            client.get(f"http://127.0.0.1:{port}")
        with pytest.raises(httpx.UnsupportedProtocol):
            client.get("gopher://127.0.0.1/")


def test_garbage_is_a_protocol_error() -> None:
    server = Dripping(b"\x00\xff" * 600 + b"\r\n\r\n")
    with (
        httpx.Client(transport=BoundedTransport(), timeout=MOST_S) as client,
        within(PATIENCE_S),
        pytest.raises((httpx.RemoteProtocolError, httpx.TimeoutException)),
    ):
        client.get(server.url)
    server.close()
