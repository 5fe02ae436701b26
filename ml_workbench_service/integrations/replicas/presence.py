"""Presence on a Redis server: the control process lives, and so does each replica (contracts.replicas).

Neither is held up by the other: both write a key that ends by itself, and read the other's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import redis
from pydantic import ValidationError
from redis.backoff import NoBackoff
from redis.retry import Retry

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.handover import HANDOVER_STREAM, place_of
from ml_workbench_service.contracts.replicas import (
    BEAT,
    BEAT_KEPT_S,
    REPLICA,
    REPLICAS,
    REPORT_KEPT_S,
    ReplicaReport,
)
from ml_workbench_service.exchanges.bounded_redis import BoundedParser

TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0


class Seen(NamedTuple):
    """What a replica finds when it looks.

    Attributes:
        beat: of the control process; another one each time it beats, None where it has been silent for `BEAT_KEPT_S`.
        behind_s: age of the oldest entry of the hand-over that the control process has not applied.
        num_unsaved: entries of the hand-over that it has not saved.
    """

    beat: int | None
    behind_s: float
    num_unsaved: int


class Presence:
    """Either side; calls block, from any threads.

    Raises:
        UnavailableError: from every method, when the server is away.
    """

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            parser_class=BoundedParser,
        )
        self._num_beats = 0
        self._applied = "0-0"

    def beat(self, applied: str) -> None:
        """Of the control process, which has applied what was handed over up to a place."""
        self._num_beats += 1
        value = f"{self._num_beats} {applied or '0-0'}"
        self._ask(lambda: self._redis.set(BEAT, value, ex=BEAT_KEPT_S))

    def report(self, report: ReplicaReport) -> None:
        """Of a replica."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(REPLICA + report.name, report.model_dump_json(), ex=REPORT_KEPT_S)
        pipeline.sadd(REPLICAS, report.name)
        self._ask(pipeline.execute)

    def leave(self, name: str) -> None:
        """Of a replica that ends."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.delete(REPLICA + name)
        pipeline.srem(REPLICAS, name)
        self._ask(pipeline.execute)

    def look(self) -> Seen:
        """How the control process is."""
        moment, number = place_of(self._applied)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(BEAT)
        pipeline.time()
        pipeline.xrange(HANDOVER_STREAM, min=f"{moment}-{number + 1}", count=1)
        pipeline.xlen(HANDOVER_STREAM)
        beat, (now_s, now_us), waiting, num_unsaved = self._ask(pipeline.execute)
        count = None
        if beat is not None:
            told, _, self._applied = beat.decode().partition(" ")
            count = int(told)
        behind_s = 0.0
        if waiting and place_of(waiting[0][0].decode()) > place_of(self._applied):
            behind_s = max(0.0, now_s + now_us / 1e6 - place_of(waiting[0][0].decode())[0] / 1000)
        return Seen(count, behind_s, int(num_unsaved))

    def replicas(self) -> list[ReplicaReport]:
        """The replicas that live, in the order of their names."""
        names = sorted(each.decode() for each in self._ask(lambda: self._redis.smembers(REPLICAS)))
        if not names:
            return []
        told = self._ask(lambda: self._redis.mget([REPLICA + each for each in names]))
        gone = [name for name, payload in zip(names, told, strict=True) if payload is None]
        if gone:
            self._ask(lambda: self._redis.srem(REPLICAS, *gone))
        found = []
        for payload in filter(None, told):
            try:
                found.append(ReplicaReport.model_validate_json(payload))
            except ValidationError:  # of another version of this service
                continue
        return found

    def close(self) -> None:
        """Gives the connections back."""
        self._redis.close()

    @staticmethod
    def _ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except redis.RedisError as error:
            raise UnavailableError(
                f"Redis cannot be reached ({type(error).__name__}: {error}); check REDIS_URL and that the server runs.",
                retry_after_s=2,
            ) from error
