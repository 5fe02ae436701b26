"""Connections to the server, scripts with their shared head, and one way in which its failures are said."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import redis
from redis.commands.core import Script
from redis.exceptions import NoScriptError
from redis.retry import Retry

from common_lib.exceptions import LeaseLostError, UnavailableError

SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0


def client(url: str, retry: Retry, *, is_single: bool = False) -> redis.Redis:
    """A client that repeats a command as `retry` says.

    Args:
        is_single: holds one connection, which is opened at once and costs less to use; threads take turns.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=retry,
        protocol=2,
        single_connection_client=is_single,
    )


def script(of: redis.Redis, name: str) -> Script:
    """The script of that name, behind the head that all share; loaded again by itself where the server forgot it."""
    folder = files("ml_workbench_service.integrations") / "scripts"
    return of.register_script((folder / "groups.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8"))


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
