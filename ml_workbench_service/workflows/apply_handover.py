"""Applying the hand-over: what predict workers left in Redis enters the ledger and the live intervals, in one order.

    read ─► live intervals (memory) · ledger's queue ─► once a second: both on disk ─► trimmed from the stream

Laws: the stream's order is the order of a model's questions, whichever worker answered them. What is in the stream has
not been saved, or was saved right before a kill: the ledger then knows its rows by their ids, the live intervals by the
place that their files name. So nothing is lost and nothing is applied twice, whichever process is killed. A disk that
is full stops the reading: the stream holds what comes, then the workers do, then the oldest is dropped and counted.
"""

import logging
import threading
import time

from pydantic import ValidationError

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.handover import HANDED, HandedAnswer, HandoverEntry, place_of
from ml_workbench_service.integrations.prediction_ledger.ledger import PredictionLedger
from ml_workbench_service.integrations.replicas.handover import HandoverStream
from ml_workbench_service.serving.live_intervals import LiveIntervals

BLOCK_MS = 200
ENTRIES_AT_ONCE = 64
GATHER_S = 0.02
"""Where something came, for what follows it: one read and one write for many answers, unless somebody waits."""
SAVE_EVERY_S = 1.0
SAVE_AT_ONCE = 8 * ENTRIES_AT_ONCE
"""Entries that were left behind, to a wait for the disk."""
MOST_UNSAVED = 1_024
"""Entries applied after which both are saved before their time: a quarter of what the stream holds of one machine."""
MOST_AHEAD = 4_000
"""Answers in the ledger's memory: it takes 10,000, and drops what is beyond."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 2.0

log = logging.getLogger(__name__)


class HandoverApplier:
    """One thread of the control process."""

    def __init__(self, stream: HandoverStream, ledger: PredictionLedger, intervals: LiveIntervals) -> None:
        self._stream, self._ledger, self._intervals = stream, ledger, intervals
        self._place = ""  # applied up to here
        self._saved = ""
        self._saved_s = 0.0
        self._num_unsaved = 0
        self._again: tuple[int, int] | None = None  # entries up to here may have been saved by a predecessor
        self._following: dict[str, int] = {}  # by sender, the number that comes next
        self._stopping, self._hurry = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._applied = threading.Condition()
        self._is_away = False
        self.num_lost = 0
        """Items that workers numbered and that never came."""
        self.num_applied = 0

    @property
    def place(self) -> str:
        """Up to where everything is applied; empty before the first."""
        return self._place

    def recover(self) -> int:
        """Applies and saves what lies in the stream from before; how many entries. Raises UnavailableError."""
        newest = self._found()
        num = 0
        while place_of(self._place) < newest and (entries := self._stream.read(self._place, count=ENTRIES_AT_ONCE)):
            for entry in entries:
                self._apply(entry)
            num += len(entries)
            if num % SAVE_AT_ONCE == 0 or self._ledger.num_waiting > MOST_AHEAD:
                self._save()
        self._save()
        return num

    def _found(self) -> tuple[int, int]:
        """The last entry that was there when the stream was first seen, which for a replica's may be long after the
        start of this process."""
        if self._again is None:
            self._again = place_of(self._stream.newest())
        return self._again

    def start(self) -> None:
        """Begins to apply."""
        self._thread = threading.Thread(target=self._run, name="hand-over", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Applies and saves what is there, and ends."""
        self._stopping.set()
        self._hurry.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stream.close()

    def catch_up(self, timeout_s: float = 2.0) -> bool:
        """Waits until what is in the stream now is applied; whether that was in time. From any thread."""
        if self._thread is None or self._is_away:
            return False
        asked = self._asked_newest()
        self._hurry.set()
        deadline = time.monotonic() + timeout_s
        with self._applied:
            while place_of(self._place) < asked:
                if not self._applied.wait(deadline - time.monotonic()):
                    return False
        return True

    def _asked_newest(self) -> tuple[int, int]:
        try:
            return place_of(self._stream.newest())
        except PlatformError:
            return (0, 0)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                num = self._turn(block_ms=BLOCK_MS)
                pause_s, self._is_away = FIRST_PAUSE_S, False
                if 0 < num < ENTRIES_AT_ONCE and not self._stopping.is_set():
                    self._hurry.wait(GATHER_S)
                    self._hurry.clear()
            except PlatformError as error:
                if not self._is_away:
                    log.warning("what predict workers hand over waits for Redis: %s", error.message)
                self._is_away = True
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
            except Exception:
                log.exception("a turn of the hand-over failed; it goes on with the next")
                self._stopping.wait(pause_s)
        try:
            while self._turn(block_ms=0):
                pass
            self._save()
        except PlatformError as error:
            log.warning("what predict workers handed over last waits for the next start: %s", error.message)

    def _turn(self, *, block_ms: int) -> int:
        num = 0
        self._found()
        if self._ledger.num_waiting < MOST_AHEAD:
            entries = self._stream.read(self._place, count=ENTRIES_AT_ONCE, block_ms=block_ms)
            num = len(entries)
            for entry in entries:
                self._apply(entry)
        else:
            self._stopping.wait(FIRST_PAUSE_S)
        is_due = time.monotonic() - self._saved_s > SAVE_EVERY_S or self._num_unsaved >= MOST_UNSAVED
        if self._place != self._saved and is_due:
            self._save()
        return num

    def _apply(self, entry: HandoverEntry) -> None:
        expected = self._following.get(entry.sender, entry.first)
        self.num_lost += max(0, entry.first - expected)
        self._following[entry.sender] = entry.first + entry.num
        try:
            items = HANDED.validate_json(entry.items)
        except ValidationError as error:  # of another version of this service
            log.error("%d answers that a predict worker handed over cannot be read: %s", entry.num, error)
            self.num_lost += entry.num
            items = ()
        known: set[str] = set()
        if place_of(entry.entry_id) <= self._found():
            known = self._ledger.known([each.record.prediction_id for each in items if isinstance(each, HandedAnswer)])
        for number, item in enumerate(items, 1):
            if not isinstance(item, HandedAnswer):
                self._intervals.apply(item, place=f"{entry.entry_id}/{number}")
            elif item.record.prediction_id not in known:
                self._ledger.record(item.answered(), item.made_by(), is_sampled=item.is_sampled)
        self.num_applied += len(items)
        self._num_unsaved += 1
        with self._applied:
            self._place = entry.entry_id
            self._applied.notify_all()

    def _save(self) -> None:
        """Everything applied is on disk: it leaves the stream. Else it stays, for now."""
        self._saved_s, self._num_unsaved = time.monotonic(), 0
        place = self._place
        if not place or place == self._saved:
            return
        self._ledger.write_out(5.0)
        if self._ledger.num_waiting == 0 and self._intervals.save():
            self._stream.trim(place)
            self._saved = place
