"""Signing what lies in the registry already: at the first start after an upgrade, and one version by command.

A version without a signature is not served: else whoever writes into the registry need only leave it out. So the first
start of a service that has signed nothing yet signs every version that verifies by its digests, and says in the audit
log which, and which not; from then on what comes into the registry by other ways than publishing is `unsigned`, until
the person at this machine says otherwise (`ml-workbench sign`).
"""

import logging
from pathlib import Path

from common_lib.exceptions import BundleDamagedError, ConflictError
from ml_workbench_service.access.audit_log import AuditLog, Who
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.jobs.guarded_reading import json_object
from ml_workbench_service.learning.bundle.checked_bundles import check_ids
from ml_workbench_service.learning.bundle.listing import CARD_FILE
from ml_workbench_service.learning.bundle.manifest import read_plain, unreadable, verify
from ml_workbench_service.learning.bundle.signatures import Signatures

MOST_NAMED = 200
"""Versions that one line of the audit log names; it counts all."""

log = logging.getLogger(__name__)


def sign_at_first_start(registry: FolderModelRegistry, audit: AuditLog) -> None:
    """Signs every version that verifies by its digests, where nothing was ever signed; the keys are made then.

    A start that is killed in between is the first one again: the keys that are trusted are written last.

    Raises:
        UnavailableError: the disk is full, or the audit log cannot be written.
    """
    signatures = _signatures_of(registry)
    if signatures.trusted.is_there:
        if not signatures.trusted.is_whole:
            signatures.begin_to_trust()  # with the own key alone; the damaged file is set aside, which is logged
        return
    signed, left = [], {}
    for model_id in registry.model_ids():
        for version in registry.versions(model_id):
            name = f"{model_id} {version}"
            try:
                folder = registry.folder(model_id, version)
                card = _card(folder, model_id, version)
                signatures.sign(folder, card, by="first start", begins_to_trust=False)
                registry.signed(model_id, version)
            except (BundleDamagedError, OSError) as error:
                left[name] = getattr(error, "message", str(error))
                log.error("%s is not signed: %s", name, left[name])
            else:
                signed.append(name)
    if signed or left:
        log.info("%d versions of before there were signatures are signed, %d are not", len(signed), len(left))
        about = {
            "num_signed": len(signed), "signed": signed[:MOST_NAMED],
            "num_left": len(left), "left": dict(list(left.items())[:MOST_NAMED]),
        }  # fmt: skip
        audit.append("noted", "versions signed at the first start", Who("service"), after=about)
    signatures.begin_to_trust()


def sign_version(registry: FolderModelRegistry, audit: AuditLog, model_id: str, version: str, *, who: Who) -> ModelCard:
    """Signs one version that verifies by its digests, and takes its card's word for the record; its card.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is none.
        BundleDamagedError: its files are not what its manifest lists.
        ConflictError: the service has not been started here yet.
    """
    folder = registry.folder(model_id, version)
    signatures = _signatures_of(registry)
    if not signatures.trusted.is_there:
        raise ConflictError("no service has been started with this STATE_DIR yet; its first start signs what is there")
    card = _card(folder, model_id, version)
    with audit.change("version signed", who, on=f"{model_id} {version}") as change:
        signatures.sign(folder, card, by="command")
        registry.signed(model_id, version)
        change.after = {"digest": card.digest, "verdict": card.evaluation.verdict}
    return registry.card(model_id, version)


def _card(folder: Path, model_id: str, version: str) -> ModelCard:
    """Of a version that verifies by its digests, and that is what its folder says."""
    digest = verify(folder)
    try:
        card = ModelCard.model_validate({**json_object(read_plain(folder / CARD_FILE)), "digest": digest})
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(folder) from error
    check_ids(card, model_id, version)
    return card


def _signatures_of(registry: FolderModelRegistry) -> Signatures:
    signatures = registry.bundles.signatures
    assert signatures is not None, "only a registry that signs is given here"
    return signatures
