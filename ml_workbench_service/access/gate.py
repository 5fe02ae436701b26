"""Gate: lets a caller through to an operation, or says why not. The one place where keys are checked.

No key or a wrong one is 401, a key without the operation's scope 403, one over its rate or quota 429. Nothing here
reads a body or a file (but for the look at the key file twice a second), so that it may stand before everything.
"""

import logging
import time

from common_lib.exceptions import AuthenticationError, AuthorizationError, RateLimitError
from ml_workbench_service.access.key_ring import ANYBODY, Caller, KeyRing
from ml_workbench_service.access.keys import BEGINS, identifier_of
from ml_workbench_service.access.limits import MOST_ADDRESSES, FailedKeys
from ml_workbench_service.access.operations import Operation, Scope

LOG_EVERY_S = 1.0
"""One line for each address in this time: guesses must not fill a disk."""
SEND_KEY = "send your key in the header X-API-Key"

log = logging.getLogger(__name__)


class Gate:
    """Checks keys, limits and scopes."""

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self._failed = FailedKeys()
        self._at_home: set[str] = set()
        self._logged_s: dict[str, float] = {}

    @property
    def is_guarded(self) -> bool:
        """Whether a key is needed; without one this machine's loopback alone is answered."""
        return self.ring.is_guarded

    def admit(self, key: bytes | None, *, address: str, operation: Operation | None) -> Caller:
        """The caller, who may do this; an operation that is not known needs a key of any scope.

        Raises:
            AuthenticationError: no key, or a wrong one.
            AuthorizationError: the key lacks the scope.
            RateLimitError: the key, or the address with its wrong keys, asks too often.
        """
        if not self.ring.is_guarded:
            return ANYBODY
        if operation is not None and operation.scope is None:
            return ANYBODY
        caller = self.recognise(key, address)
        if wait_s := caller.allowance.take():
            what = "its requests of today" if wait_s > 60 and caller.allowance.per_day else "its rate"
            raise RateLimitError(
                f"this key has used up {what}; wait, then try again", retry_after_s=wait_s, details={"key": caller.id}
            )
        if operation is not None and operation.scope is not None:
            check_scope(caller, operation.scope)
        return caller

    def is_guess(self, key: bytes | None, *, address: str, operation: Operation | None) -> bool:
        """Whether this key, which people thought up, comes from an address from which none was right yet: among
        several processes one alone looks at those, since each would give an address its free guesses anew."""
        if key is None or address in self._at_home or identifier_of(key) is not None:
            return False
        return self.ring.is_guarded and not (operation is not None and operation.scope is None)

    def welcome(self, address: str) -> None:
        """Another process has found the right key at this address."""
        if len(self._at_home) < MOST_ADDRESSES:
            self._at_home.add(address)

    def recognise(self, key: bytes | None, address: str) -> Caller:
        """Whose key this is; raises AuthenticationError or RateLimitError as `admit` does."""
        if key is None:
            raise AuthenticationError(SEND_KEY)
        # Random keys of ours cannot be guessed, and are looked at always; what people chose themselves can be. An
        # address from which API_KEY was right is not slowed: behind a proxy it may be everybody's, and one client with
        # an old key would keep out all others.
        is_ours = identifier_of(key) is not None
        if not is_ours and address not in self._at_home and (wait_s := self._failed.wait_s(address)):
            raise RateLimitError(
                "too many wrong keys came from this address; wait, then try again", retry_after_s=wait_s
            )
        caller = self.ring.find(key)
        if caller is None:
            self._note_failure(key, address, is_ours=is_ours)
            raise AuthenticationError("this key is not the right one, or has ended; check the header X-API-Key")
        if not is_ours:
            self.welcome(address)
        return caller

    def _note_failure(self, key: bytes, address: str, *, is_ours: bool) -> None:
        num = 0 if is_ours else self._failed.note(address)
        now_s = time.monotonic()
        if now_s - self._logged_s.get(address, float("-inf")) < LOG_EVERY_S:
            return
        if len(self._logged_s) > 1000:
            self._logged_s.clear()
        self._logged_s[address] = now_s
        identifier = identifier_of(key) or ""
        shown = f"{BEGINS}{identifier}_…" if identifier.isalnum() else "of another form"
        log.warning("a wrong key was refused", extra={"address": address, "key": shown, "num_refused": num})


def check_scope(caller: Caller, scope: Scope, what: str = "this") -> None:
    """Raises AuthorizationError where the caller lacks a scope, naming it."""
    if not caller.may(scope):
        raise AuthorizationError(
            f"{what} needs the scope `{scope}`, which this key does not have; ask for a key that has it",
            details={"needed_scope": str(scope), "scopes": sorted(caller.scopes), "key": caller.id},
        )
