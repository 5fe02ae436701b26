"""Sharding: every stream of a service as one queue; a symbol's records all go to one of them, in order."""

import re
from collections.abc import Sequence

from common_lib.exceptions import DataValidationError, DeadLetterNotFoundError
from ml_workbench_service.contracts.queue import (
    DeadLetter,
    Enqueued,
    FullMode,
    Outgoing,
    Persistence,
    Requeued,
    StreamAccounting,
    stream_names,
)
from ml_workbench_service.integrations.prediction_queue.accounting import summed
from ml_workbench_service.integrations.prediction_queue.stream import RedisPredictionQueue
from ml_workbench_service.integrations.prediction_queue.writer import QueueWriter, added, by_shard

LETTER_NAME = re.compile(r"(?:([0-9]{1,4})\.)?([0-9]{1,19}-[0-9]{1,19})")
"""A dead letter's: its shard where there are several, and its id within it."""


class ShardedQueue:
    """The producers' and operators' side of the queue; consumers open the stream of their shard.

    Args:
        url: of the server.
        capacity: of each stream.
        num_shards: how many streams.
        ttl_s: see `RedisPredictionQueue`.
    """

    def __init__(self, url: str, *, capacity: int, num_shards: int = 1, ttl_s: float | None = None) -> None:
        self.capacity = capacity
        self._url, self._ttl_s = url, ttl_s
        self.shards = tuple(
            RedisPredictionQueue(url, capacity=capacity, stream=name, ttl_s=ttl_s) for name in stream_names(num_shards)
        )

    def enqueue(
        self, outgoing: Sequence[Outgoing], *, full: FullMode = "drop_oldest"
    ) -> tuple[Enqueued, list[Outgoing]]:
        """Appends records, in order for each symbol; returns what became of them, and which found no room yet (`wait`).

        Raises:
            UnavailableError: a stream could not be reached; sending all of them again is safe.
        """
        outcomes: list[Enqueued] = []
        left: list[Outgoing] = []
        for place, part in by_shard(outgoing, len(self.shards)):
            outcome = self.shards[place].enqueue(part, full=full)
            outcomes.append(outcome)
            left += part[outcome.num_handled :]
        return added(outcomes), left

    def writer(self, full: FullMode = "drop_oldest") -> QueueWriter:
        """The same streams for the publisher of an event loop."""
        return QueueWriter(self._url, capacity=self.capacity, full=full, num_shards=len(self.shards), ttl_s=self._ttl_s)

    def accounting(self) -> StreamAccounting:
        """All streams as one."""
        return summed(self.shard_accounting())

    def shard_accounting(self) -> list[StreamAccounting]:
        """Each stream by itself."""
        return [shard.accounting() for shard in self.shards]

    def create_group(self, group: str) -> None:
        """Makes the group on every stream where it is missing."""
        for shard in self.shards:
            shard.create_group(group)

    def remove_group(self, group: str) -> int:
        """Ends the group on every stream; returns how many entries only it still needed."""
        return sum(shard.remove_group(group) for shard in self.shards)

    def dead_letters(self, after: str | None, *, limit: int) -> list[DeadLetter]:
        """At most so many after that one: shard by shard, oldest first within each.

        Raises:
            DataValidationError: `after` names no place of this list; blamed on `query.cursor`.
        """
        place, letter_id = (0, None) if after is None else self._after(after)
        found: list[DeadLetter] = []
        for number in range(place, len(self.shards)):
            letters = self.shards[number].dead_letters.after(letter_id, limit=limit - len(found))
            found += [each.model_copy(update={"id": self._name(number, each.id)}) for each in letters]
            letter_id = None
            if len(found) == limit:
                break
        return found

    def requeue(self, letter_id: str) -> Requeued:
        """See `DeadLetters.requeue`."""
        place, local = self._placed(letter_id)
        return self.shards[place].dead_letters.requeue(local).model_copy(update={"id": letter_id})

    def discard(self, letter_id: str) -> None:
        """See `DeadLetters.discard`."""
        place, local = self._placed(letter_id)
        self.shards[place].dead_letters.discard(local)

    def ping(self) -> float:
        """Round-trip time in seconds."""
        return self.shards[0].ping()

    def persistence(self) -> Persistence:
        """Of the one server that has them all."""
        return self.shards[0].persistence()

    def close(self) -> None:
        """Closes all connections."""
        for shard in self.shards:
            shard.close()

    def _name(self, place: int, letter_id: str) -> str:
        return letter_id if len(self.shards) == 1 else f"{place}.{letter_id}"

    def _placed(self, name: str) -> tuple[int, str]:
        """The shard and the id within it of a letter's name."""
        match = LETTER_NAME.fullmatch(name)
        if match is None:
            raise DataValidationError.at("path.letter_id", "a dead letter's id is as /queue/dead-letters shows it")
        place = int(match[1] or 0)
        if place >= len(self.shards):
            raise DeadLetterNotFoundError(f"there is no dead letter {name}; GET /api/v1/queue/dead-letters lists them")
        return place, match[2]

    def _after(self, name: str) -> tuple[int, str]:
        match = LETTER_NAME.fullmatch(name)
        if match is None or int(match[1] or 0) >= len(self.shards):
            raise DataValidationError.at("query.cursor", "not a cursor of this list; start without one")
        return int(match[1] or 0), match[2]
