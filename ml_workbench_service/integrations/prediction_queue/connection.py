"""Redis connections, scripts with their shared head, and one way in which its failures are said."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.exceptions import NoScriptError, ReadOnlyError
from redis.retry import Retry

from common_lib.exceptions import LeaseLostError, UnavailableError
from ml_workbench_service.contracts.queue import Persistence
from ml_workbench_service.exchanges.bounded_redis import BoundedParser

SOCKET_TIMEOUT_S = 5.0
ASKING_TIMEOUT_S = 2.0  # for whoever only looks: an answer that late is of no use to a person or a probe
CONNECT_TIMEOUT_S = 2.0
NO_RETRY = Retry(NoBackoff(), 0)


def client(
    url: str, retry: Retry, *, is_single: bool = False, socket_timeout_s: float = SOCKET_TIMEOUT_S
) -> redis.Redis:
    """A client that repeats a command as `retry` says.

    Args:
        retry: NO_RETRY for what must not be done twice, and for callers who try again themselves.
        is_single: holds one connection, which is opened at once and costs less to use; threads take turns.
        socket_timeout_s: how long an answer may take.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=socket_timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=retry,
        protocol=2,
        single_connection_client=is_single,
        parser_class=BoundedParser,
    )


@contextmanager
def renewing(connection: redis.Redis) -> Iterator[None]:
    """Drops a client's connections where a replica answers: its name may lead to another server after a failover.

    The next call resolves the name again.
    """
    try:
        yield
    except redis.ResponseError as error:
        if is_of_replica(error):
            connection.connection_pool.disconnect()
        raise


def is_of_replica(error: redis.ResponseError) -> bool:
    """Whether it says that the server takes no writes; Redis 6.2 wraps the error of a script in a plain one."""
    return isinstance(error, ReadOnlyError) or "READONLY" in str(error)


def script_text(name: str) -> str:
    """The script of that name, behind the head that all share."""
    folder = files("ml_workbench_service.integrations") / "scripts"
    return (folder / "groups.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8")


def sha_of(text: str) -> str:
    """The name under which the server keeps a script."""
    return sha1(text.encode(), usedforsecurity=False).hexdigest()


def script(of: redis.Redis, name: str) -> Script:
    """The script of that name; loaded again by itself where the server forgot it."""
    return of.register_script(script_text(name))


class ReadOnlyScript:
    """A script that only reads: Redis 7 runs it even while writes are paused, as in a coordinated failover.

    Redis 6.2 lacks the command and runs it like any other.
    """

    def __init__(self, of: redis.Redis, name: str) -> None:
        self._redis = of
        self._script = script(of, name)
        self._has_command = True

    def __call__(self, key: str) -> Any:
        """The script's answer for one key."""
        if self._has_command:
            try:
                return self._ask(key)
            except redis.ResponseError as error:
                if "unknown command" not in str(error).lower():
                    raise
                self._has_command = False
        return as_any(self._script(keys=[key]))

    def _ask(self, key: str) -> Any:
        try:
            return as_any(self._redis.evalsha_ro(self._script.sha, 1, key))
        except NoScriptError:
            self._redis.script_load(self._script.script)
            return as_any(self._redis.evalsha_ro(self._script.sha, 1, key))


def persistence_of(told: Mapping[str, Any]) -> Persistence:
    """What the section `persistence` of INFO says."""
    if not int(told.get("aof_enabled", 0)):
        return Persistence(is_failing=False, said="no append-only file: a restart of the server loses what is queued")
    failed = [
        what
        for name, what in (("aof_last_write_status", "write"), ("aof_last_bgrewrite_status", "rewrite"))
        if told.get(name, "ok") != "ok"
    ]
    if failed:
        advice = "see to its disk; until then it may refuse records, which wait in the outbox"
        return Persistence(is_failing=True, said=f"its append-only file's last {' and '.join(failed)} failed: {advice}")
    return Persistence(is_failing=False, said="its append-only file is written")


def as_any(answer: object) -> Any:
    """redis-py types every answer as one that may have to be awaited."""
    return answer


@contextmanager
def translated(verb: str) -> Iterator[None]:
    """The server's failures as the platform's errors.

    Raises:
        LeaseLostError: another process consumes for the group.
        UnavailableError: everything else; trying again is safe.
    """
    try:
        yield
    except redis.RedisError as error:
        if "LEASELOST" in str(error):
            raise LeaseLostError(
                "Another process consumes for this group meanwhile; this one waits for its turn."
            ) from error
        raise UnavailableError(
            f"Cannot {verb} the prediction queue ({type(error).__name__}: {error}); check REDIS_URL and that the "
            "Redis server runs.",
            retry_after_s=2,
        ) from error
