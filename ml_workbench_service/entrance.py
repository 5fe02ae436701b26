"""Entrance: the door, the keys and the audit log of one service, put together from its settings."""

import logging

from starlette.types import ASGIApp

from common_lib.log_files import LOG_FILES
from ml_workbench_service import __version__
from ml_workbench_service.access.audit_log import AUDIT_FILE, AuditLog, Who
from ml_workbench_service.access.gate import Gate
from ml_workbench_service.access.key_ring import USES_FILE, KeyRing
from ml_workbench_service.access.keys import KEYS_FILE
from ml_workbench_service.api.door.audit_trail import AuditTrail
from ml_workbench_service.api.middleware import AtTheDoor
from ml_workbench_service.jobs.private_files import narrow
from ml_workbench_service.settings import Settings, is_loopback

log = logging.getLogger(__name__)


class Entrance:
    """What stands before the routes; nothing is read before `open`.

    Attributes:
        gate: who may do what.
        audit: what was changed.
    """

    def __init__(self, settings: Settings) -> None:
        self.gate = gate_of(settings)
        self.audit = AuditLog(settings.STATE_DIR.resolve() / AUDIT_FILE)
        self._settings = settings

    def door(self, app: ASGIApp) -> ASGIApp:
        """The outermost layer; what changes something passes the audit trail too."""
        return AtTheDoor(app, gate=self.gate, audited=AuditTrail(app, audit=self.audit))

    def open(self) -> None:
        """Narrows old files, reads the keys, warns of what stands open, and notes the start in the audit log.

        Raises:
            DataValidationError: the file of keys is damaged.
            UnavailableError: the audit log cannot be written.
        """
        folders = [self._settings.STATE_DIR.resolve(), self._settings.registry_folder]
        narrow(folders, log_dir=self._settings.LOG_DIR.resolve(), log_names=LOG_FILES)
        ring = self.gate.ring
        ring.load()
        for warning in warnings_of(self._settings, is_guarded=self.gate.is_guarded):
            log.warning(warning)
        mode = "keys" if self.gate.is_guarded else "no key: loopback alone"
        about = {"version": __version__, "door": mode, "num_client_keys": ring.num_keys}
        self.audit.append("noted", "service started", Who("service"), after=about)


def gate_of(settings: Settings) -> Gate:
    """The service's, and each predict worker's own."""
    state_dir = settings.STATE_DIR.resolve()
    api_key = settings.API_KEY.get_secret_value() if settings.API_KEY else None
    keys = (settings.KEYS_FILE or state_dir / KEYS_FILE).resolve()
    return Gate(KeyRing(keys, api_key=api_key, uses=state_dir / USES_FILE))


def warnings_of(settings: Settings, *, is_guarded: bool) -> list[str]:
    """What an operator should know before others reach the service."""
    found = []
    if not is_loopback(settings.HOST) and settings.TLS_CERT is None and settings.BEHIND_PROXY is None:
        found.append(
            f"HOST={settings.HOST} is reached by others without TLS, so that keys pass in clear: set TLS_CERT and "
            "TLS_KEY, or BEHIND_PROXY to the addresses of a proxy that has it"
        )
    outbound = (
        ("FEATURE_STORE_URL", settings.FEATURE_STORE_URL, settings.FEATURE_STORE_API_KEY),
        ("STRATEGY_ENGINE_URL", settings.STRATEGY_ENGINE_URL, settings.STRATEGY_ENGINE_API_KEY),
    )
    for name, address, key in outbound:
        if is_guarded and key is None and address is not None and address.startswith(("http://", "https://")):
            found.append(
                f"{name} is asked without a key: API_KEY is for callers of this service and is not sent on; if that "
                f"server wants one, set {name.removesuffix('_URL')}_API_KEY"
            )
    return found
