"""Conformance suite of job folders as workers see them: what a worker and its successor rely on, wherever they are.

class TestMyFolder(WorkersFolderConformance):
    @contextmanager
    def open_folder(self, folder):
        yield MyFolder(...)
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common_lib.exceptions import JobCancelled
from common_lib.redaction import keep_secret
from ml_workbench_service.contracts.jobs import JobKind, JobSpec, JobStatus
from ml_workbench_service.jobs.event_report import EventReport
from ml_workbench_service.jobs.job import JobFolder, JobStore
from ml_workbench_service.jobs.workers_folder import WorkersFolder

PATIENCE_S = 30.0
CANCELLED_WITHIN_S = 2.0
BEAT_S = 0.5
SECRET = "a word that nobody may read"


class WorkersFolderConformance(ABC):
    """What every implementation of `WorkersFolder` keeps."""

    @abstractmethod
    def open_folder(self, folder: JobFolder) -> AbstractContextManager[WorkersFolder]:
        """The job's folder as the next attempt's worker has it, for the time of the attempt."""

    @abstractmethod
    def leave(self, opened: WorkersFolder) -> None:
        """Has what is in the checkpoint be left; nothing where that is so as soon as it is written."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> JobStore:
        """No jobs yet."""
        return JobStore(tmp_path / "jobs")

    @pytest.fixture
    def folder(self, store: JobStore) -> JobFolder:
        """One job, queued."""
        return store.create(
            JobSpec(
                id="job-1", kind=JobKind.TRAIN, request={"words": ["é", 1.25]}, plan={"model_id": "m"},
                created_at=datetime(2026, 1, 2, tzinfo=UTC), correlation_id="correlation-1",
            )
        )  # fmt: skip

    def test_the_request_is_as_it_was_sent(self, folder: JobFolder) -> None:
        """To the bit."""
        with self.open_folder(folder) as opened:
            assert opened.id == folder.id
            assert opened.spec == folder.spec
            assert opened.job().status is JobStatus.QUEUED

    def test_the_worker_is_known(self, folder: JobFolder) -> None:
        """Before it begins, with the number of its attempt."""
        with self.open_folder(folder) as opened:
            begun = opened.begin_attempt()
            record = folder.worker()
        assert record is not None
        assert (record.attempt, record.pid) == (begun.attempt, begun.pid) == (1, record.pid)

    def test_events_stand_in_order_each_once(self, folder: JobFolder) -> None:
        """Numbered without a hole, with what they said; the final one is there when `append` returns."""
        with self.open_folder(folder) as opened:
            numbers = [opened.append("started", attempt=1)]
            numbers += [opened.append("progress", step=step, metrics={"loss": 1 / step}) for step in range(1, 300)]
            numbers.append(opened.append("succeeded", result={"n": 1}))
            found = folder.events()
        assert [event.seq for event in found] == [1, *numbers] == list(range(1, 303))
        assert [event.data["step"] for event in found[2:-1]] == list(range(1, 300))
        assert found[4].data["metrics"] == {"loss": 1 / 3}
        assert folder.job().result == {"n": 1}
        assert [event.at for event in found] == sorted(event.at for event in found)

    def test_numbers_that_are_none_and_secrets_are_not_written(self, folder: JobFolder) -> None:
        """As null, and blotted out."""
        keep_secret(SECRET)
        with self.open_folder(folder) as opened:
            opened.append("progress", message=f"it is {SECRET}", metrics={"loss": float("nan")})
            opened.append("failed", error_type="X", error_code="X", message=SECRET)
            said = folder.events()[-2].data
        assert said["metrics"] == {"loss": None}
        assert SECRET not in (folder.path / "events.jsonl").read_text(encoding="utf-8")

    def test_a_cancellation_is_seen_within_two_seconds(self, folder: JobFolder) -> None:
        """By whoever reports, while the worker beats."""
        with self.open_folder(folder) as opened:
            report = EventReport(opened)
            report(1, 10)
            folder.request_cancel()
            asked_s = time.monotonic()
            with pytest.raises(JobCancelled):
                self._beat_until(opened, asked_s + PATIENCE_S, report.check)
            assert time.monotonic() - asked_s < CANCELLED_WITHIN_S
            opened.append("cancelled")
        assert folder.job().status is JobStatus.CANCELLED

    def test_a_beat_is_a_sign_of_life(self, folder: JobFolder) -> None:
        """That the service sees."""
        with self.open_folder(folder) as opened:
            opened.beat()
            assert folder.is_beating

    def test_a_successor_finds_what_was_left(self, folder: JobFolder) -> None:
        """Files whole, in folders, without those that were taken away; and how far the job was."""
        content = bytes(range(256)) * 5000
        with self.open_folder(folder) as first:
            first.checkpoint.mkdir(exist_ok=True)
            (first.checkpoint / "seed-1").mkdir()
            (first.checkpoint / "seed-1" / "weights.bin").write_bytes(content)
            (first.checkpoint / "gone").write_text("x")
            EventReport(first)(3, 10)
            self.leave(first)
            (first.checkpoint / "gone").unlink()
            (first.checkpoint / "state.json").write_text("{}")
            self.leave(first)
        with self.open_folder(folder) as second:
            left = {str(file.relative_to(second.checkpoint)) for file in second.checkpoint.rglob("*") if file.is_file()}
            assert left == {"seed-1/weights.bin", "state.json"}
            assert (second.checkpoint / "seed-1" / "weights.bin").read_bytes() == content
            assert second.job().progress.step == 3
            report = EventReport(second)
            for step in range(1, 6):
                report(step, 10)
            second.append("succeeded", result={})
        steps: list[Any] = [event.data["step"] for event in folder.events() if event.type == "progress"]
        assert steps == [3, 4, 5]

    def _beat_until(self, opened: WorkersFolder, deadline_s: float, check: Callable[[], None]) -> None:
        while time.monotonic() < deadline_s:
            opened.beat()
            check()
            time.sleep(BEAT_S)
