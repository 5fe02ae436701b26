"""Hand-in: a worker's version is published by the service alone, or the worker hears why not; nobody else's is."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common_lib.exceptions import (
    ConflictError,
    JobCancelled,
    ModelNotFoundError,
    PlatformError,
    TrainingError,
    UnavailableError,
    VersionExistsError,
)
from common_lib.storage import keep, let_go
from ml_workbench_service.access.audit_log import AuditLog
from ml_workbench_service.access.signing_keys import PRIVATE_FILE
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.handed_in import HANDED_IN_FILE, REFUSED_FILE, FolderHandIn, HandedIn
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.learning.bundle.signatures import Signatures
from ml_workbench_service.workflows.publishing.handed_in_versions import publish_handed_in
from tests.integrations.model_cards import model_card

JOB = "20300306T120000-0000aaaa"


class House:
    """One STATE_DIR and registry, with a job; as the service sees them, and as the job's worker does."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.audit = AuditLog(self.state / "audit.jsonl")
        self.service = FolderModelRegistry(
            folder / "registry", live_version=lambda _: None, signatures=Signatures(self.state, holds_key=True)
        )
        self.worker = FolderModelRegistry(
            folder / "registry", live_version=lambda _: None, signatures=Signatures(self.state),
            hand_in=FolderHandIn(self.state / "jobs"),
        )  # fmt: skip
        spec = JobSpec(
            id=JOB, kind=JobKind.TRAIN, request={}, plan={"model_id": "model", "version": "1.0.0"},
            created_at=utc_now(), correlation_id="test",
        )  # fmt: skip
        self.job = JobFolder.create(self.state / "jobs", spec)

    def publish(self, version: str = "1.0.0", check: Callable[[], None] = lambda: None) -> ModelCard | PlatformError:
        """What becomes of a worker's publishing, while the service looks again and again."""
        draft = self.worker.draft(JOB)
        (draft / "weights.safetensors").write_text("w")
        card = model_card("model", version)
        card = card.model_copy(update={"lineage": card.lineage.model_copy(update={"job_id": JOB})})
        found: list[ModelCard | PlatformError] = []

        def work() -> None:
            try:
                found.append(self.worker.publish(draft, card, check=check))
            except PlatformError as error:
                found.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            self.look()
            thread.join(0.02)
        return found[0]

    def look(self) -> None:
        """One turn of the service's watch."""
        publish_handed_in(self.service, self.job, audit=self.audit)


@pytest.fixture
def house(tmp_path: Path) -> House:
    """An empty one."""
    return House(tmp_path)


def test_a_workers_version_is_published_signed_and_noted(house: House) -> None:
    card = house.publish()
    assert isinstance(card, ModelCard)
    assert card == house.service.card("model", "1.0.0")
    assert house.service.recorded(card) == card
    done, asked = house.audit.newest(num=9)
    assert {(each.what, each.key) for each in (asked, done)} == {("version signed and published", "service")}
    assert (asked.event, asked.on, done.event, done.of) == ("asked", "model 1.0.0", "done", asked.number)
    assert (done.status, done.after) == (200, {"digest": card.digest, "job_id": JOB})
    assert not (house.job.path / HANDED_IN_FILE).exists()
    assert (house.state / PRIVATE_FILE).exists()


def test_another_version_than_the_jobs_is_refused(house: House) -> None:
    error = house.publish("2.0.0")
    assert isinstance(error, ConflictError)
    assert "was to make another version" in error.message
    with pytest.raises(ModelNotFoundError):
        house.service.card("model", "2.0.0")


def test_a_version_waits_while_the_registry_is_away(house: House) -> None:
    """A finished training is not refused for a disk that comes back."""
    draft = house.worker.draft(JOB)
    (draft / "weights.safetensors").write_text("w")
    card = model_card("model", "1.0.0")
    card = card.model_copy(update={"lineage": card.lineage.model_copy(update={"job_id": JOB})})
    found: list[ModelCard] = []
    thread = threading.Thread(target=lambda: found.append(house.worker.publish(draft, card)), daemon=True)
    thread.start()
    while thread.is_alive() and not (house.job.path / HANDED_IN_FILE).exists():
        thread.join(0.02)
    root = house.service.root
    keep(root)
    try:
        root.rename(root.with_name("away"))
        house.look()
        assert (house.job.path / HANDED_IN_FILE).exists()
        assert not (house.job.path / REFUSED_FILE).exists()
        assert house.audit.newest(num=9) == ()
        root.with_name("away").rename(root)
        house.look()
    finally:
        let_go(root)
    thread.join(30)
    assert [each.version for each in found] == ["1.0.0"]


def test_a_version_waits_while_the_object_store_is_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    handed = HandedIn(model_id="model", version="1.0.0", digest="sha256:0")
    (house.job.path / HANDED_IN_FILE).write_text(handed.model_dump_json())

    def away(_: str) -> list[str]:
        raise UnavailableError("the bucket does not answer", retry_after_s=10)

    monkeypatch.setattr(house.service, "taken", away)
    house.look()
    assert (house.job.path / HANDED_IN_FILE).exists()
    assert not (house.job.path / REFUSED_FILE).exists()
    assert house.audit.newest(num=9) == ()


def test_what_the_service_refuses_is_the_workers_error(house: House) -> None:
    """The same class, so that the job fails with the same code."""
    home = house.service.root / "model" / "1.0.0"
    home.mkdir(parents=True)
    (home / "somebody_elses").touch()
    assert isinstance(house.publish(), VersionExistsError)
    assert house.audit.newest(num=1)[0].status == 409


def test_a_version_is_not_published_where_the_audit_log_cannot_be_written(house: House) -> None:
    house.audit.path.mkdir()
    error = house.publish()
    assert isinstance(error, UnavailableError)
    assert "audit log" in error.message
    assert house.service.model_ids() == []


def test_a_worker_that_waits_can_be_cancelled(house: House) -> None:
    def cancelled() -> None:
        raise JobCancelled("cancelled")

    house.look = lambda: None  # type: ignore[method-assign]  # the service is away
    assert isinstance(house.publish(check=cancelled), JobCancelled)


def test_a_service_that_was_away_finds_what_waits(house: House) -> None:
    began, looks = threading.Event(), house.look

    def look() -> None:
        if began.is_set():
            looks()

    house.look = look  # type: ignore[method-assign]
    num = iter(range(100))

    def check() -> None:
        if next(num) == 5:
            began.set()

    assert isinstance(house.publish(check=check), ModelCard)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00"])
def test_damaged_notes_between_the_two_end_the_waiting(house: House, damage: bytes) -> None:
    looks = house.look

    def look() -> None:
        if (house.job.path / HANDED_IN_FILE).exists():
            (house.job.path / HANDED_IN_FILE).write_bytes(damage)
        looks()

    house.look = look  # type: ignore[method-assign]
    error = house.publish()
    assert isinstance(error, ConflictError)
    assert "cannot be read" in error.message

    def answer() -> None:
        if (house.job.path / HANDED_IN_FILE).exists():
            (house.job.path / REFUSED_FILE).write_bytes(damage)
            (house.job.path / HANDED_IN_FILE).unlink()

    house.look = answer  # type: ignore[method-assign]
    assert isinstance(house.publish(), TrainingError)
