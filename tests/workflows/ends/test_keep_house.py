"""Housekeeping: what kills left behind goes, logs keep their ends, and what is live or may be wanted stays."""

import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.integrations.model_registry import STAGING
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.housekeeping.keep_house import HouseRules, keep_house, remove_drafts, shorten_logs
from tests.workflows.ends.published_versions import bench_of
from tests.workflows.ends.test_end_jobs import make_job

OLD = timedelta(days=8)


def aged(path: Path, age: timedelta) -> Path:
    """The same, last changed so long ago."""
    moment = (utc_now() - age).timestamp()
    for each in (*path.rglob("*"), path):
        os.utime(each, (moment, moment))
    return path


def draft(staging: Path, name: str, age: timedelta) -> Path:
    """A draft with a file."""
    folder = staging / name
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"half of it")
    return aged(folder, age)


def test_drafts_that_nobody_finishes_are_removed_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    store, staging = JobStore(tmp_path / "jobs"), tmp_path / STAGING
    make_job(store, "ended", JobKind.TRAIN)
    make_job(store, "waits", JobKind.TRAIN, ends=False)
    for name in ("ended", "waits", "0123abcd"):
        draft(staging, name, OLD)
    draft(staging, "young", timedelta(days=6))
    written = draft(staging, "written", OLD)
    (written / "more.onnx").write_bytes(b"just now")
    aged_folder = (utc_now() - OLD).timestamp()
    os.utime(written, (aged_folder, aged_folder))
    assert remove_drafts(staging, store, untouched_since=utc_now() - timedelta(days=7)) == ["0123abcd", "ended"]
    assert sorted(each.name for each in staging.iterdir()) == ["waits", "written", "young"]
    assert "the draft ended is removed" in caplog.text
    assert remove_drafts(tmp_path / "absent", store, untouched_since=utc_now()) == []


def test_the_end_of_a_log_that_is_too_long_is_kept(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    folders = [make_job(store, name, JobKind.TRAIN, ends=name != "runs") for name in ("long", "short", "runs")]
    lines = [f"line {number}" for number in range(1000)]
    for folder in folders:
        folder.worker_log.write_text("\n".join(lines[:5] if folder.id == "short" else lines) + "\n")
    as_they_were = {folder.id: folder.worker_log.read_bytes() for folder in folders}
    later = utc_now() + timedelta(minutes=1)
    assert shorten_logs(store, most_bytes=1000, ended_before=later - timedelta(hours=1)) == [], "it may still write"
    assert shorten_logs(store, most_bytes=1000, ended_before=later) == ["long"]
    first, *kept = store.folder("long").worker_log.read_text().splitlines()
    assert "were removed: JOB_LOG_MAX_MB" in first
    assert kept == lines[-len(kept) :]
    assert 850 < sum(len(each) + 1 for each in kept) <= 1000
    for name in ("short", "runs"):
        assert store.folder(name).worker_log.read_bytes() == as_they_were[name]
    assert not list(store.folder("long").path.glob(".worker.log*")), "nothing is left beside it"


def test_a_log_is_shortened_once_and_says_what_is_missing_since_its_beginning(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    folder = make_job(store, "long", JobKind.TRAIN)
    whole = "".join(f"line {number} of a log with words\n" for number in range(2000))
    folder.worker_log.write_text(whole)
    later = utc_now() + timedelta(minutes=1)
    assert shorten_logs(store, most_bytes=10_000, ended_before=later) == ["long"]
    assert shorten_logs(store, most_bytes=10_000, ended_before=later) == []
    assert shorten_logs(store, most_bytes=5_000, ended_before=later) == ["long"]
    first, _, kept = folder.worker_log.read_text().partition("\n")
    assert whole.endswith(kept)
    assert first == f"({len(whole) - len(kept):,} bytes before this were removed: JOB_LOG_MAX_MB)"


def test_the_last_words_of_a_progress_bar_are_kept(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    folder = make_job(store, "bar", JobKind.TRAIN)
    folder.worker_log.write_bytes(b"10 %\r" * 10_000 + b"killed\n")
    assert shorten_logs(store, most_bytes=10_000, ended_before=utc_now() + timedelta(minutes=1)) == ["bar"]
    kept = folder.worker_log.read_bytes()
    assert kept.endswith(b"10 %\rkilled\n")
    assert 9_000 < len(kept) <= 10_000


def test_one_turn_does_all_of_it_by_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("JOB_RETENTION_DAYS", "7"), ("JOB_LOG_MAX_MB", "0.001"), ("DRAFT_RETENTION_DAYS", "7")):
        monkeypatch.setenv(name, value)
    bench, store, audit = bench_of(tmp_path), JobStore(tmp_path / "jobs"), AuditLog(tmp_path / AUDIT_FILE)
    folder = make_job(store, "ended", JobKind.REPLAY)
    folder.worker_log.write_text("a line\n" * 1000)
    left = draft(bench.registry.root / STAGING, "ended", timedelta(0))

    def turn(now: datetime) -> None:
        keep_house(store, bench.registry, audit, HouseRules.of(Settings()), now=now)

    turn(utc_now() + timedelta(hours=2))
    assert (left.exists(), folder.worker_log.stat().st_size < 1200) == (True, True)
    turn(utc_now() + OLD)
    assert (left.exists(), folder.path.exists()) == (False, False)


def test_the_rules_are_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HouseRules.of(Settings()) == HouseRules(None, None, 20e6, timedelta(days=7))
    for name, value in (("JOB_RETENTION_DAYS", "3"), ("JOBS_MAX_GB", "2"), ("JOB_LOG_MAX_MB", "1")):
        monkeypatch.setenv(name, value)
    assert HouseRules.of(Settings()) == HouseRules(timedelta(days=3), 2e9, 1e6, timedelta(days=7))
