"""Audit log: append-only JSON lines in a chain of hashes, each on disk before what it tells of is answered.

    <STATE_DIR>/audit.jsonl     one AuditEntry a line; `hash` = SHA-256 of `previous`, a newline, and the entry without
                                its hash as JSON with sorted keys

Writers hold a file lock, so that the service and the command line make one chain. A line cut off by a kill or a full
disk stays by itself, and the next entry follows the last whole one. What the chain shows: any entry that was changed,
put in or taken out in the middle. What it cannot: that the end was cut off, or all was written anew; for that, keep
the head (`GET /api/v1/audit`) elsewhere and give it to `verify`.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from common_lib.exceptions import PlatformError, StorageFullError, UnavailableError
from common_lib.logging import correlation_id
from common_lib.redaction import redacted_tree
from common_lib.storage import FolderGoneError, check_there, is_full
from ml_workbench_service.contracts.audit import AuditEntry, AuditEvent, AuditFault, AuditHead, AuditReport
from ml_workbench_service.contracts.contract import iso, utc_now
from ml_workbench_service.jobs.durable_files import append_line
from ml_workbench_service.jobs.guarded_reading import guarded_line

AUDIT_FILE = "audit.jsonl"
NOTHING = AuditHead(number=0, hash="0" * 64)
MOST_CHARACTERS = 8_000
"""Of `before` and of `after`, as JSON; longer ones are cut, and say so."""
BLOCK_BYTES = 64 * 1024
LOCK_TIMEOUT_S = 10.0
DONE, UNFORESEEN = 200, 500
"""Statuses of what no request asked for: as an answer's would be."""

_log = logging.getLogger(__name__)


@dataclass
class Change:
    """A change between its two lines; `after` is what the second one says came of it."""

    after: Any = None


class Who(NamedTuple):
    """Who changes something: the id of a key, `API_KEY`, `none`, or a part of the platform."""

    key: str
    client: str = ""
    address: str = ""


