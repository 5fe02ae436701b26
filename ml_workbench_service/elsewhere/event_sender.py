"""Event sender: a worker's events on their way to the control plane, in order, each once, through an outage.

Events are numbered here, as the log numbers them: while an attempt lives nobody else writes its job's log. They leave
in the background, as many at a time as wait. A post that was not answered is made again with the same numbers, of which
the control plane takes those that it lacks. At most `MOST_WAITING` events or `MOST_WAITING_BYTES` wait; whoever adds
more waits too.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from ml_workbench_service.contracts.jobs import EventType
from ml_workbench_service.contracts.work_elsewhere import MOST_EVENT_BYTES, MOST_EVENTS, Heard
from ml_workbench_service.elsewhere.connection import JobConnection
from ml_workbench_service.jobs.event_log import FINAL_EVENTS, encode

MOST_WAITING = 20_000
MOST_WAITING_BYTES = 16 * 2**20
LOOK_S = 0.5


class EventSender:
    """The events of one attempt.

    Args:
        last_seq: the log's newest number as the attempt began.
        heard: is told what the control plane answers.
    """

    def __init__(self, connection: JobConnection, last_seq: int, heard: Callable[[Heard], None]) -> None:
        self._connection = connection
        self._heard = heard
        self._newest = self._sent = last_seq
        self._waiting: deque[bytes] = deque()
        self._num_bytes = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="event sender", daemon=True)
        self._thread.start()

    def append(self, kind: EventType, data: Mapping[str, Any]) -> int:
        """Adds one event and returns its number; the first and the final one are in the log when this returns.

        Raises:
            AttemptLostError: nothing more can be said.
        """
        with self._changed:
            while len(self._waiting) >= MOST_WAITING or self._num_bytes >= MOST_WAITING_BYTES:
                self._connection.check()
                self._changed.wait(LOOK_S)
            self._connection.check()
            seq = self._newest + 1
            line = encode(seq, kind, data).rstrip(b"\n")
            self._newest = seq
            self._waiting.append(line)
            self._num_bytes += len(line)
            self._changed.notify_all()
        if kind in FINAL_EVENTS or kind == "started":
            self.flush()
        return seq

    def flush(self) -> None:
        """Returns once everything that was added before is in the log; raises like `append`."""
        with self._changed:
            wanted = self._newest
            while self._sent < wanted:
                self._connection.check()
                self._changed.wait(LOOK_S)

    def close(self) -> None:
        """What waits still may stay unsaid."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout=2 * LOOK_S)

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                body = b'{"events":[' + b",".join(batch) + b"]}"
                heard = self._connection.put("events", body, Heard)
            except Exception as error:  # lost, or refused for good: whoever adds or flushes hears of it
                self._connection.lose(f"the control plane takes no more events of this attempt: {error}", error)
                with self._changed:
                    self._changed.notify_all()
                return
            self._heard(heard)
            with self._changed:
                self._sent += len(batch)
                for _ in batch:
                    self._num_bytes -= len(self._waiting.popleft())
                self._changed.notify_all()

    def _next_batch(self) -> list[bytes] | None:
        """What is sent at once; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._is_closed:
                    return None
                self._changed.wait(LOOK_S)
            batch: list[bytes] = []
            num_bytes = 0
            for line in self._waiting:
                num_bytes += len(line)
                if batch and (len(batch) == MOST_EVENTS or num_bytes > MOST_EVENT_BYTES):
                    break
                batch.append(line)
            return batch
