"""The job folder: its event log is the truth, and whatever happens to the log's end, the truth stays readable."""

import errno
import json
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common_lib import redaction
from common_lib.exceptions import ConflictError, DataValidationError, JobCancelled, JobNotFoundError, UnavailableError
from common_lib.redaction import keep_secret
from ml_workbench_service.contracts.jobs import JobKind, JobSpec, JobStatus
from ml_workbench_service.jobs.durable_files import clear_disk_errors
from ml_workbench_service.jobs.event_log import EventLog, EventReader
from ml_workbench_service.jobs.event_report import EventReport
from ml_workbench_service.jobs.job import LARGEST_LOG_BYTES, JobFolder, JobStore, TrackingRecord, new_job_id
from tests.quiet_folders import make_quiet

Make = Callable[..., JobSpec]


def log_of(folder: JobFolder) -> Path:
    return folder.path / "events.jsonl"


def test_a_new_job_is_on_disk_with_its_request_and_queued(store: JobStore, make_spec: Make) -> None:
    spec = make_spec(name="LSTM", features=["sma_20"])
    folder = store.create(spec)
    again = JobFolder(folder.path)
    assert again.spec == spec
    assert again.job().status is JobStatus.QUEUED
    assert again.job().request == {"name": "LSTM", "features": ["sma_20"]}
    assert [(event.seq, event.type, event.at) for event in again.events()] == [(1, "queued", spec.created_at)]
    assert [entry.name for entry in store.root.iterdir()] == [spec.id]


def test_the_same_id_twice_is_a_conflict_and_changes_nothing(store: JobStore, make_spec: Make) -> None:
    spec = make_spec(name="first")
    store.create(spec)
    with pytest.raises(ConflictError) as caught:
        store.create(spec.model_copy(update={"request": {"name": "second"}}))
    assert caught.value.details == {"job_id": spec.id}
    assert JobStore(store.root).get(spec.id).request == {"name": "first"}
    assert [entry.name for entry in store.root.iterdir()] == [spec.id]


@pytest.mark.parametrize("job_id", ["../escape", "a/b", "", ".hidden", "x" * 65, "a\0b", "%2e%2e"])
def test_ids_that_could_leave_the_folder_are_refused(store: JobStore, make_spec: Make, job_id: str) -> None:
    with pytest.raises(JobNotFoundError):
        store.get(job_id)
    with pytest.raises(DataValidationError):
        store.create(make_spec().model_copy(update={"id": job_id}))


