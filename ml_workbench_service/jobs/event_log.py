"""Append-only event log, `events.jsonl`: one line an event; the truth that everything else about a job projects.

Law: one writer at a time (the worker while it lives; the supervisor before its start and after its death). A torn last
line is skipped by readers, and the next writer begins with a newline. `seq` counts from 1 without holes within the
readable lines. Numbers that are not finite are written as null, secrets not at all.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import orjson

from common_lib.exceptions import ConflictError
from common_lib.redaction import redacted_tree
from ml_workbench_service.contracts.contract import iso, utc_now
from ml_workbench_service.contracts.jobs import EventType, JobEvent
from ml_workbench_service.jobs.durable_files import NewLines, clear_disk_errors
from ml_workbench_service.jobs.guarded_reading import guarded_line

FINAL_EVENTS: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
_TYPES = frozenset(get_args(EventType))
_TAIL_BYTES = 65_536


class EventReader:
    """Follows one log: each `read` gives the events whose lines became complete since the last."""

    def __init__(self, path: Path) -> None:
        self.lines = NewLines(path)
        self.last_seq = 0
        self.has_ended = False  # whether a final event was read

    def read(self) -> list[JobEvent]:
        """New events, oldest first; cheap where there are none."""
        events = map(self.parse, self.lines.read())
        return [event for event in events if event is not None]

    def parse(self, line: bytes) -> JobEvent | None:
        """The event of one line, or None for a torn, foreign or repeated one."""
        event = guarded_line(self.lines.path, line, lambda raw: JobEvent.model_validate(orjson.loads(raw)))
        if event is None or event.seq <= self.last_seq:
            return None
        self.last_seq = event.seq
        self.has_ended = self.has_ended or event.type in FINAL_EVENTS
        return event


class EventLog:
    """The writing side of one log; safe for several threads of one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = EventReader(path)
        self._lock = threading.Lock()

    def append(self, kind: EventType, data: Mapping[str, Any], *, durable: bool = False) -> int:
        """Adds one event, now, and returns its `seq`; `durable` (and every final event) waits for the disk.

        Raises:
            UnavailableError: the disk is full; the log stays readable.
        """
        with self._lock:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                line = self._next_line(descriptor, kind, data)
                with clear_disk_errors(self._path):
                    _write_all(descriptor, line)
                    if durable or kind in FINAL_EVENTS:
                        os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return self._reader.last_seq + 1

    def append_numbered(self, events: Sequence[JobEvent]) -> int:
        """Adds events that a worker elsewhere has numbered, in order, in one go; those that are here already are left
        out, so that posting twice is posting once. The newest number.

        Raises:
            ConflictError: there is a hole before them, the log has ended without them, or others stand in their place.
            UnavailableError: the disk is full; the log stays readable, and has some of the first of them or none.
        """
        with self._lock:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                start = self._end_of_last(descriptor)
                new = self._new_of(events)
                now = utc_now()  # a worker's clock may be ahead
                lines = (encode(each.seq, each.type, each.data, at=iso(min(each.at, now))) for each in new)
                if payload := b"".join(lines):
                    with clear_disk_errors(self._path):
                        _write_all(descriptor, start + payload)
                        if not FINAL_EVENTS.isdisjoint(each.type for each in new):
                            os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return self._reader.last_seq + len(new)

    def _new_of(self, events: Sequence[JobEvent]) -> list[JobEvent]:
        last_seq = self._reader.last_seq
        new = [event for event in events if event.seq > last_seq]
        self._check_same([event for event in events if event.seq <= last_seq])
        if [event.seq for event in new] != list(range(last_seq + 1, last_seq + 1 + len(new))):
            raise ConflictError(
                f"the log has events up to {last_seq}, and these do not follow it", details={"last_seq": last_seq}
            )
        if new and self._reader.has_ended:
            raise ConflictError("the job has ended, and nothing follows its last event")
        return new

    def _check_same(self, repeated: Sequence[JobEvent]) -> None:
        """Raises ConflictError where one of these numbers is another event's; reads the whole log."""
        kept = {each.seq: each for each in EventReader(self._path).read()} if repeated else {}
        for event in repeated:
            there = kept.get(event.seq)
            if there is None or _content(there) != _content(event):
                raise ConflictError(f"number {event.seq} of the log is another event's; whoever posts this has to end")

    def _next_line(self, descriptor: int, kind: EventType, data: Mapping[str, Any]) -> bytes:
        start = self._end_of_last(descriptor)
        return start + encode(self._reader.last_seq + 1, kind, data)

    def _end_of_last(self, descriptor: int) -> bytes:
        """What must stand before the next line; our own earlier lines are read here, so a failed write never counts."""
        self._reader.read()
        offset = self._reader.lines.offset
        torn = os.pread(descriptor, os.fstat(descriptor).st_size - offset, offset)
        if torn:
            self._reader.parse(torn)  # whole but for its newline: our newline makes it readable, so it counts
        return b"\n" if torn else b""


def encode(seq: int, kind: EventType, data: Mapping[str, Any], *, at: str | None = None) -> bytes:
    """One line of the log, its newline included."""
    assert kind in _TYPES, kind
    event = {"seq": seq, "at": at or iso(utc_now()), "type": kind, "data": redacted_tree(dict(data))}
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(event, default=str, option=options)


def _content(event: JobEvent) -> bytes:
    return encode(event.seq, event.type, event.data, at="whenever")


def has_ended(path: Path) -> bool:
    """Whether the log holds a final event, by its tail alone: quick over many finished jobs."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return False
    reader = EventReader(path)
    events = (reader.parse(line) for line in lines)
    return any(event is not None and event.type in FINAL_EVENTS for event in events)


def _write_all(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]
