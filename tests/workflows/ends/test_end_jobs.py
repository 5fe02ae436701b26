"""Retention of jobs: old ones go, but for those that a version's card, or MLflow, still needs."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.jobs.job import JobStore, TrackingRecord
from ml_workbench_service.workflows.end_jobs import delete_old_jobs
from ml_workbench_service.workflows.end_versions import purge_model
from tests.workflows.ends.published_versions import bench_of, publish


def test_old_jobs_go_and_a_versions_own_stays_until_it_is_purged(tmp_path: Path) -> None:
    bench, store = bench_of(tmp_path), JobStore(tmp_path / "jobs")
    publish(bench.registry, "model", "1.0.0")

    def job(name: str, kind: JobKind, *, ends: bool = True, synced: bool = True, **plan: Any) -> None:
        spec = JobSpec(id=name, kind=kind, request={}, plan=plan, created_at=utc_now(), correlation_id="")
        folder = store.create(spec)
        folder.append("started")
        if ends:
            folder.append("succeeded", result={})
        folder.write_tracking(TrackingRecord(status="synced" if synced else "pending"))

    job("kept", JobKind.TRAIN, model_id="model", version="1.0.0")
    job("searched", JobKind.EXPERIMENT, model_id="model", version="1.1.0")  # which nobody published
    job("unsent", JobKind.TRAIN, synced=False, model_id="model", version="1.2.0")
    job("replayed", JobKind.REPLAY, version="1.0.0", synced=False)
    job("runs", JobKind.REPLAY, ends=False)

    def swept(days: int) -> list[str]:
        now = utc_now() + timedelta(days=days)
        return sorted(delete_old_jobs(store, bench.registry, retention=timedelta(days=7), now=now))

    assert swept(6) == []
    assert swept(8) == ["replayed", "searched"]
    assert swept(8) == []
    purge_model(bench, "model", confirm="model", unfinished=())
    assert swept(8) == ["kept"]
    assert sorted(folder.id for folder in store.folders()) == ["runs", "unsent"]
