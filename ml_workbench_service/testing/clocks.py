"""Clocks for tests: one that stands still until it is set, in memory or in a file that another process writes.

create_app(settings, clock=FileClock(path))     # in a test's own entry point
"""

from datetime import UTC, datetime
from pathlib import Path

from ml_workbench_service.contracts.contract import iso


class FixedClock:
    """Stands at `moment` until that is set anew."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    @classmethod
    def at_ms(cls, moment_ms: int) -> "FixedClock":
        """At so many milliseconds since the epoch."""
        return cls(datetime.fromtimestamp(moment_ms / 1000, tz=UTC))

    def now(self) -> datetime:
        """Where it stands."""
        return self.moment


class FileClock:
    """Stands where its file says; whoever tests a service in a process of its own writes the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self, moment: datetime) -> None:
        """Moves it, for every process that reads the file."""
        draft = self._path.with_suffix(".draft")
        draft.write_text(iso(moment), encoding="ascii")
        draft.replace(self._path)

    def now(self) -> datetime:
        """Where it stands."""
        return datetime.fromisoformat(self._path.read_text(encoding="ascii"))
