"""How the publisher paces itself: by the load of its thread, and by pauses that grow while nothing moves."""

import time

HIGH_LOAD = 0.6  # one connection back to back makes 0.8 or more, 2,000 records a second below HTTP 0.2
LOAD_WINDOW_S = 0.01


class Load:
    """Which share of the time this thread worked, over the last hundredth of a second or longer."""

    def __init__(self) -> None:
        self._since_s = self._worked_s = 0.0
        self._is_high = False

    def is_high(self, now_s: float) -> bool:
        """Whether it did for most of the time; `now_s` by the monotonic clock."""
        if now_s - self._since_s >= LOAD_WINDOW_S:
            worked_s = time.thread_time()
            self._is_high = worked_s - self._worked_s >= HIGH_LOAD * (now_s - self._since_s)
            self._since_s, self._worked_s = now_s, worked_s
        return self._is_high


class Pauses:
    """Pauses that double up to a bound, and begin anew after progress."""

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s, self._last_s = first_s, last_s
        self._next_s = first_s

    def grown(self) -> float:
        """The next pause, in seconds; the one after it is twice as long."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._last_s)
        return pause_s

    def reset(self) -> None:
        """Begins anew: there was progress."""
        self._next_s = self._first_s
