"""Limits: a token bucket and a daily quota for each key, and addresses that guess keys are slowed.

Held in memory; the day's count is kept with a key's last use (`key_ring`). Where several processes answer, a key's
limits hold over all of them (`shared_counts`). What a limit refuses costs microseconds.
"""

import math
import time
from collections import OrderedDict

from ml_workbench_service.access.shared_counts import SharedCount

DAY_S = 86_400.0
NUM_FREE_FAILURES = 10
FAILURES_WITHIN_S = 60.0
PAUSE_S = 1.0
"""Between two guesses of an address that has used up its free ones."""
MOST_ADDRESSES = 10_000
ROUNDING = 1e-6
"""Of a token, where moments are added up."""


class Allowance:
    """What one key may ask: a rate with a burst of one second's worth, and so many requests a day (of UTC)."""

    def __init__(self, rate_per_s: float | None = None, per_day: int | None = None) -> None:
        self.rate_per_s = rate_per_s
        self.per_day = per_day
        self.day = 0
        self.num_today = 0
        self._tokens = self._most = max(rate_per_s or 0.0, 1.0)
        self._filled_at = 0.0
        self._shared: SharedCount | None = None

    def share(self, shared: SharedCount | None) -> None:
        """From now on what other processes let in counts too; a process that was here before has left its count."""
        self._shared = shared
        if shared is not None:
            day, num = shared.own()
            if (day, num) > (self.day, self.num_today):
                self.day, self.num_today = day, num
            elif self.num_today:
                shared.tell(self.day, self.num_today, shared.used_at_s())

    @property
    def num_of_day(self) -> int:
        """Requests of `day`, over all processes."""
        return self.num_today + (self._shared.others(self.day) if self._shared is not None else 0)

    @property
    def newest_day(self) -> tuple[int, int]:
        """The newest day on which any process let it in, and its requests over all of them."""
        if self._shared is None:
            return self.day, self.num_today
        day = max(self.day, self._shared.newest_day())
        return day, (self.num_today if day == self.day else 0) + self._shared.others(day)

    @property
    def others_used_at_s(self) -> float:
        """When any process let it in last; 0.0 where this is the only one."""
        return self._shared.used_at_s() if self._shared is not None else 0.0

    def take(self) -> int:
        """Takes one; 0 where it may go on, else the seconds after which to ask again."""
        if self._shared is not None:
            return self._take_shared(self._shared)
        if self.per_day is not None:
            now = time.time()
            day = int(now // DAY_S)
            if day != self.day:
                self.day, self.num_today = day, 0
            if self.num_today >= self.per_day:
                return math.ceil((day + 1) * DAY_S - now)
        if self.rate_per_s is not None:
            now_s = time.monotonic()
            self._tokens = min(self._most, self._tokens + (now_s - self._filled_at) * self.rate_per_s)
            self._filled_at = now_s
            if self._tokens < 1.0:
                return math.ceil((1.0 - self._tokens) / self.rate_per_s)
            self._tokens -= 1.0
        self.num_today += 1
        return 0

    def _take_shared(self, shared: SharedCount) -> int:
        """The same bucket, of which one number says everything: when it is full again."""
        now = time.time()
        day = int(now // DAY_S)
        if day != self.day:
            self.day, self.num_today = day, 0
        if self.per_day is not None and self.num_of_day >= self.per_day:
            return math.ceil((day + 1) * DAY_S - now)
        if self.rate_per_s is not None:
            now_s, most = time.monotonic(), max(self.rate_per_s, 1.0)
            lacks_s = min(max(shared.full_at_s - now_s, 0.0), most / self.rate_per_s)
            if (tokens := most - lacks_s * self.rate_per_s) < 1.0 - ROUNDING:
                return math.ceil((1.0 - tokens) / self.rate_per_s)
            shared.full_at_s = now_s + lacks_s + 1.0 / self.rate_per_s
        self.num_today += 1
        shared.tell(day, self.num_today, now)
        return 0


class FailedKeys:
    """Failed keys by the address that sent them: after some within a minute, one more guess a second is looked at."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, list[float]] = OrderedDict()  # [number, begun at, looked at]

    def wait_s(self, address: str) -> int:
        """0 where a guess of this address may be looked at now, else the seconds to wait."""
        found = self._failures.get(address)
        if found is None:
            return 0
        now_s = time.monotonic()
        num, begun_s, looked_s = found
        if now_s - max(begun_s, looked_s) > FAILURES_WITHIN_S:
            del self._failures[address]
            return 0
        if num < NUM_FREE_FAILURES or now_s - looked_s >= PAUSE_S:
            return 0
        return 1

    def note(self, address: str) -> int:
        """One more failed; how many of them there are."""
        now_s = time.monotonic()
        found = self._failures.setdefault(address, [0.0, now_s, now_s])
        found[0] += 1.0
        found[2] = now_s
        self._failures.move_to_end(address)
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        return int(found[0])
