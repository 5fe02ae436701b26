"""Answers of Redis that end as a whole: a connection's time-out begins anew with each byte that arrives.

`parser_class=BoundedParser` for any synchronous client. The first piece of an answer has the connection's own time-out,
the rest of it twice that in all; an answer that comes in one piece, as nearly all do, costs nothing.
"""

import time
from typing import Any

import redis
from redis.connection import DefaultParser

PATIENCE = 2.0
"""In time-outs of the connection."""


class BoundedParser(DefaultParser):  # type: ignore[misc, valid-type]  # redis-py chooses its base when it is imported
    """Reads one answer within `PATIENCE` time-outs; a connection without a time-out is not bounded."""

    _ends_at_s: float | None = None  # time.monotonic()

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """One answer; raises redis.TimeoutError where it drips."""
        self._ends_at_s = None
        return super().read_response(*args, **kwargs)

    def read_from_socket(self, *args: Any, **kwargs: Any) -> Any:
        """One piece of it."""
        timeout_s = getattr(self, "_socket_timeout", None)
        if timeout_s is None:
            return super().read_from_socket(*args, **kwargs)
        if self._ends_at_s is None:
            self._ends_at_s = time.monotonic() + PATIENCE * timeout_s
        elif time.monotonic() > self._ends_at_s:
            raise redis.TimeoutError(f"no whole answer within {PATIENCE * timeout_s:g} s")
        return super().read_from_socket(*args, **kwargs)
