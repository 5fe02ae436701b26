"""Serving state on a Redis server: what is live, and the live intervals, from the control process to whoever predicts.

The hash has the newest state, the stream says which fields of it are new (contracts.replicas). A reader takes the whole
hash at its start and after every gap: a connection that broke, a server that lost its data (the epoch is another one or
missing), news that were trimmed before they were read.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.replicas import EPOCH, NUMBER, SERVING_NEWS, SERVING_STATE, News
from ml_workbench_service.exchanges.bounded_redis import BoundedParser

TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
NEWS_KEPT = 1_000
MOST_NEWS = 200
SET_CLOCK_EVERY_S = 60.0
Answer = TypeVar("Answer")


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        parser_class=BoundedParser,
    )


def _asked(question: Callable[[], Answer]) -> Answer:
    try:
        return question()
    except redis.RedisError as error:
        raise UnavailableError(
            f"The serving state in Redis cannot be reached ({type(error).__name__}: {error}); check REDIS_URL and that "
            "the Redis server runs.",
            retry_after_s=2,
        ) from error


class ServingStateWriter:
    """The control process's side; for one thread.

    Raises:
        UnavailableError: from every method, when the server is away; writing again is safe.
    """

    def __init__(self, url: str) -> None:
        self._redis = _client(url)
        self.epoch = secrets.token_hex(8)
        """A name of this life."""
        self.number = 0
        """Of the last news that were written."""

    def is_known(self) -> bool:
        """Whether the server still has what this process has written, the last of it too: one that was killed may have
        come back with less."""
        found: Any = _asked(lambda: self._redis.hmget(SERVING_STATE, [EPOCH, NUMBER]))
        return bool(found == [self.epoch.encode(), b"%d" % self.number])

    def replace(self, fields: Mapping[str, bytes]) -> None:
        """The whole state."""
        self._write(fields, (), is_whole=True)

    def change(self, fields: Mapping[str, bytes], removed: Iterable[str] = ()) -> None:
        """Some of its fields."""
        self._write(fields, tuple(removed), is_whole=False)

    def _write(self, fields: Mapping[str, bytes], removed: tuple[str, ...], *, is_whole: bool) -> None:
        names = [*fields, *removed]
        if not names and not is_whole:
            return
        pipeline = self._redis.pipeline(transaction=True)
        if is_whole:
            pipeline.delete(SERVING_STATE)
        number = self.number + 1
        mapping: Any = {EPOCH: self.epoch, NUMBER: number, **fields}
        pipeline.hset(SERVING_STATE, mapping=mapping)
        if removed:
            pipeline.hdel(SERVING_STATE, *removed)
        news = {"epoch": self.epoch, "fields": "" if is_whole else "\n".join(names)}
        pipeline.xadd(SERVING_NEWS, news, maxlen=NEWS_KEPT, approximate=True)  # type: ignore[arg-type]
        _asked(pipeline.execute)
        self.number = number

    def close(self) -> None:
        """Gives the connection back."""
        self._redis.close()


class ServingStateReader:
    """A predict worker's side; for one thread.

    Raises:
        UnavailableError: from every method, when the server is away, or has no state; the next call reads it whole.
    """

    def __init__(self, url: str) -> None:
        self._redis = _client(url)
        self._epoch = b""
        self._place = ""
        self.ahead_s = 0.0
        """How far the server's clock is ahead of this machine's, to half of what a question takes."""
        self._clock_set_s = float("-inf")

    def news(self, *, block_ms: int) -> News | None:
        """What has changed since the call before, or everything; None where nothing did within `block_ms`."""
        try:
            return self._news(block_ms) if self._epoch else self._whole()
        except UnavailableError:
            self._epoch = b""
            raise

    def _whole(self) -> News:
        self._set_clock()
        newest: Any = _asked(lambda: self._redis.xrevrange(SERVING_NEWS, count=1))
        place = newest[0][0].decode() if newest else "0-0"  # before the state is read: what comes later is read again
        found: Any = _asked(lambda: self._redis.hgetall(SERVING_STATE))
        if EPOCH.encode() not in found:
            raise UnavailableError("there is no serving state in Redis yet", retry_after_s=1)
        self._epoch, self._place = found.pop(EPOCH.encode()), place
        number = int(found.pop(NUMBER.encode()))
        fields = {name.decode(): value for name, value in found.items()}
        return News(place, number, fields, is_whole=True, epoch=self._epoch.decode())

    def _set_clock(self) -> None:
        asked_s = time.time()
        told_s, told_us = _asked(self._redis.time)
        self.ahead_s = told_s + told_us / 1e6 - (asked_s + time.time()) / 2
        self._clock_set_s = time.monotonic()

    def _news(self, block_ms: int) -> News | None:
        answer: Any = _asked(lambda: self._redis.xread({SERVING_NEWS: self._place}, count=MOST_NEWS, block=block_ms))
        if not answer:
            if time.monotonic() - self._clock_set_s > SET_CLOCK_EVERY_S:
                self._set_clock()
            epoch: Any = _asked(lambda: self._redis.hget(SERVING_STATE, EPOCH))
            return None if epoch == self._epoch else self._whole()
        entries = answer[0][1]
        if len(entries) == MOST_NEWS or any(
            fields[b"epoch"] != self._epoch or not fields[b"fields"] for _, fields in entries
        ):
            return self._whole()
        names = list(dict.fromkeys(name for _, fields in entries for name in fields[b"fields"].decode().split("\n")))
        values: Any = _asked(lambda: self._redis.hmget(SERVING_STATE, [EPOCH, NUMBER, *names]))
        if values[0] != self._epoch:
            return self._whole()
        self._place = entries[-1][0].decode()
        fields = dict(zip(names, values[2:], strict=True))
        return News(self._place, int(values[1]), fields, epoch=self._epoch.decode())

    def close(self) -> None:
        """Gives the connection back."""
        self._redis.close()
