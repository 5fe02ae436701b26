"""Clock: which moment it is, for everything that is decided by the market's time.

What is known, stale, expired, closed, or about the past is decided against one clock, handed down from `create_app`.
It is the wall's; only a test harness builds the service with another (`testing.clocks`), so no setting chooses it, and
child processes always live by the wall's. Beats, leases, logs and the ages of jobs belong to the machine and are never
measured by it.
"""

from datetime import datetime
from typing import Protocol

from ml_workbench_service.contracts.contract import to_ms, utc_now


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """The present moment, in UTC."""
        ...


class WallClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """The machine's time, in UTC."""
        return utc_now()


WALL = WallClock()


def clock_ms(clock: Clock) -> int:
    """Its present moment, in milliseconds since the epoch."""
    return to_ms(clock.now())
