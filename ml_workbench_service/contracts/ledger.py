"""`Ledger`: where serving leaves the live version's answers, one at a time or a run's together."""

from typing import Protocol

from ml_workbench_service.contracts.market import Bools
from ml_workbench_service.contracts.outcomes import Answered, Making
from ml_workbench_service.contracts.runs.records import RecordRun


class Ledger(Protocol):
    """What keeps answers; never slow, and never failing."""

    def record(self, answered: Answered, making: Making, *, is_sampled: bool) -> None:
        """Takes one, in microseconds, and never fails; of one that is not sampled only the price is read."""
        ...

    def record_run(self, run: RecordRun, making: Making, *, is_sampled_N: Bools) -> None:
        """The same of a run's answers, in their order."""
        ...
