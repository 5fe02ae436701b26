"""Retention of jobs: old ones go, but for those that a version's card, or MLflow, still needs."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common_lib.storage import FolderGoneError, keep, let_go
from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.jobs.job import JobFolder, JobStore, TrackingRecord
from ml_workbench_service.workflows.end_versions import purge_model
from ml_workbench_service.workflows.housekeeping.end_jobs import delete_old_jobs
from tests.workflows.ends.published_versions import bench_of, publish


def make_job(
    store: JobStore, name: str, kind: JobKind, *, ends: bool = True, synced: bool = True, **plan: Any
) -> JobFolder:
    """A job with a few events."""
    spec = JobSpec(id=name, kind=kind, request={}, plan=plan, created_at=utc_now(), correlation_id="")
    folder = store.create(spec)
    folder.append("started")
    if ends:
        folder.append("succeeded", result={})
    folder.write_tracking(TrackingRecord(status="synced" if synced else "pending"))
    return folder


def test_old_jobs_go_and_a_versions_own_stays_until_it_is_purged(tmp_path: Path) -> None:
    bench, store, audit = bench_of(tmp_path), JobStore(tmp_path / "jobs"), AuditLog(tmp_path / AUDIT_FILE)
    publish(bench.registry, "model", "1.0.0")
    job = partial(make_job, store)
    job("kept", JobKind.TRAIN, model_id="model", version="1.0.0")
    job("searched", JobKind.EXPERIMENT, model_id="model", version="1.1.0")  # which nobody published
    job("unsent", JobKind.TRAIN, synced=False, model_id="model", version="1.2.0")
    job("replayed", JobKind.REPLAY, version="1.0.0", synced=False)
    job("runs", JobKind.REPLAY, ends=False)

    def swept(days: int) -> list[str]:
        now = utc_now() + timedelta(days=days)
        week = timedelta(days=7)
        return sorted(delete_old_jobs(store, bench.registry, audit=audit, retention=week, now=now))

    assert swept(6) == []
    assert swept(8) == ["replayed", "searched"]
    assert swept(8) == []
    purge_model(bench, "model", confirm="model", unfinished=())
    assert swept(8) == ["kept"]
    assert sorted(folder.id for folder in store.folders()) == ["runs", "unsent"]
    done, asked = audit.newest(num=2)
    assert (asked.event, asked.what, asked.on) == ("asked", "job deleted by JOB_RETENTION_DAYS", "kept")
    assert (asked.key, asked.before["status"]) == ("service", "succeeded")
    assert (done.of, done.status, done.after["id"]) == (asked.number, 200, "kept")
    assert len(audit.newest(num=99)) == 2 * 3, "each has its two lines, and nothing else has any"


def test_nothing_goes_while_the_registry_is_away(tmp_path: Path) -> None:
    bench, store, audit = bench_of(tmp_path), JobStore(tmp_path / "jobs"), AuditLog(tmp_path / AUDIT_FILE)
    publish(bench.registry, "model", "1.0.0")
    make_job(store, "kept", JobKind.TRAIN, model_id="model", version="1.0.0")
    keep(bench.registry.root)
    away = bench.registry.root.with_name("away")
    try:
        bench.registry.root.rename(away)
        with pytest.raises(FolderGoneError):
            delete_old_jobs(store, bench.registry, audit=audit, retention=timedelta(0), most_bytes=1, now=utc_now())
    finally:
        away.rename(bench.registry.root)
        let_go(bench.registry.root)
    assert [folder.id for folder in store.folders()] == ["kept"]


def test_the_importance_that_a_versions_figure_is_drawn_from_stays(tmp_path: Path) -> None:
    bench, store, audit = bench_of(tmp_path), JobStore(tmp_path / "jobs"), AuditLog(tmp_path / AUDIT_FILE)
    publish(bench.registry, "model", "1.0.0")
    begun = utc_now()
    for place, (name, version) in enumerate((("f-older", "1.0.0"), ("b-newest", "1.0.0"), ("z-purged", "0.9.0"))):
        asked = {"model_id": "model", "version": version}
        spec = JobSpec(
            id=name, kind=JobKind.IMPORTANCE, request=asked, plan={}, created_at=begun + timedelta(seconds=place),
            correlation_id="",
        )  # fmt: skip
        store.create(spec).append("succeeded", result={})
    late = utc_now() + timedelta(days=1)
    delete_old_jobs(store, bench.registry, audit=audit, retention=timedelta(0), now=late)
    assert [folder.id for folder in store.folders()] == ["b-newest"]


def test_beyond_its_size_what_ended_first_goes_and_what_is_needed_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench, store, audit = bench_of(tmp_path), JobStore(tmp_path / "jobs"), AuditLog(tmp_path / AUDIT_FILE)
    publish(bench.registry, "model", "1.0.0")
    sizes = {}
    for name, plan in (
        ("kept", {"model_id": "model", "version": "1.0.0"}),
        ("first", {}),
        ("second", {}),
        ("last", {}),
    ):
        folder = make_job(store, name, JobKind.TRAIN, **plan)
        folder.worker_log.write_bytes(b"x" * 100_000)
        sizes[name] = sum(each.stat().st_size for each in folder.path.rglob("*"))

    def swept(most_bytes: float) -> list[str]:
        return delete_old_jobs(store, bench.registry, audit=audit, retention=None, most_bytes=most_bytes, now=utc_now())

    assert swept(sum(sizes.values())) == []
    assert swept(sum(sizes.values()) - 1) == ["first"]
    assert audit.newest(num=2)[1].what == "job deleted by JOBS_MAX_GB"
    assert swept(1) == ["second", "last"]
    assert [folder.id for folder in store.folders()] == ["kept"]
    assert "more than JOBS_MAX_GB" in caplog.text
