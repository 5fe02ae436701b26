"""Dead letters: what a group gave up, to look at, to put back into the stream, or to throw away."""

from datetime import UTC, datetime

import redis

from common_lib.exceptions import ConflictError, DeadLetterNotFoundError, QueueFullError
from ml_workbench_service.contracts.queue import DeadLetter, Requeued
from ml_workbench_service.integrations.prediction_queue.connection import as_any, renewing, script, translated


class DeadLetters:
    """The dead letters of one stream.

    Raises:
        UnavailableError: from every method, when the server is away.
    """

    def __init__(self, connection: redis.Redis, stream: str, *, capacity: int) -> None:
        self._redis = connection
        self._stream = stream
        self._key = stream + ":dead"
        self._capacity = capacity
        self._requeue = script(connection, "requeue")

    def after(self, letter_id: str | None, *, limit: int) -> list[DeadLetter]:
        """At most so many, oldest first, that came after that one."""
        with translated("read the dead letters of"):
            low = "-" if letter_id is None else f"({letter_id}"
            entries = as_any(self._redis.xrange(self._key, min=low, count=limit))
        return [_letter(entry_id.decode(), fields) for entry_id, fields in entries]

    def requeue(self, letter_id: str) -> Requeued:
        """Back into the stream as its newest entry, for the group that gave it up and for no other.

        Raises:
            DeadLetterNotFoundError: there is no such letter.
            QueueFullError: there is no room; nothing is evicted for a letter.
            ConflictError: its group has ended.
        """
        with translated("requeue a dead letter in"), renewing(self._redis):
            outcome, *more = as_any(self._requeue(keys=[self._stream], args=[letter_id, self._capacity]))
        if outcome == b"missing":
            raise _missing(letter_id)
        if outcome == b"full":
            raise QueueFullError("the queue has no room for the dead letter; try again once it was worked off")
        if outcome == b"no group":
            raise ConflictError(
                f"the group {more[0].decode()} that gave this letter up has ended; start its agent again, then requeue"
            )
        entry_id, group = more
        return Requeued(id=letter_id, group=group.decode(), entry_id=entry_id.decode())

    def discard(self, letter_id: str) -> None:
        """Deletes one for good; it stays counted in its group's accounting.

        Raises:
            DeadLetterNotFoundError: there is no such letter.
        """
        with translated("delete a dead letter of"), renewing(self._redis):
            if not self._redis.xdel(self._key, letter_id):
                raise _missing(letter_id)


def _missing(letter_id: str) -> DeadLetterNotFoundError:
    return DeadLetterNotFoundError(f"there is no dead letter {letter_id}; GET /api/v1/queue/dead-letters lists them")


def _letter(letter_id: str, fields: dict[bytes, bytes]) -> DeadLetter:
    texts = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in fields.items()}
    entry_id, group, reason = (texts.pop(name, "") for name in ("entry_id", "group", "reason"))
    return DeadLetter(
        id=letter_id,
        entry_id=entry_id,
        group=group,
        reason=reason,
        prediction_id=texts.get("prediction_id"),
        symbol=texts.get("symbol"),
        model_id=texts.get("model_id"),
        at=datetime.fromtimestamp(int(letter_id.partition("-")[0]) / 1000, tz=UTC),
        fields=texts,
    )
