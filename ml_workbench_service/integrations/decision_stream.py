"""Decision stream: an agent's decisions on `ml_workbench:decisions`, each written exactly once.

An entry has the Decision's keys as fields (contracts.entries).

An agent that was killed between writing and saving its checkpoint decides the same again after its restart. The
script therefore keeps the last decided prediction entry under `<predictions stream>:decided:<agent>:<epoch>` and
appends only what lies after it, in the same atomic step, and only for the holder of the agent's lease.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from common_lib.exceptions import LeaseLostError, UnavailableError
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.entries import flatten, unflatten
from ml_workbench_service.contracts.queue import DECISIONS_STREAM, PREDICTIONS_STREAM, Lease

DECISIONS_KEPT = 10_000
SOCKET_TIMEOUT_S = 5.0
DECISIONS_PER_CALL = 256


class DecisionStream:
    """Writes and reads the decisions stream.

    Raises:
        UnavailableError: when the server is away or refuses; writing again is safe.
    """

    def __init__(self, url: str, *, num_kept: int = DECISIONS_KEPT) -> None:
        self._num_kept = num_kept
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=2.0,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), 2),
            protocol=2,
        )
        folder = files("ml_workbench_service.integrations") / "scripts"
        source = (folder / "groups.lua").read_text("utf-8") + (folder / "decide.lua").read_text("utf-8")
        self._decide = self._redis.register_script(source)

    def write(
        self,
        agent_id: str,
        decisions: Sequence[tuple[str, Decision]],
        *,
        stream: str = PREDICTIONS_STREAM,
        epoch: str = "",
        lease: Lease | None = None,
    ) -> int:
        """Appends (prediction entry id, decision) pairs, ids rising; returns how many were new: the last ones.

        Args:
            stream: the predictions' stream, whose ids they are.
            epoch: of that stream.
            lease: without it nobody asks who writes.

        Raises:
            LeaseLostError: somebody else holds the lease by now; nothing was written.
        """
        written = 0
        fence = ("", "", "") if lease is None else (lease.group, lease.owner, lease.term)
        for start in range(0, len(decisions), DECISIONS_PER_CALL):
            arguments: list[Any] = [*fence, self._num_kept]
            for entry_id, decision in decisions[start : start + DECISIONS_PER_CALL]:
                fields = flatten(decision)
                arguments += [entry_id, len(fields), *fields]
            keys = [stream, DECISIONS_STREAM, f"{stream}:decided:{agent_id}:{epoch}"]
            try:
                answer: Any = self._decide(keys=keys, args=arguments)
            except redis.RedisError as error:
                if "LEASELOST" in str(error):
                    raise LeaseLostError("Another process decides for this agent meanwhile.") from error
                raise _away(error) from error
            written += int(answer)
        return written

    def read(self, *, count: int = DECISIONS_KEPT) -> list[Decision]:
        """The newest decisions, oldest first."""
        try:
            entries: Any = self._redis.xrevrange(DECISIONS_STREAM, count=count)
        except redis.RedisError as error:
            raise _away(error) from error
        return [unflatten(Decision, fields) for _, fields in reversed(entries)]

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()


def _away(error: redis.RedisError) -> UnavailableError:
    return UnavailableError(
        f"Cannot use the decisions stream ({type(error).__name__}: {error}); check REDIS_URL and that the Redis "
        "server runs.",
        retry_after_s=2,
    )
