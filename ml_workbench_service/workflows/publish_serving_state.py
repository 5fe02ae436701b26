"""Publishing the serving state: what is live and how its intervals lean, to Redis, where predict workers follow it.

The deployment history and the live intervals tell of a change; it is in Redis some milliseconds later. Twice a second
everything is compared once more: lines of other processes, and a Redis that has lost its data. Then this process says
that it lives, and up to where everything that was handed over is applied and published.
"""

import logging
import threading
import time
from collections.abc import Callable

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.replicas import KEYS, intervals_field, live_field
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.replicas.presence import Presence
from ml_workbench_service.integrations.replicas.serving_state import ServingStateWriter
from ml_workbench_service.serving.live_intervals import LiveIntervals

LOOK_S = 0.5
GATHER_S = 0.01
BEAT_EVERY_S = 0.25

log = logging.getLogger(__name__)


class ServingStatePublisher:
    """One thread of the control process; `deployments_changed` and `intervals_changed` may be called from any.

    Args:
        keys: the public keys with which bundles are verified.
        applied: up to where what was handed over is applied.
    """

    def __init__(
        self, writer: ServingStateWriter, history: DeploymentHistory, intervals: LiveIntervals, presence: Presence, *,
        keys: Callable[[], bytes], applied: Callable[[], str],
    ) -> None:  # fmt: skip
        self._writer, self._history, self._intervals = writer, history, intervals
        self._presence, self._keys, self._applied = presence, keys, applied
        self._beaten_s = float("-inf")
        self._written: dict[str, bytes] = {}
        self._leaning: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._is_away = False
        self._num_told = self._num_written = 0

    def start(self) -> None:
        """Publishes everything once, then whatever changes."""
        self._turn()
        self._thread = threading.Thread(target=self._run, name="serving-state", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._writer.close()

    def deployments_changed(self) -> None:
        """Something went live, or is live no more."""
        with self._lock:
            self._num_told += 1
        self._wake.set()

    def intervals_changed(self, model_id: str, version: str) -> None:
        """The next intervals of a version may be others."""
        with self._lock:
            self._leaning.add((model_id, version))
            self._num_told += 1
        self._wake.set()

    @property
    def epoch(self) -> str:
        """In which its news are counted."""
        return self._writer.epoch

    @property
    def news_number(self) -> int:
        """Of the news in which everything is that was told here so far, once they are written."""
        with self._lock:
            return self._writer.number + (self._num_told > self._num_written)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(LOOK_S)
            self._stopping.wait(GATHER_S)
            self._wake.clear()
            self._turn()

    def _turn(self) -> None:
        with self._lock:
            leaning, self._leaning = self._leaning, set()
            num_told = self._num_told
        applied = self._applied()  # before: what is applied meanwhile may not be published by this turn
        try:
            self._publish(leaning)
            if time.monotonic() - self._beaten_s > BEAT_EVERY_S:
                self._presence.beat(applied)
                self._beaten_s = time.monotonic()
        except PlatformError as error:
            with self._lock:
                self._leaning |= leaning
            if not self._is_away:
                log.warning("predict workers follow the history file meanwhile: %s", error.message)
            self._is_away = True
        except Exception:  # the next turn may go well
            log.exception("the serving state was not published; it is tried again")
        else:
            self._is_away = False
            with self._lock:
                self._num_written = num_told

    def _publish(self, leaning: set[tuple[str, str]]) -> None:
        is_known = self._writer.is_known()
        if not is_known:
            self._written = {}
        fields: dict[str, bytes] = {KEYS: self._keys()}
        for each in self._history.everything():
            if each.status != "live":
                continue
            fields[live_field(each.model_id)] = each.model_dump_json().encode()
            name = intervals_field(each.model_id, each.version)
            known = self._written.get(name)
            if known is None or (each.model_id, each.version) in leaning:
                known = self._intervals.payload(each.model_id, each.version)
            if known is not None:
                fields[name] = known
        if not is_known:
            self._writer.replace(fields)
        else:
            changed = {name: value for name, value in fields.items() if self._written.get(name) != value}
            self._writer.change(changed, self._written.keys() - fields.keys())
        self._written = fields
