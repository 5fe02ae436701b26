"""`sign`: signs one version with the key of this STATE_DIR, whether a service runs or not."""

from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog, Who
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.jobs.private_files import keep_private
from ml_workbench_service.resources import open_history, open_registry
from ml_workbench_service.settings import Settings
from ml_workbench_service.workflows.publishing.signing import sign_version


def sign(settings: Settings, model_id: str, version: str, *, who: Who) -> ModelCard:
    """The card of the version, which is signed now; raises as `sign_version`."""
    keep_private()
    history = open_history(settings)
    try:
        registry = open_registry(settings, history, publishes=True)
        audit = AuditLog(settings.STATE_DIR.resolve() / AUDIT_FILE)
        return sign_version(registry, audit, model_id, version, who=who)
    finally:
        history.close()
