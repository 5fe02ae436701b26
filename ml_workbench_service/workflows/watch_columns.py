"""Column watch: the service's own looks at users' columns while their files grow, so that values are witnessed in time.

A column that was once read is looked at again within the first tenth of each bar, when a look can still witness
something (`leakage.proof`): by one fetch of the newest bars, which costs a `stat` of the folder's files where nothing
has changed. Columns that nobody ever read are not looked at; a store that fails is asked again at the next turn.
"""

import logging
import threading
from collections.abc import Callable

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.clock import WALL, Clock, clock_ms
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import FeatureStore
from ml_workbench_service.evaluation.leakage.proof import SLACK_SHARE
from ml_workbench_service.market.calendar import DAY_MS

LOOKS_PER_SLACK = 4
"""Within the tenth of a bar in which a value can be witnessed."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LOOKED_AT_BARS = 8
"""Newest bars of one look; a file that grows by more at once is late for all but the last."""

Series = tuple[str, str]
Watched = Callable[[], dict[Series, tuple[str, ...]]]
"""Columns that were ever seen, by symbol and timeframe."""

log = logging.getLogger(__name__)


class ColumnWatch:
    """Looks in a thread of its own.

    Args:
        store: that shows the columns to its witness at each fetch.
        watched: what is looked at.
        clock: the present.
    """

    def __init__(self, store: FeatureStore, watched: Watched, *, clock: Clock = WALL) -> None:
        self._store, self._watched, self._clock = store, watched, clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="column-watch", daemon=True)
        self._failing: set[Series] = set()

    def start(self) -> None:
        """The first looks come after one pause."""
        self._thread.start()

    def stop(self) -> None:
        """After the look at hand, or without it where that takes long: nothing is half written."""
        self._stopping.set()
        self._thread.join(timeout=5.0)

    def look(self) -> float:
        """One turn; seconds until the next one. Raises UnavailableError where the witness cannot be read."""
        found = self._watched()
        now_ms = clock_ms(self._clock)
        for series, columns in found.items():
            if is_due(series[1], now_ms) and not self._stopping.is_set():
                self._look_at(series, columns)
        shortest_ms = min((TIMEFRAMES_MS[timeframe] for _, timeframe in found), default=DAY_MS)
        pause_s = SLACK_SHARE * shortest_ms / LOOKS_PER_SLACK / 1000
        return float(min(max(pause_s, SHORTEST_PAUSE_S), LONGEST_PAUSE_S))

    def _look_at(self, series: Series, columns: tuple[str, ...]) -> None:
        """Says once that a series cannot be read, such as one whose column or file is gone."""
        symbol, timeframe = series
        try:
            self._store.fetch([symbol], timeframe, start_ms=None, end_ms=None, features=columns, last=LOOKED_AT_BARS)
        except PlatformError as error:
            if series not in self._failing:
                log.warning("columns of %s %s are not looked at just now: %s", symbol, timeframe, error.message)
            self._failing.add(series)
            return
        self._failing.discard(series)

    def _run(self) -> None:
        pause_s = LONGEST_PAUSE_S
        while not self._stopping.wait(pause_s):
            try:
                pause_s = self.look()
            except Exception:  # the thread's end would go unnoticed
                pause_s = LONGEST_PAUSE_S
                log.exception("own columns are not looked at just now, and are tried again")


def is_due(timeframe: str, now_ms: int) -> bool:
    """Whether a bar of this timeframe may just have ended; days end at many hours."""
    bar_ms = TIMEFRAMES_MS[timeframe]
    return bar_ms >= DAY_MS or now_ms % bar_ms <= SLACK_SHARE * bar_ms
