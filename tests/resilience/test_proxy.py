"""The fault proxy in front of a real Redis: each way in which it spoils a connection."""

import threading
import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ml_workbench_service.resilience.proxy import FaultProxy
from tests.redis_server import RedisForTests, redis_server_fixture  # noqa: F401


@pytest.fixture
def proxy(redis_server: RedisForTests) -> Iterator[FaultProxy]:
    spoiled = FaultProxy(redis_server.url.removeprefix("unix://"))
    spoiled.start()
    yield spoiled
    spoiled.stop()


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[redis.Redis]:
    """Never repeats a command by itself."""
    connected = redis.Redis.from_url(proxy.url, socket_timeout=60.0, retry=Retry(NoBackoff(), 0), protocol=2)
    yield connected
    connected.close()


def test_it_passes_everything_unchanged(client: redis.Redis) -> None:
    body = bytes(range(256)) * 4000
    client.set("large", body)
    assert client.get("large") == body


def test_a_delay_is_added_to_every_answer(client: redis.Redis, proxy: FaultProxy) -> None:
    client.ping()
    proxy.delay_s = 0.05
    begun = time.monotonic()
    client.ping()
    assert time.monotonic() - begun >= 0.1  # there and back


def test_a_throttle_slows_large_answers(client: redis.Redis, proxy: FaultProxy) -> None:
    client.set("large", bytes(200_000))
    proxy.bytes_per_s = 1e6
    begun = time.monotonic()
    client.get("large")
    assert time.monotonic() - begun >= 0.2


def test_a_reset_ends_every_connection_with_an_error(
    client: redis.Redis, proxy: FaultProxy, redis_server: RedisForTests
) -> None:
    waiting = threading.Thread(target=lambda: failures.append(_error_of(client)))
    failures: list[str] = []
    waiting.start()
    server = redis_server.client()
    while server.info("clients")["blocked_clients"] < 1:
        time.sleep(0.002)
    assert proxy.reset() == 1
    waiting.join(60)
    assert "reset" in failures[0].lower()
    assert client.ping()


def _error_of(client: redis.Redis) -> str:
    try:
        client.blpop(["nothing"], timeout=50)
    except redis.ConnectionError as error:
        return str(error)
    return "no error"


def test_a_request_that_is_cut_is_not_executed(
    client: redis.Redis, proxy: FaultProxy, redis_server: RedisForTests
) -> None:
    proxy.cut("request")
    with pytest.raises(redis.ConnectionError):
        client.incr("count")
    assert redis_server.client().get("count") is None
    assert client.incr("count") == 1


def test_a_request_whose_answer_is_cut_was_executed(
    client: redis.Redis, proxy: FaultProxy, redis_server: RedisForTests
) -> None:
    client.ping()
    proxy.cut("answer")
    with pytest.raises(redis.ConnectionError):
        client.incr("count")
    assert redis_server.client().get("count") == b"1"


def test_a_port_that_refuses_takes_connections_again(client: redis.Redis, proxy: FaultProxy) -> None:
    client.ping()
    proxy.refuse()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises(redis.ConnectionError, match="refused"):
        client.ping()
    proxy.accept()
    assert client.ping()


def test_what_was_swallowed_arrives_once_everything_flows_again(client: redis.Redis, proxy: FaultProxy) -> None:
    client.ping()
    proxy.swallow()
    impatient = redis.Redis.from_url(proxy.url, socket_timeout=0.1, retry=Retry(NoBackoff(), 0), protocol=2)
    with pytest.raises(redis.TimeoutError):
        impatient.ping()
    proxy.release()
    assert client.ping()
    impatient.close()


def test_a_server_that_is_away_is_away_through_the_proxy(
    client: redis.Redis, proxy: FaultProxy, redis_server: RedisForTests
) -> None:
    client.ping()
    redis_server.kill()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    redis_server.start()
    assert client.ping()
