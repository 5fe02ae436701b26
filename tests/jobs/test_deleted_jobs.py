"""Deleted jobs: their folders go, their ids stay taken; a kill leaves the job or its deletion."""

import errno
import os
import shutil
from collections.abc import Callable

import pytest

from common_lib.exceptions import ConflictError, JobNotFoundError, UnavailableError
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.jobs.job import DELETED_FILE, JobStore, TrackingRecord

Make = Callable[..., JobSpec]


class Killed(BaseException):
    """The process ends here."""


def ended(store: JobStore, spec: JobSpec) -> str:
    folder = store.create(spec)
    folder.append("started")
    folder.append("succeeded", result={})
    return spec.id


def test_an_ended_job_is_deleted_and_leaves_its_id_and_its_run(store: JobStore, make_spec: Make) -> None:
    spec = make_spec().model_copy(update={"idempotency_key": "key", "body_digest": "digest"})
    job_id, other = ended(store, spec), ended(store, make_spec(kind=JobKind.REPLAY))
    store.folder(job_id).write_tracking(TrackingRecord(status="synced", run_id="run"))
    left = store.delete(job_id)
    assert (left.id, left.run_id, left.idempotency_key, left.body_digest) == (job_id, "run", "key", "digest")
    assert store.delete(job_id) == left
    assert not (store.root / job_id).exists()
    with pytest.raises(JobNotFoundError, match="was deleted on"):
        store.folder(job_id)
    assert [each.id for each in store.page().jobs] == [other]
    for each in (store, JobStore(store.root)):
        assert each.deleted(job_id) == left
        with pytest.raises(ConflictError, match="never used again"):
            each.create(spec)
    assert store.deleted(other) is None
    with pytest.raises(JobNotFoundError):
        store.delete("absent")


def test_a_job_that_has_not_ended_is_refused(store: JobStore, make_spec: Make) -> None:
    folder = store.create(make_spec())
    for kind in ("queued", "started"):
        if kind == "started":
            folder.append("started")
        with pytest.raises(ConflictError, match="cancel it first"):
            store.delete(folder.id)
    assert store.get(folder.id).status == "running"


def test_a_kill_leaves_the_job_or_its_deletion(
    store: JobStore, make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, other = ended(store, make_spec()), ended(store, make_spec())

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        store.delete(job_id)
    monkeypatch.undo()
    assert (store.root / job_id).exists()
    following = JobStore(store.root)
    assert [folder.id for folder in following.folders()] == [other], "what is left of it is seen by nobody"
    following.finish_deletions()
    assert not (store.root / job_id).exists()
    assert following.get(other).status == "succeeded"

    with (store.root / DELETED_FILE).open("ab") as file:
        file.write(b'{"id": "' + other.encode())  # a kill in the middle of the line
    following = JobStore(store.root)
    assert following.get(other).status == "succeeded"
    following.delete(other)
    assert JobStore(store.root).deleted(other) is not None


def test_a_full_disk_deletes_nothing(store: JobStore, make_spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = ended(store, make_spec())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError):
        store.delete(job_id)
    monkeypatch.undo()
    assert JobStore(store.root).get(job_id).status == "succeeded"
    assert store.get(job_id).status == "succeeded"
