"""Key ring: who a key belongs to, from memory; the file of keys is looked at again every half a second at most.

So a key that is made, rotated or revoked counts within half a second, without a restart, and no request waits for a
disk. A file that was damaged or taken away while the service runs opens nothing: the keys known before stay as they
were where it cannot be read, and none is known where it is gone. Where predict workers answer too, each process has a
ring, and what keys have used is counted over all of them (`share`); one alone writes it down.
"""

import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path

from common_lib.exceptions import DataValidationError, PlatformError
from ml_workbench_service.access.keys import KeyFile, digest_of, identifier_of
from ml_workbench_service.access.limits import Allowance
from ml_workbench_service.access.operations import Scope
from ml_workbench_service.access.shared_counts import SharedCounts
from ml_workbench_service.jobs.durable_files import write_whole
from ml_workbench_service.jobs.guarded_reading import guarded, json_object

USES_FILE = "key_uses.json"
LOOK_EVERY_S = 0.5
ALL = frozenset(Scope)

log = logging.getLogger(__name__)


class Caller:
    """Who asks: a client by one of its keys, the holder of API_KEY, or this machine where no key is needed."""

    __slots__ = ("allowance", "client", "digest", "ends_at_s", "id", "scopes", "used_at_s")

    def __init__(
        self, identifier: str, client: str, scopes: frozenset[Scope] = ALL, *, digest: bytes = b"",
        ends_at_s: float | None = None, allowance: Allowance | None = None,
    ) -> None:  # fmt: skip
        self.id = identifier
        self.client = client
        self.scopes = scopes
        self.digest = digest
        self.ends_at_s = ends_at_s
        self.allowance = allowance or Allowance()
        self.used_at_s = 0.0

    def may(self, scope: Scope) -> bool:
        """Whether it has a scope; `admin` has them all."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


ANYBODY = Caller("none", "this machine")
"""Who asks from this machine's own loopback while there is no key at all."""


class KeyRing:
    """The keys as they are now.

    Args:
        file: of the clients' keys; it need not be there.
        api_key: the setting of that name: an admin key.
        uses: where last uses and the day's counts are kept, written now and then by `keep_uses`.
    """

    def __init__(self, file: Path, *, api_key: str | None, uses: Path, look_every_s: float = LOOK_EVERY_S) -> None:
        self._file = KeyFile(file)
        self._uses = uses
        self._look_every_s = look_every_s
        self._master = None
        if api_key:
            self._master = Caller("API_KEY", "API_KEY", digest=digest_of(api_key.encode()))
        self._by_id: dict[str, Caller] = {}
        self._stamp: tuple[int, int, int] | None = None
        self._looked_s = float("-inf")
        self._has_seen_keys = False
        self._kept: dict[str, dict[str, float]] = {}
        self._counts: SharedCounts | None = None

    def share(self, counts: SharedCounts) -> None:
        """Counts together with other processes; a ring that was not loaded reads the file, and opens nothing where it
        cannot be read."""
        self._counts = counts
        if self._master is not None:
            self._master.allowance.share(counts.of(0, ""))
        self._stamp, self._looked_s = None, float("-inf")
        self._look()
        if self._has_seen_keys:
            counts.see_keys()

    def load(self) -> None:
        """Reads the file and the last uses, at the start of the service.

        Raises:
            DataValidationError: the file of keys is damaged.
        """
        self._file.read()
        self._kept = read_uses(self._uses)
        self._stamp, self._looked_s = None, float("-inf")
        self._look()

    @property
    def is_guarded(self) -> bool:
        """Whether a key is needed; once there was one, it stays so until the service starts again."""
        self._look()
        if self._master is not None or self._has_seen_keys:
            return True
        return self._counts is not None and self._counts.has_seen_keys

    @property
    def num_keys(self) -> int:
        """Live keys of clients."""
        self._look()
        return len(self._by_id)

    def find(self, key: bytes) -> Caller | None:
        """Whose key this is; None where it is nobody's, or has ended."""
        self._look()
        digest = digest_of(key)
        found = self._by_id.get(identifier_of(key) or "")
        now_s = time.time()
        if found is None or not compare_digest(digest, found.digest):
            found = self._master
            if found is None or not compare_digest(digest, found.digest):
                return None
        elif found.ends_at_s is not None and now_s >= found.ends_at_s:
            return None
        found.used_at_s = now_s
        return found

    def keep_uses(self) -> None:
        """Writes last uses and the day's counts, where any has changed; a disk that is full costs only them."""
        self._look()  # a key may have been used in other processes alone
        for each in self._callers():
            each.used_at_s = max(each.used_at_s, each.allowance.others_used_at_s)
        told = {each.id: _use(each) for each in self._callers() if each.used_at_s}
        if told and {**self._kept, **told} != self._kept:
            self._kept = {**self._kept, **told}
            try:
                write_whole(self._uses, json.dumps(self._kept).encode(), mode=0o600)
            except (OSError, PlatformError) as error:
                log.warning("the last uses of keys cannot be written: %s", error)

    def _callers(self) -> list[Caller]:
        return [*self._by_id.values(), *([self._master] if self._master is not None else [])]

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < self._look_every_s:
            return
        self._looked_s = now_s
        try:
            stat = self._file.path.stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:
            if self._by_id:
                log.error("the file of keys is gone; none of its keys opens anything until it is back")
            self._stamp, self._by_id = None, {}
            return
        except OSError as error:
            log.error("the file of keys cannot be looked at, the keys known stay: %s", error)
            return
        if stamp != self._stamp:
            self._stamp = stamp
            self._read()

    def _read(self) -> None:
        try:
            records = self._file.read()
        except (OSError, DataValidationError) as error:
            log.error("the file of keys cannot be read, the keys known stay: %s", error)
            return
        now = datetime.now(UTC)
        known: dict[str, Caller] = {}
        for place, each in enumerate(records, start=1):
            if not each.is_live(now):
                continue
            before = self._by_id.get(each.id)
            allowance = before.allowance if before is not None else self._allowance(each.id)
            allowance.rate_per_s, allowance.per_day = each.rate_per_s, each.requests_per_day
            if self._counts is not None:
                allowance.share(self._counts.of(place, each.id))
            known[each.id] = Caller(
                each.id, each.client, frozenset(each.scopes), digest=bytes.fromhex(each.digest), allowance=allowance,
                ends_at_s=None if each.expires_at is None else each.expires_at.timestamp(),
            )  # fmt: skip
            known[each.id].used_at_s = before.used_at_s if before is not None else 0.0
        self._by_id = known
        self._has_seen_keys |= bool(records)
        if self._has_seen_keys and self._counts is not None:
            self._counts.see_keys()

    def _allowance(self, identifier: str) -> Allowance:
        allowance, kept = Allowance(), self._kept.get(identifier, {})
        allowance.day, allowance.num_today = int(kept.get("day", 0)), int(kept.get("num_today", 0))
        return allowance


def read_uses(path: Path) -> dict[str, dict[str, float]]:
    """Last uses and counts by the key's id; none where they are not there or cannot be read."""
    return guarded(path, _uses_in) or {}


def _uses_in(content: bytes) -> dict[str, dict[str, float]]:
    return {
        name: {fact: number for fact, number in use.items() if isinstance(number, int | float)}
        for name, use in json_object(content).items()
        if isinstance(use, Mapping)
    }


def _use(caller: Caller) -> dict[str, float]:
    day, num = caller.allowance.newest_day
    return {"used_at_s": caller.used_at_s, "day": day, "num_today": num}
