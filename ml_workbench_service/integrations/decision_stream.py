"""Decision stream: an agent's decisions on `ml_workbench:decisions`, each written exactly once.

An entry has the Decision's keys as fields (contracts.entries).

An agent that was killed between writing and saving its checkpoint decides the same again after its restart. The
script therefore keeps the last decided prediction entry under `<predictions stream>:decided:<agent>:<epoch>` and
appends only what lies after it, in the same atomic step, and only for the holder of the agent's lease.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from common_lib.exceptions import LeaseLostError, UnavailableError
from ml_workbench_service.contracts.agent_tables import DecisionsKept
from ml_workbench_service.contracts.agents import Decision
from ml_workbench_service.contracts.entries import flatten, unflatten
from ml_workbench_service.contracts.queue import DECISIONS_STREAM, PREDICTIONS_STREAM, Lease
from ml_workbench_service.exchanges.bounded_redis import BoundedParser

DECISIONS_KEPT = 10_000
SOCKET_TIMEOUT_S = 5.0
DECISIONS_PER_CALL = 256
ENTRIES_PER_LOOK = 1_000
"""Read at a time, so that neither the server nor we hold all of them."""

GREATEST_NUMBER = 2**64 - 1
"""Of the entries of one millisecond."""


@dataclass(frozen=True)
class WantedDecisions:
    """Which decisions are asked for; None: all."""

    agent_id: str
    symbol: str | None = None
    begin: datetime | None = None
    end: datetime | None = None
    decided_after: datetime | None = None

    def wants(self, entry_id: bytes, fields: Mapping[bytes, bytes]) -> bool:
        """Whether it is one of them, told from the entry as it lies there."""
        if fields.get(b"agent_id") != self.agent_id.encode():
            return False
        if self.symbol is not None and fields.get(b"symbol") != self.symbol.encode():
            return False
        if self.decided_after is not None and written_at(entry_id) <= self.decided_after:
            return False
        if self.begin is None and self.end is None:
            return True
        as_of = datetime.fromisoformat(fields[b"as_of"].decode())
        return (self.begin is None or as_of >= self.begin) and (self.end is None or as_of <= self.end)


@dataclass(frozen=True)
class FoundDecisions:
    """What the stream still holds of them, newest first.

    Attributes:
        decisions: with the ids of their entries; of all that are wanted at most as many as were asked for.
        num_wanted: all that are wanted.
        has_more: whether older ones follow.
        kept: of the whole stream, whoever decided.
    """

    decisions: tuple[tuple[str, Decision], ...]
    num_wanted: int
    has_more: bool
    kept: DecisionsKept


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
            parser_class=BoundedParser,
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

    def find(self, wanted: WantedDecisions, *, limit: int | None = None, before: str | None = None) -> FoundDecisions:
        """An agent's decisions, newest first.

        Args:
            limit: at most so many; None: all of them.
            before: the id of an entry; only older ones are returned, though all are counted.
        """
        found: list[tuple[str, Decision]] = []
        num_entries = num_wanted = 0
        newest = oldest = None
        has_more = False
        older_than = None if before is None else _order(before.encode())
        for entry_id, fields in self._newest_first():
            num_entries += 1
            newest, oldest = newest or entry_id, entry_id
            if not wanted.wants(entry_id, fields):
                continue
            num_wanted += 1
            if older_than is not None and _order(entry_id) >= older_than:
                continue
            if limit is not None and len(found) == limit:
                has_more = True
                continue
            found.append((entry_id.decode(), unflatten(Decision, fields)))
        kept = DecisionsKept(
            num_entries=num_entries,
            most_entries=self._num_kept,
            oldest_at=None if oldest is None else written_at(oldest),
            newest_at=None if newest is None else written_at(newest),
        )
        return FoundDecisions(tuple(found), num_wanted, has_more, kept)

    def _newest_first(self) -> Iterator[tuple[bytes, Mapping[bytes, bytes]]]:
        end = "+"
        while True:
            try:
                entries: Any = self._redis.xrevrange(DECISIONS_STREAM, max=end, count=ENTRIES_PER_LOOK)
            except redis.RedisError as error:
                raise _away(error) from error
            yield from entries
            if len(entries) < ENTRIES_PER_LOOK:
                return
            end = _id_before(entries[-1][0])

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()


def written_at(entry_id: bytes | str) -> datetime:
    """When an entry was written: the server's clock, in its id."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    return datetime.fromtimestamp(int(text.partition("-")[0]) / 1000, tz=UTC)


def _order(entry_id: bytes) -> tuple[int, int]:
    moment, _, number = entry_id.partition(b"-")
    return int(moment), int(number)


def _id_before(entry_id: bytes) -> str:
    """The greatest id below; servers before 6.2 know no exclusive ends."""
    moment, number = _order(entry_id)
    return f"{moment}-{number - 1}" if number else f"{moment - 1}-{GREATEST_NUMBER}"


def _away(error: redis.RedisError) -> UnavailableError:
    return UnavailableError(
        f"Cannot use the decisions stream ({type(error).__name__}: {error}); check REDIS_URL and that the Redis "
        "server runs.",
        retry_after_s=2,
    )
