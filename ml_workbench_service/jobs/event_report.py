"""Progress reports into the event log: every step becomes an event, every call checks for a cancellation."""

import math
import threading

from common_lib.exceptions import JobCancelled
from ml_workbench_service.jobs.workers_folder import WorkersFolder


class EventReport:
    """Writes progress and warnings into the job's event log; satisfies `contracts.jobs.Report`.

    A step is written before the check for a cancellation, so the last epoch is never lost. A metric that is not
    finite is written as null. Steps that a killed predecessor has reported are the same to the bit and stay written
    once.
    """

    def __init__(self, folder: WorkersFolder) -> None:
        self._folder = folder
        self._reported = folder.job().progress.step  # by a worker before us that was killed
        self._terminated = threading.Event()

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Records a step; raises JobCancelled when somebody asked for it."""
        if step > self._reported:
            finite = {name: _finite(value) for name, value in metrics.items()}
            self._folder.append("progress", step=int(step), total=int(total), metrics=finite)
        self.check()

    def say(self, message: str) -> None:
        """Changes the progress message; raises JobCancelled like a step."""
        self._folder.append("progress", message=message)
        self.check()

    def warn(self, message: str) -> None:
        """Leaves a warning on the job."""
        self._folder.append("warning", message=message)

    def check(self) -> None:
        """Only checks for a cancellation: one flag and one `stat`, about two microseconds."""
        if self._terminated.is_set() or self._folder.cancel_requested:
            raise JobCancelled("The job was cancelled; start it again if you still need it.")

    def terminate(self) -> None:
        """Makes the next report raise JobCancelled; called where SIGTERM arrives."""
        self._terminated.set()


def _finite(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
