"""Publishing what workers hand in: checked against the job that was asked for, signed, put in its place, recorded.

A worker holds no private key, and its word is taken for what its own job was to make and for nothing else.
"""

import logging
from contextlib import ExitStack
from typing import Protocol

from common_lib.exceptions import ConflictError, PlatformError, StorageError, UnavailableError
from common_lib.storage import FolderGoneError, storage_error
from ml_workbench_service.access.audit_log import AuditLog, Who
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.jobs.handed_in import HandedIn, Refusal, answer, handed_in
from ml_workbench_service.jobs.job import JobFolder

PUBLISHING = frozenset({JobKind.TRAIN, JobKind.EXPERIMENT})
PUBLISHED = "version signed and published"

log = logging.getLogger(__name__)


class Registry(Protocol):
    """What publishing needs of a model registry."""

    def taken(self, model_id: str) -> list[str]:
        """Versions that nobody publishes any more; raises where the registry is away."""
        ...

    def accept(self, job_id: str, handed: HandedIn) -> ModelCard:
        """Verifies, signs and publishes a worker's draft."""
        ...


def publish_handed_in(registry: Registry, folder: JobFolder, *, audit: AuditLog | None = None) -> None:
    """Publishes what waits in a job's folder, or says in it why not; nothing where nothing waits, or the registry is
    away: it waits for the next try.

    Raises:
        UnavailableError: the answer cannot be written; it waits, for the next try.
    """
    if folder.spec.kind not in PUBLISHING:
        return
    try:
        handed = handed_in(folder.path)
    except ValueError:
        log.error("what job %s handed in cannot be read", folder.id)
        error = ConflictError("what was handed in cannot be read, and was not published; start the training again")
        answer(folder.path, Refusal.of(error))
        return
    if handed is None:
        return
    try:
        registry.taken(handed.model_id)  # before the audit log has a line of it
        _check_asked_for(folder, handed)
        unnoted = _accept(registry, folder.id, handed, audit)
    except UnavailableError as error:
        if isinstance(error, StorageError):  # its disk is full, or refuses
            answer(folder.path, Refusal.of(error))
        log.warning("%s %s is not published for now: %s", handed.model_id, handed.version, error.message)
    except PlatformError as error:
        log.error("%s %s was not published: %s", handed.model_id, handed.version, error.message)
        answer(folder.path, Refusal.of(error))
    except FolderGoneError:
        log.warning("%s %s waits: the model registry is away", handed.model_id, handed.version)
    except OSError as error:
        log.exception("%s %s was not published", handed.model_id, handed.version)
        answer(folder.path, Refusal.of(storage_error(error)))
    else:
        answer(folder.path, None if unnoted is None else Refusal.of(unnoted))


def _accept(registry: Registry, job_id: str, handed: HandedIn, audit: AuditLog | None) -> UnavailableError | None:
    """Signs and publishes between the two lines of the audit log. What cannot be noted is not done, and does not wait
    as for a registry that is away: the error.
    """
    if audit is None:
        registry.accept(job_id, handed)
        return None
    about = {"digest": handed.digest, "job_id": job_id}
    with ExitStack() as stack:
        noting = audit.change(PUBLISHED, Who("service"), on=f"{handed.model_id} {handed.version}")
        try:
            change = stack.enter_context(noting)
        except UnavailableError as error:
            log.error("%s %s is not published: %s", handed.model_id, handed.version, error.message)
            return error
        registry.accept(job_id, handed)
        change.after = about
    return None


def _check_asked_for(folder: JobFolder, handed: HandedIn) -> None:
    """Raises ConflictError where it is another version than the job's."""
    plan = folder.spec.plan
    if (handed.model_id, handed.version) != (plan.get("model_id"), plan.get("version")):
        raise ConflictError(
            f"job {folder.id} was to make another version than {handed.model_id} {handed.version}, which was not "
            "published; start the training again"
        )
