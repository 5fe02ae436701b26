"""Waiting room: jobs that no worker has yet, and whose turn it is.

A job whose worker died goes first. Then the client of whose jobs fewest run; of several, the one whose turn is longest
ago; of one client's own jobs the one of the highest priority, and of those the one that came first. So a hundred jobs
of one client delay another's first job by one job, and a priority takes nothing from anybody else.
"""

from collections import Counter
from collections.abc import Collection, Iterator

from common_lib.exceptions import RateLimitError
from ml_workbench_service.contracts.jobs import JobKind
from ml_workbench_service.contracts.training import JobPriority
from ml_workbench_service.jobs.job import JobFolder

RETRY_AFTER_S = 30
_RANK = {JobPriority.HIGH: 0, JobPriority.NORMAL: 1, JobPriority.LOW: 2}


class WaitingRoom:
    """Jobs in the order in which they came; `next` says whose turn it is.

    Args:
        most_per_client: jobs of one client that may wait.
    """

    def __init__(self, most_per_client: int) -> None:
        self._most_per_client = most_per_client
        self._jobs: list[JobFolder] = []
        self._again: set[str] = set()
        self._turn = 0
        self._turns: dict[str, int] = {}  # the last one of each client

    def __iter__(self) -> Iterator[JobFolder]:
        return iter(list(self._jobs))

    def __len__(self) -> int:
        return len(self._jobs)

    def check_room(self, client: str) -> None:
        """Raises RateLimitError where so many jobs of this client wait already."""
        num = sum(each.spec.client == client for each in self._jobs)
        if num >= self._most_per_client:
            raise RateLimitError(
                f"{num} of this key's jobs wait already, the limit (MAX_WAITING_JOBS): send this one again once "
                "one of them has begun, or cancel one with POST /api/v1/jobs/{job_id}/cancel",
                retry_after_s=RETRY_AFTER_S,
                details={"num_waiting": num, "limit": self._most_per_client},
            )

    def enter(self, folder: JobFolder) -> None:
        """Takes a new job in, behind those that are there."""
        self._jobs.append(folder)

    def enter_again(self, folder: JobFolder) -> None:
        """Takes in a job whose worker died; it goes first."""
        self._jobs.append(folder)
        self._again.add(folder.id)

    def leave(self, folder: JobFolder) -> None:
        """Forgets a job; one that is not here is no error."""
        self._jobs = [each for each in self._jobs if each.id != folder.id]
        self._again.discard(folder.id)

    def next(self, kinds: Collection[JobKind], running: Counter[str]) -> JobFolder | None:
        """Takes out the job whose turn it is; None where none of these kinds waits.

        Args:
            kinds: for which there is a free place.
            running: jobs under way, by client.
        """
        candidates = [each for each in self._jobs if each.spec.kind in kinds]
        if not candidates:
            return None
        chosen = min(candidates, key=lambda folder: self._order(folder, running))  # the first one of equals
        self.leave(chosen)
        self._turn += 1
        self._turns[chosen.spec.client] = self._turn
        return chosen

    def _order(self, folder: JobFolder, running: Counter[str]) -> tuple[bool, int, int, int]:
        client = folder.spec.client
        return folder.id not in self._again, running[client], self._turns.get(client, 0), _RANK[folder.spec.priority]