def test_the_log_tells_the_whole_story(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    folder.append("started", pid=1, attempt=1)
    folder.append("progress", message="training")
    folder.append("progress", step=3, total=10, metrics={"loss": 0.5, "odd": float("nan"), "np": np.float32(2)})
    folder.append("progress", step=4, total=10, metrics={"loss": 0.4})
    folder.append("warning", message="few rows")
    running = store.get(folder.id)
    assert running.status is JobStatus.RUNNING
    assert (running.progress.step, running.progress.total, running.progress.message) == (4, 10, "training")
    assert running.progress.metrics == {"loss": 0.4, "odd": None, "np": 2.0}
    folder.append("succeeded", result={"version": "1.0.0"})
    folder.append("failed", error_type="X", error_code="X", message="too late")
    done = store.get(folder.id)
    assert (done.status, done.result, done.error) == (JobStatus.SUCCEEDED, {"version": "1.0.0"}, None)
    assert done.warnings == ("few rows",)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert [event.seq for event in folder.events(after_seq=6)] == [7, 8]


def test_an_unchanged_job_is_the_very_same_object_and_a_changed_one_is_not(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    first = folder.job()
    assert folder.job() is first
    JobFolder(folder.path).append("started", pid=1, attempt=1)
    second = folder.job()
    assert second.status is JobStatus.RUNNING
    folder.request_cancel()
    assert folder.job().status is JobStatus.CANCELLING
    folder.write_tracking(TrackingRecord(status="synced", run_id="r", url="http://x"))
    assert folder.job().tracking.model_dump() == {"status": "synced", "run_id": "r", "url": "http://x"}


def test_a_replay_is_not_tracked(store: JobStore, make_spec: Make) -> None:
    assert store.create(make_spec()).job().tracking.status == "pending"
    assert store.create(make_spec(JobKind.REPLAY)).job().tracking.status == "disabled"


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_skipped_and_the_next_writer_begins_anew(
    store: JobStore, make_spec: Make, cut: int
) -> None:
    folder = store.create(make_spec())
    folder.append("started", pid=1, attempt=1)
    folder.append("progress", step=1, total=9)
    whole = log_of(folder).read_bytes()
    log_of(folder).write_bytes(whole[:-cut])
    late = EventReader(log_of(folder))
    seen = late.read()
    assert [event.seq for event in seen] == [1, 2]
    JobFolder(folder.path).append("failed", error_type="E", error_code="C", message="lost")
    seqs = [event.seq for event in JobFolder(folder.path).events()]
    assert seqs == list(range(1, len(seqs) + 1))
    assert [event.seq for event in seen + late.read()] == seqs
    assert JobFolder(folder.path).job().status is JobStatus.FAILED
    assert folder.has_ended


def test_rubbish_in_the_log_is_left_alone(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    with log_of(folder).open("ab") as file:
        file.write(
            b"\0\0\0\n[]\n{}\n"
            + json.dumps({"seq": 2, "at": "now", "type": "started", "data": {}}).encode()
            + b"\n\xff\n"
        )
    assert folder.append("started", pid=1, attempt=1) == 2
    assert [event.type for event in folder.events()] == ["queued", "started"]


@settings(deadline=None)
@given(pieces=st.lists(st.one_of(st.just(b"line"), st.binary(max_size=20)), max_size=12))
def test_whatever_bytes_lie_between_the_numbers_have_no_holes(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    written = 0
    for piece in pieces:
        if piece == b"line":
            EventLog(path).append("progress", {"step": written})
            written += 1
            continue
        with path.open("ab") as file:
            file.write(piece)
    events = EventReader(path).read()
    assert [event.data["step"] for event in events] == list(range(written))
    assert [event.seq for event in events] == list(range(1, written + 1))


def test_threads_of_one_worker_share_its_log(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())

    def write() -> None:
        for step in range(50):
            folder.append("progress", step=step, total=50)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.seq for event in folder.events()] == list(range(1, 202))


def test_a_full_disk_is_said_clearly_and_the_log_stays_readable(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    whole = log_of(folder).read_bytes()
    log_of(folder).unlink()
    log_of(folder).symlink_to("/dev/full")
    with pytest.raises(UnavailableError, match="disk is full"):
        folder.append("started", pid=1, attempt=1)
    log_of(folder).unlink()
    log_of(folder).write_bytes(whole)
    assert folder.append("started", pid=1, attempt=1) == 2


def test_other_disk_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), clear_disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_an_end_is_found_from_the_tail_of_a_long_log(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    for step in range(1500):
        folder.append("progress", step=step, total=1500, metrics={"loss": 0.123456789})
    assert not folder.has_ended
    folder.append("succeeded", result={"text": "x" * 5000})
    assert folder.has_ended
    assert log_of(folder).stat().st_size > 100_000


def test_pages_run_newest_first_without_gap_or_repeat(store: JobStore, make_spec: Make) -> None:
    folders = [store.create(make_spec(JobKind.REPLAY if number % 3 else JobKind.TRAIN)) for number in range(9)]
    folders[3].append("started", pid=1, attempt=1)
    (store.root / "broken").mkdir()
    (store.root / "stray.txt").touch()
    seen: list[str] = []
    cursor = None
    while True:
        page = store.page(limit=4, cursor=cursor)
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [folder.id for folder in reversed(folders)]
    assert [job.id for job in store.page(kind=JobKind.TRAIN).jobs] == [folders[index].id for index in (6, 3, 0)]
    assert [job.id for job in store.page(status=JobStatus.RUNNING).jobs] == [folders[3].id]
    assert store.page(kind=JobKind.TRAIN, limit=3).next_cursor is None
    with pytest.raises(DataValidationError):
        store.page(cursor="bm9uc2Vuc2U=")
    with pytest.raises(DataValidationError):
        store.page(cursor="é")


def test_unfinished_jobs_come_oldest_first(store: JobStore, make_spec: Make) -> None:
    folders = [store.create(make_spec()) for _ in range(4)]
    folders[1].append("cancelled")
    assert [folder.id for folder in store.unfinished()] == [folders[index].id for index in (0, 2, 3)]


def test_a_deleted_folder_is_no_job_any_more(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    for file in folder.path.iterdir():
        file.unlink()
    folder.path.rmdir()
    with pytest.raises(JobNotFoundError):
        store.get(folder.id)
    assert store.page().jobs == ()


def test_fresh_ids_sort_by_time() -> None:
    ids = [new_job_id(datetime(2026, 1, day, tzinfo=UTC)) for day in (9, 10, 11)]
    assert ids == sorted(ids)
    assert ids[0].startswith("20260109T000000-")


def test_a_report_writes_first_and_then_looks_for_a_cancellation(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    report = EventReport(folder)
    report(1, 5, loss=float("inf"))
    folder.request_cancel()
    with pytest.raises(JobCancelled):
        report(2, 5, loss=0.25)
    with pytest.raises(JobCancelled):
        report.check()
    assert [event.data["metrics"] for event in folder.events(1)] == [{"loss": None}, {"loss": 0.25}]


def test_a_terminated_report_cancels_without_the_marker(store: JobStore, make_spec: Make) -> None:
    report = EventReport(store.create(make_spec()))
    report.check()
    report.terminate()
    with pytest.raises(JobCancelled):
        report.check()


def test_the_workers_log_is_read_by_its_last_lines(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    assert folder.log_lines(10) is None
    folder.worker_log.write_bytes(b"".join(b"line %d\n" % number for number in range(100)) + b"torn \xff")
    assert folder.log_lines(3) == "line 98\nline 99\ntorn \ufffd"
    assert folder.log_lines(1000) == folder.worker_log.read_bytes().decode("utf-8", "replace")
    folder.worker_log.write_bytes(b"x" * 3 * LARGEST_LOG_BYTES + b"\nend\n")
    assert len(folder.log_lines(1000) or "") == LARGEST_LOG_BYTES
    assert folder.log_lines(1) == "end\n"


def test_no_secret_leaves_the_workers_log(store: JobStore, make_spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_secrets", [])
    keep_secret("the-key-itself")
    folder = store.create(make_spec())
    cut_in_two = "the-key-itself" + "." * (2000 - 4)
    folder.worker_log.write_text(f"redis://me:pass-word@host/0\n{cut_in_two}\n" + "the-key-itself again")
    for text in (folder.log_lines(100) or "", folder.log_tail(), folder.log_tail(num_chars=2010)):
        assert "the-key" not in text
        assert "itself" not in text
        assert "pass-word" not in text
        assert text.endswith("*** again")


def test_another_process_lists_what_became_of_jobs(store: JobStore, make_spec: Make) -> None:
    def ids(**filters: Any) -> list[str]:
        make_quiet(store.root)
        return [each.id for each in other.page(**filters).jobs]

    store.root.mkdir(parents=True, exist_ok=True)
    other = JobStore(store.root)
    assert ids() == []
    first, second, third = (store.create(make_spec(name=str(number))) for number in range(3))
    assert ids() == [third.id, second.id, first.id] == [each.id for each in other.folders()][::-1]
    first.append("succeeded", result={})
    assert ids(status=JobStatus.SUCCEEDED) == [first.id]
    assert ids(status=JobStatus.QUEUED) == [third.id, second.id]
    assert [each.id for each in other.unfinished()] == [second.id, third.id]
    store.delete(first.id)
    assert ids() == [third.id, second.id]
    shutil.rmtree(second.path)
    assert ids() == [third.id]
    assert [each.id for each in other.unfinished()] == [third.id]


def test_a_job_whose_request_is_restored_is_listed_again(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    request = (folder.path / "request.json").read_bytes()
    (folder.path / "request.json").unlink()
    other = JobStore(store.root)
    make_quiet(store.root)
    assert other.page().jobs == ()
    (folder.path / "request.json").write_bytes(request)
    assert [each.id for each in other.page().jobs] == [folder.id]


def test_pages_by_cursor_are_the_whole_list_in_its_order(store: JobStore, make_spec: Make) -> None:
    made = [store.create(make_spec(name=str(number))).id for number in range(7)]
    make_quiet(store.root)
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = store.page(limit=2, cursor=cursor)
        found += [each.id for each in page.jobs]
        if (cursor := page.next_cursor) is None:
            break
    assert found == [each.id for each in store.page().jobs]
    assert sorted(found) == sorted(made)
