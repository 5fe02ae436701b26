"""Backups know ends: what was purged or deleted stays so, also where it happened while the copy was made."""

from pathlib import Path
from typing import Any

import pytest

from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.integrations.backup_archive import ArchiveWriter
from ml_workbench_service.jobs.job import JobStore
from ml_workbench_service.workflows.back_up_state import back_up
from ml_workbench_service.workflows.end_versions import archive, purge_version
from ml_workbench_service.workflows.restore_state import restore
from tests.workflows.ends.published_versions import bench_of, publish


def test_what_has_ended_stays_so_after_a_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(tmp_path / "old")
    bench.state_dir.mkdir(exist_ok=True)
    store = JobStore(bench.state_dir / "jobs")
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        publish(bench.registry, "model", version)
    for version in ("1.0.0", "1.1.0"):
        archive(bench, "model", version)
    for number in (1, 2):
        spec = JobSpec(
            id=f"job-{number}", kind=JobKind.REPLAY, request={}, created_at=utc_now(), correlation_id=""
        )  # fmt: skip
        store.create(spec).append("succeeded", result={})
    purge_version(bench, "model", "1.0.0", confirm=None, unfinished=())
    store.delete("job-1")
    add, ended = ArchiveWriter.add, []

    def meanwhile(writer: ArchiveWriter, path: str, *more: Any) -> str:
        """Ends them in the middle of their being copied."""
        found = add(writer, path, *more)
        if path == "registry/model/1.1.0/card.json":
            ended.append(purge_version(bench, "model", "1.1.0", confirm=None, unfinished=()))
        if path == "state/jobs/job-2/events.jsonl":
            ended.append(store.delete("job-2"))
        return found

    monkeypatch.setattr(ArchiveWriter, "add", meanwhile)
    manifest = back_up(bench.state_dir, bench.registry.root, tmp_path / "backup.tar")
    assert len(ended) == 2
    assert manifest.damaged == (), "a version that was purged meanwhile is not called damaged"
    restore(tmp_path / "backup.tar", tmp_path / "new" / "state", tmp_path / "new" / "registry")

    again, jobs = bench_of(tmp_path / "new"), JobStore(tmp_path / "new" / "state" / "jobs")
    again.registry.finish_purges()
    jobs.finish_deletions()
    assert again.registry.versions("model") == ["1.2.0"]
    assert again.registry.tombstones("model") == bench.registry.tombstones("model")
    assert not (again.registry.root / "model" / "1.1.0").exists()
    assert list(jobs.folders()) == []
    assert jobs.deleted("job-1") == store.deleted("job-1")
    assert jobs.deleted("job-2") == store.deleted("job-2")
    assert not (jobs.root / "job-2").exists()
