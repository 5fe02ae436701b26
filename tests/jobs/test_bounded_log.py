"""A log whose oldest part is given back to the disk where it stands, read and copied as if it were short."""

import os
from datetime import timedelta
from pathlib import Path

from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.jobs.bounded_log import first_kept, keep_newest, num_kept_bytes
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.workflows.housekeeping.keep_house import shorten_logs
from tests.workflows.ends.test_end_jobs import make_job

LINES = [f"line {number:07} of a log that grows and grows" for number in range(100_000)]
KEPT = 500_000


def test_the_newest_part_stays_whoever_appends_and_however_often(tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    with file.open("ab", buffering=0) as one, file.open("ab", buffering=0) as other:
        for begin in range(0, len(LINES), 5_000):
            writer = (one, other)[begin // 5_000 % 2]
            writer.write("".join(f"{line}\n" for line in LINES[begin : begin + 5_000]).encode())
            keep_newest(file, most_bytes=KEPT)
            assert num_kept_bytes(file.stat()) < KEPT + 1_100_000
    _, *whole = file.read_bytes().lstrip(b"\0").decode().splitlines()
    assert whole == LINES[-len(whole) :]
    assert sum(map(len, whole)) > KEPT * 0.9
    with file.open("rb") as opened:
        assert 0 < file.stat().st_size - first_kept(opened.fileno()) < KEPT + 1_100_000


def test_a_short_log_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    file.write_bytes(b"words\n" * 1000)
    assert keep_newest(file, most_bytes=10_000) == 0
    assert file.read_bytes() == b"words\n" * 1000
    with file.open("rb") as opened:
        assert first_kept(opened.fileno()) == 0
    file.write_bytes(b"")
    with file.open("rb") as opened:
        assert first_kept(opened.fileno()) == 0


def test_once_its_job_has_ended_the_log_is_short_and_says_what_is_missing(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    folder = make_job(store, "loud", JobKind.TRAIN)
    whole = "".join(f"{line}\n" for line in LINES)
    folder.worker_log.write_text(whole)
    keep_newest(folder.worker_log, most_bytes=KEPT)
    assert (folder.log_lines(3) or "").splitlines() == LINES[-3:]
    assert shorten_logs(store, most_bytes=KEPT, ended_before=utc_now() + timedelta(minutes=1)) == ["loud"]
    first, _, kept = folder.worker_log.read_text().partition("\n")
    assert whole.endswith(kept)
    assert first == f"({len(whole) - len(kept):,} bytes before this were removed: JOB_LOG_MAX_MB)"
    assert KEPT - 1000 < os.stat(folder.worker_log).st_size <= KEPT
