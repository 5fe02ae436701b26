"""Announcing a replica: the control process hears of it once a second and whenever news are in force, and it hears of
the control process: whether it lives, and how old what the intervals here know is.
"""

import logging
import threading
import time
from collections.abc import Callable

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.replicas import ReplicaReport
from ml_workbench_service.integrations.replicas.presence import Presence

REPORT_EVERY_S = 1.0
PAUSE_S = 0.2
SILENT_S = 3.0
"""The control process beats four times a second."""

log = logging.getLogger(__name__)


class ReplicaAnnouncer:
    """One thread of a replica.

    Args:
        report: what it says of itself, given the age of what the intervals here do not know of.
    """

    def __init__(self, presence: Presence, report: Callable[[float], ReplicaReport]) -> None:
        self._presence, self._report = presence, report
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._beat: int | None = None
        self._beaten_s = self._heard_s = time.monotonic() - SILENT_S
        self._behind_s = 0.0
        self.num_unsaved = 0
        """Entries of the hand-over that the control process has not saved, when last looked at."""

    @property
    def redis_silent_s(self) -> float:
        """Since Redis answered last."""
        return time.monotonic() - self._heard_s

    @property
    def control_silent_s(self) -> float:
        """Since the control process was heard last; where it never was, since this process began."""
        return time.monotonic() - self._beaten_s

    @property
    def behind_s(self) -> float:
        """Age of the oldest answer, of any replica, that the live intervals here do not know of; it grows while Redis
        is away."""
        silent_s = self.redis_silent_s
        return self._behind_s + (silent_s if silent_s > SILENT_S else 0.0)

    def start(self) -> None:
        """Begins."""
        self._thread = threading.Thread(target=self._run, name="replica", daemon=True)
        self._thread.start()

    def news(self) -> None:
        """News are in force: who deployed waits to hear it."""
        self._wake.set()

    def stop(self, name: str) -> None:
        """Says that this replica ends."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._presence.leave(name)
        except PlatformError as error:
            log.warning("the control process learns by itself that this replica ends: %s", error.message)
        self._presence.close()

    def _run(self) -> None:
        is_away = False
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._presence.report(self._report(self._behind_s))
                self._look()
                is_away = False
            except PlatformError as error:
                if not is_away:
                    log.warning("this replica cannot be heard: %s", error.message)
                is_away = True
                self._stopping.wait(PAUSE_S)
            except Exception:  # the next turn may go well
                log.exception("a report was not made; the next may be")
            self._wake.wait(REPORT_EVERY_S)

    def _look(self) -> None:
        seen = self._presence.look()
        self._heard_s = time.monotonic()
        if seen.beat is not None and seen.beat != self._beat:
            self._beat, self._beaten_s = seen.beat, self._heard_s
        self._behind_s, self.num_unsaved = seen.behind_s, seen.num_unsaved
