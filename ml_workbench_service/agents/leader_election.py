"""Leader election: waits for an agent's lease, and takes it over from a holder that is dead.

Time is measured by one's own monotonic clock alone; no clock of the server or of other machines is trusted. A holder
counts as dead when its beat has stood still for `LEASE_S`, or when it is a process of this machine that has ended.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.queue import Lease, LeaseHolder, LeaseSource

LEASE_S = 3.0
"""A holder beats at least twice a second; six missed beats are no hiccup."""
PAUSE_S = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidacy:
    """One process as a candidate for a lease; every question is cheap and asked often.

    Attributes:
        owner: this process's name in the lease, like no other's.
        is_dead: whether the process of that name is known to have ended.
        may_lead: whether the agent is wanted; nothing is asked for while it is not.
        on_lead: called whenever this process takes the lease.
        beat: called at least once a second while this process holds the lease.
    """

    owner: str = "this process"
    is_dead: Callable[[str], bool] = lambda owner: False
    may_lead: Callable[[], bool] = lambda: True
    on_lead: Callable[[], None] = lambda: None
    beat: Callable[[], None] = lambda: None


ALONE = Candidacy()
"""Of a process beside which there is none."""


class LeaderElection:
    """One process's wait for one group's lease.

    Args:
        queue: which keeps the lease.
        group: the agent's consumer group.
        candidacy: who asks.
    """

    def __init__(self, queue: LeaseSource, group: str, candidacy: Candidacy) -> None:
        self._queue = queue
        self._group = group
        self._candidacy = candidacy
        self._seen: LeaseHolder | None = None
        self._since = time.monotonic()
        self.pause_s = PAUSE_S

    def ask(self, known_term: int) -> Lease | None:
        """The lease, or None where it is to be asked for again after `pause_s`.

        Args:
            known_term: the highest of the agent's checkpoint.

        Raises:
            UnavailableError: the queue is away; the wait for the holder's beat begins anew.
        """
        self.pause_s = PAUSE_S
        if not self._candidacy.may_lead():
            return None
        seen = self._seen
        is_overdue = seen is not None and (
            self._candidacy.is_dead(seen.owner) or time.monotonic() - self._since > LEASE_S
        )
        try:
            answer = self._queue.acquire(
                self._group, self._candidacy.owner, known_term=known_term, instead_of=seen if is_overdue else None
            )
        except UnavailableError:
            self._seen, self._since = None, time.monotonic()
            raise
        if isinstance(answer, Lease):
            return answer
        if answer != seen:
            if seen is None or answer.term != seen.term:
                log.info("group %s: this process stands by, %s holds the lease", self._group, answer.owner)
            self._seen, self._since = answer, time.monotonic()
        if not is_overdue and self._candidacy.is_dead(answer.owner):
            self.pause_s = 0.0  # once; a holder that answers meanwhile is no dead one, whatever its name says
        return None
