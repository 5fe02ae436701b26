"""Trial log, `trials.jsonl`: one line when an experiment's trial begins, one when it has ended; the last one counts.

Law: one writer at a time (the job's worker). A torn last line is skipped by readers, and the next writer begins with a
newline. A finished trial is on disk when `append` returns, before anything else is told of it, so a worker that
follows a killed one repeats none.

    <name>.jsonl        what began and what ended
    under_way.jsonl     the curves of trials under way so far, replaced whole; nothing but watching depends on it
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.jobs.durable_files import NewLines, clear_disk_errors
from ml_workbench_service.jobs.guarded_reading import guarded_lines

TRIALS_FILE = "trials.jsonl"
UNDER_WAY_FILE = "under_way.jsonl"

log = logging.getLogger(__name__)


class TrialLog:
    """One experiment's trials on disk; reading again is cheap where nothing was added. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._under_way = path.with_name(UNDER_WAY_FILE)
        self._lock = threading.Lock()
        self._lines = NewLines(path)
        self._trials: dict[int, TrialRecord] = {}

    def append(self, record: TrialRecord) -> None:
        """Adds one line; a finished trial is on disk when this returns.

        Raises:
            UnavailableError: the disk is full; the log stays readable.
        """
        with self._lock, clear_disk_errors(self._path), self._path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if torn else b"") + record.model_dump_json().encode() + b"\n")
            file.flush()
            if record.is_finished:
                os.fsync(file.fileno())

    def sketch(self, records: Sequence[TrialRecord]) -> None:
        """What the trials under way have reported so far; a disk that refuses costs the view of it alone."""
        staged = self._under_way.with_name(f".{UNDER_WAY_FILE}")
        try:
            staged.write_text("".join(each.model_dump_json() + "\n" for each in records), encoding="utf-8")
            staged.replace(self._under_way)
        except OSError as error:
            log.warning("the curves of the trials under way were not written: %s", error)

    def trials(self) -> list[TrialRecord]:
        """The newest of every trial, by number; none where nothing has begun."""
        with self._lock:
            lines = self._lines.read()  # one torn by a kill: its trial is made again
            for record in guarded_lines(self._lines.path, lines, TrialRecord.model_validate_json):
                self._trials[record.number] = record
            found = dict(self._trials)
        for record in self._sketched() if any(not each.is_finished for each in found.values()) else ():
            known = found.get(record.number)
            if known is not None and not known.is_finished and known.started_at == record.started_at:
                found[record.number] = record
        return [found[number] for number in sorted(found)]

    def _sketched(self) -> Iterator[TrialRecord]:
        try:
            lines = self._under_way.read_bytes().splitlines()
        except FileNotFoundError:
            return
        yield from guarded_lines(self._under_way, lines, TrialRecord.model_validate_json)
