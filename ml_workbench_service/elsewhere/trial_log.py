"""`TrialLogElsewhere`: an experiment's trials, each on the control plane before anybody is told of it."""

from pathlib import Path

from ml_workbench_service.contracts.experiments import TrialRecord
from ml_workbench_service.contracts.work_elsewhere import Heard
from ml_workbench_service.elsewhere.connection import JobConnection
from ml_workbench_service.jobs.trial_log import TrialLog


class TrialLogElsewhere(TrialLog):
    """A trial log here, for the search to go on from, whose lines are in the control plane's first."""

    def __init__(self, connection: JobConnection, path: Path) -> None:
        super().__init__(path)
        self._connection = connection

    def append(self, record: TrialRecord) -> None:
        """Adds one line there, then here; the same line twice is the same trial. Raises AttemptLostError."""
        self._connection.put("trials", record, Heard)
        super().append(record)