class AuditLog:
    """Appends to one file, reads it, verifies it. For any threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.Lock()
        self._known: tuple[int, AuditHead] | None = None  # the file's size after our last line, and that line

    @property
    def lock_file(self) -> Path:
        """What writers hold."""
        return self.path.with_name(f".{self.path.name}.lock")

    def append(
        self, event: AuditEvent, what: str, who: Who, *, before: Any = None, after: Any = None, **facts: str | int
    ) -> AuditHead:
        """One more entry, on disk when this returns; secrets are taken out. `facts` are `on`, `of` and `status`.

        Raises:
            UnavailableError: it cannot be written, so that nothing must be changed.
        """
        fields = redacted_tree({
            "on": "", "of": None, "status": None, **facts, **who._asdict(), "at": iso(utc_now()), "event": event,
            "what": what, "before": _cut(before), "after": _cut(after), "correlation_id": correlation_id(),
        })  # fmt: skip
        lock = FileLock(self.lock_file, thread_local=False, mode=0o600)
        try:
            check_there(self.path)  # the lock would make the folder anew
            with self._turn, lock.acquire(timeout=LOCK_TIMEOUT_S):
                head = self._head()
                entry = {"number": head.number + 1, **fields, "previous": head.hash}
                head = AuditHead(number=head.number + 1, hash=_hash(entry))
                append_line(self.path, _written({**entry, "hash": head.hash}))
                self._known = (self.path.stat().st_size, head)
        except (OSError, Timeout) as error:
            kind = StorageFullError if is_full(error) else UnavailableError
            is_gone = isinstance(error, FolderGoneError)
            why = str(error.strerror) if is_gone else f"{type(error).__name__}; see to STATE_DIR, then try again"
            raise kind(
                f"the audit log cannot be written, so that nothing was changed: {why}", retry_after_s=10
            ) from error
        return head

    @contextmanager
    def change(self, what: str, who: Who, *, on: str, before: Any = None) -> Iterator[Change]:
        """A change that no request asked for: `asked` is on disk before the block runs, `done` when it has ended.

        So a kill in between loses no change, and no line tells of one that did not happen; an error of the block is
        its `done`, with the status that a request would have had.

        Raises:
            UnavailableError: `asked` cannot be written; the block did not run.
        """
        asked = self.append("asked", what, who, on=on, before=before)
        change = Change()
        try:
            yield change
        except Exception as error:
            status = error.status if isinstance(error, PlatformError) else UNFORESEEN
            self.finish(what, who, asked, status=status, after={"error": str(error)})
            raise
        self.finish(what, who, asked, status=DONE, after=change.after)

    def finish(self, what: str, who: Who, asked: AuditHead, *, status: int, after: Any) -> None:
        """The `done` of an `asked`; where there is no room for it the log of the service says so, and what has
        happened stands."""
        try:
            self.append("done", what, who, of=asked.number, status=status, after=after)
        except PlatformError as error:
            _log.error("entry %d of the audit log has no end: %s", asked.number, error.message)

    def newest(self, *, num: int, before: int | None = None) -> tuple[AuditEntry, ...]:
        """So many entries, newest first; those before a number."""
        found: list[AuditEntry] = []
        for line in _backwards(self.path):
            entry = _entry(self.path, line)
            if entry is not None and (before is None or entry.number < before):
                found.append(entry)
                if len(found) == num:
                    break
        return tuple(found)

    def head(self) -> AuditHead:
        """The newest entry's."""
        newest = self.newest(num=1)
        return AuditHead(number=newest[0].number, hash=newest[0].hash) if newest else NOTHING

    def _head(self) -> AuditHead:
        """The same, remembered while nobody else has written."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if self._known is None or self._known[0] != size:
            return self.head()
        return self._known[1]


def verify(path: Path, *, kept: AuditHead | None = None) -> AuditReport:
    """Reads the whole chain; `kept` is a head that was noted elsewhere.

    Raises:
        OSError: the file cannot be read; one that is not there is empty.
    """
    head, faults, num_entries, num_torn = NOTHING, [], 0, 0
    is_kept = kept is None or kept == NOTHING
    for number, line in enumerate(_lines(path), start=1):
        entry = _entry(path, line)
        if entry is None:
            num_torn += 1
            continue
        num_entries += 1
        raw = json.loads(line)
        raw.pop("hash")
        if entry.hash != _hash(raw):
            faults.append(AuditFault(line=number, problem="the entry was changed: its hash is another"))
        elif entry.previous != head.hash or entry.number != head.number + 1:
            problem = f"it does not follow entry {head.number}: entries were taken out, put in or moved before it"
            faults.append(AuditFault(line=number, problem=problem))
        head = AuditHead(number=entry.number, hash=entry.hash)
        is_kept = is_kept or head == kept
    if not is_kept and kept is not None:
        problem = f"entry {kept.number} with the hash that was kept is not there: the log was cut off or written anew"
        faults.append(AuditFault(line=num_entries + num_torn, problem=problem))
    return AuditReport(num_entries=num_entries, num_torn=num_torn, head=head, faults=tuple(faults))


def _hash(entry: dict[str, Any]) -> str:
    return hashlib.sha256(f"{entry['previous']}\n{_written(entry)}".encode()).hexdigest()


def _written(entry: dict[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"))


def _cut(value: Any) -> Any:
    text = json.dumps(value, default=str)
    return json.loads(text) if len(text) <= MOST_CHARACTERS else {"cut": text[:MOST_CHARACTERS]}


def _entry(path: Path, line: bytes) -> AuditEntry | None:
    """None: cut off by a kill, or damaged, which `verify` tells apart from what follows."""
    return guarded_line(path, line, AuditEntry.model_validate_json)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from (line for line in file if line.strip())
    except FileNotFoundError:
        return


def _backwards(path: Path) -> Iterator[bytes]:
    """The lines that are not empty, from the end, reading no more of the file than is asked for."""
    try:
        with path.open("rb") as file:
            left, rest = file.seek(0, os.SEEK_END), b""
            while left:
                begin = max(left - BLOCK_BYTES, 0)
                file.seek(begin)
                first, *lines = (file.read(left - begin) + rest).split(b"\n")
                yield from (line for line in reversed(lines) if line)
                left, rest = begin, first
            if rest:
                yield rest
    except FileNotFoundError:
        return
