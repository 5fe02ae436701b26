"""A real redis-server for tests, on a Unix socket and with an append-only file: import a fixture by its name here."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ml_workbench_service.embedded import EmbeddedRedis
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


@pytest.fixture(name="prediction_queue")
def prediction_queue_fixture(redis_server: RedisForTests) -> Iterator[RedisPredictionQueue]:
    """A queue of the default capacity on a fresh server."""
    queue = RedisPredictionQueue(redis_server.url, capacity=100)
    yield queue
    queue.close()
