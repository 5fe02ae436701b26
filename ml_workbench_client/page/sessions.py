"""Sessions: who has shown the key, kept in this process's memory alone; the browser holds a random id.

The key leaves neither this memory nor the header of requests to the service: it is in no cookie, page or log, and gone
when the process ends. Attempts are limited for each client address.
"""

import secrets
import time
from collections import deque

from ml_workbench_client import AsyncWorkbench, Patience

COOKIE = "ml_workbench_page"
IDLE_S = 12 * 3600.0
MOST_SESSIONS = 500
NUM_ATTEMPTS = 5
ATTEMPTS_WITHIN_S = 60.0
MOST_ADDRESSES = 10_000
PATIENCE = Patience(num_retries=1, longest_retry_after_s=2.0, num_reconnects=10_000)
"""Somebody is looking: failures are shown at once, and event streams taken up whenever the service is back."""


class Session:
    """One browser that may speak to the service, with its client."""

    def __init__(self, service_url: str, key: str | None) -> None:
        self.bench = AsyncWorkbench(service_url, key or "", timeout_s=30.0, patience=PATIENCE)
        self.used_at = time.monotonic()
        self.is_open = True

    async def close(self) -> None:
        """Forgets the key."""
        self.is_open = False
        await self.bench.aclose()


class Sessions:
    """All sessions of this process by their id."""

    def __init__(self, service_url: str) -> None:
        self._service_url = service_url
        self._sessions: dict[str, Session] = {}

    def find(self, identifier: str | None) -> Session | None:
        """The session of that id; None where there is none, or it was idle for too long."""
        found = self._sessions.get(identifier or "")
        if found is None or time.monotonic() - found.used_at > IDLE_S:
            return None
        found.used_at = time.monotonic()
        return found

    async def begin(self, key: str) -> tuple[str, Session]:
        """A new session and its id, which is new for every login."""
        await self._make_room()
        identifier = secrets.token_urlsafe(32)
        self._sessions[identifier] = Session(self._service_url, key)
        return identifier, self._sessions[identifier]

    async def end(self, identifier: str | None) -> None:
        """Ends a session; ending one that is not there is nothing."""
        found = self._sessions.pop(identifier or "", None)
        if found is not None:
            await found.close()

    async def _make_room(self) -> None:
        now = time.monotonic()
        by_use = sorted(self._sessions, key=lambda each: self._sessions[each].used_at)
        idle = [each for each in by_use if now - self._sessions[each].used_at > IDLE_S]
        for each in idle or by_use[: max(len(by_use) - MOST_SESSIONS + 1, 0)]:
            await self.end(each)


class AttemptLimit:
    """At most so many failed attempts within so many seconds, for each client address."""

    def __init__(self) -> None:
        self._failed_at: dict[str, deque[float]] = {}

    def wait_s(self, address: str) -> float:
        """Seconds until that address may try again; 0: now."""
        failed = self._recent(address)
        return ATTEMPTS_WITHIN_S - (time.monotonic() - failed[0]) if len(failed) >= NUM_ATTEMPTS else 0.0

    def note_failure(self, address: str) -> None:
        """One more attempt failed."""
        if len(self._failed_at) >= MOST_ADDRESSES:
            self._failed_at = {each: when for each, when in self._failed_at.items() if self._recent(each)}
        self._failed_at.setdefault(address, deque()).append(time.monotonic())

    def forgive(self, address: str) -> None:
        """It knew the key."""
        self._failed_at.pop(address, None)

    def _recent(self, address: str) -> deque[float]:
        failed = self._failed_at.get(address, deque())
        while failed and time.monotonic() - failed[0] > ATTEMPTS_WITHIN_S:
            failed.popleft()
        return failed
