"""The steps of signing: a version that a worker handed in is published, and a first start signs what lies there."""

from collections.abc import Callable
from pathlib import Path

from chaos.kill_sweep.killing import Acknowledge
from chaos.kill_sweep.steps import MODEL, MOMENT, Step, Violations, card, job_of, publish, registry_of
from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog, verify
from ml_workbench_service.contracts.jobs import JobKind, JobSpec
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.handed_in import HandedIn, handed_in
from ml_workbench_service.jobs.job import JobFolder
from ml_workbench_service.learning.bundle.listing import CARD_FILE
from ml_workbench_service.learning.bundle.manifest import write_manifest
from ml_workbench_service.learning.bundle.signatures import Signatures
from ml_workbench_service.workflows.publishing.handed_in_versions import publish_handed_in
from ml_workbench_service.workflows.publishing.signing import sign_at_first_start

MODULES = tuple(
    f"ml_workbench_service/{each}"
    for each in (
        "workflows/publishing/handed_in_versions.py",
        "workflows/publishing/signing.py",
        "integrations/model_registry.py",
        "learning/bundle/signatures.py",
        "access/signing_keys.py",
        "access/audit_log.py",
        "jobs/handed_in.py",
        "jobs/durable_files.py",
    )
)


def _service(folder: Path) -> tuple[FolderModelRegistry, AuditLog]:
    """The service's registry, which signs, and its audit log, with nothing remembered."""
    registry = FolderModelRegistry(
        folder / "registry", live_version=DeploymentHistory(folder / "registry").live_version,
        signatures=Signatures(folder / "state", holds_key=True),
    )  # fmt: skip
    return registry, AuditLog(folder / "state" / AUDIT_FILE)


def _wrong_of(folder: Path, version: str) -> Violations:
    """What a reader without the private key finds wrong with a version that is said to be signed."""
    signatures = Signatures(folder / "state")
    registry = FolderModelRegistry(folder / "registry", live_version=lambda _: None, signatures=signatures)
    found = registry.card(MODEL, version)
    signatures.check(folder / "registry" / MODEL / version, MODEL, version, registry.verify(MODEL, version))
    return [] if signatures.recorded(found) is not None else [f"{version} is signed and was not recorded"]


def _guarded(look: Callable[[], Violations]) -> Violations:
    try:
        return look()
    except Exception as error:  # whatever it is, it is a violation
        return [f"{type(error).__name__}: {error}"]


# ------------------------------------------------------------------------------------------------------------ hand-in


def _job_folder(folder: Path) -> JobFolder:
    return JobFolder(folder / "state" / "jobs" / job_of("1.0.0"))


def _before_hand_in(folder: Path) -> None:
    """A draft that is whole, and the line that says so, as a worker leaves them."""
    spec = JobSpec(
        id=job_of("1.0.0"), kind=JobKind.TRAIN, request={}, plan={"model_id": MODEL, "version": "1.0.0"},
        created_at=MOMENT, correlation_id="sweep",
    )  # fmt: skip
    job = JobFolder.create(folder / "state" / "jobs", spec)
    draft = registry_of(folder).draft(job.id)
    (draft / "model.onnx").write_bytes(b"\x08\x01" * 3000)
    (draft / CARD_FILE).write_text(card("1.0.0").model_dump_json(), encoding="utf-8")
    handed = HandedIn(model_id=MODEL, version="1.0.0", digest=write_manifest(draft))
    (job.path / "handed_in.json").write_text(handed.model_dump_json(), encoding="utf-8")


def _hand_in(folder: Path, acknowledge: Acknowledge) -> None:
    registry, audit = _service(folder)
    publish_handed_in(registry, _job_folder(folder), audit=audit)
    if handed_in(_job_folder(folder).path) is None:
        acknowledge("published")


def _after_hand_in(folder: Path, acknowledged: list[str]) -> Violations:
    job, (registry, audit) = _job_folder(folder), _service(folder)
    if acknowledged and "1.0.0" not in registry.versions(MODEL):
        return ["an acknowledged version is gone"]
    wrong = _wrong_of_lines(audit, is_published="1.0.0" in registry.versions(MODEL))
    publish_handed_in(registry, job, audit=audit)  # the service's next look
    wrong += _wrong_of_lines(audit, is_published=True)
    wrong += [] if any(each.event == "done" for each in audit.newest(num=50)) else ["its end is in no line"]
    wrong += [] if handed_in(job.path) is None else ["the worker waits for ever"]
    wrong += ["it was refused"] if (job.path / "refused.json").exists() else []
    wrong += _guarded(lambda: _wrong_of(folder, "1.0.0"))
    return [*wrong, *(each.problem for each in verify(folder / "state" / AUDIT_FILE).faults)]


def _wrong_of_lines(audit: AuditLog, *, is_published: bool) -> Violations:
    """A publication has been asked for before it is there, and its end tells of nothing that did not happen.

    A kill between the publication and its end leaves an `asked` alone; the next look asks once more, and ends it.
    """
    lines = audit.newest(num=50)
    asked = {each.number for each in lines if each.event == "asked"}
    done = [each for each in lines if each.event == "done"]
    wrong = [f"entry {each.number} ends what nobody asked for" for each in done if each.of not in asked]
    if done and not is_published:
        wrong.append("the audit log tells of a publication that did not happen")
    if is_published and not asked:
        wrong.append("a version was published and the audit log does not say so")
    return wrong


# -------------------------------------------------------------------------------------------------------- first start


def _before_first_start(folder: Path) -> None:
    publish(folder, "1.0.0")
    publish(folder, "1.1.0")
    (folder / "state").mkdir(exist_ok=True)


def _first_start(folder: Path, acknowledge: Acknowledge) -> None:
    sign_at_first_start(*_service(folder))
    acknowledge("signed")


def _after_first_start(folder: Path, acknowledged: list[str]) -> Violations:
    if not acknowledged:
        sign_at_first_start(*_service(folder))
    wrong = [*_guarded(lambda: _wrong_of(folder, "1.0.0")), *_guarded(lambda: _wrong_of(folder, "1.1.0"))]
    said = AuditLog(folder / "state" / AUDIT_FILE).newest(num=10)
    wrong += [] if any("signed" in each.what for each in said) else ["the audit log does not say it"]
    return [*wrong, *(each.problem for each in verify(folder / "state" / AUDIT_FILE).faults)]


SIGNING = {
    "hand-in": Step(_before_hand_in, _hand_in, _after_hand_in, MODULES),
    "first start": Step(_before_first_start, _first_start, _after_first_start, MODULES),
}
