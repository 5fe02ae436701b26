"""Job folder as the job's worker sees it: `WorkersFolder`, of which there are two.

On the service's own disk it is `jobs.job.JobFolder`; for a worker elsewhere `elsewhere.job_folder.JobFolderElsewhere`,
an HTTP client of the control plane. Whoever looks at jobs rather than working at one (routes, supervisor, tracker)
stands beside the real folder and has `JobFolder` itself. `testing.job_folders` holds both to what is promised here.
"""

from pathlib import Path
from typing import Any, Protocol

from common_lib.exceptions import UnavailableError
from ml_workbench_service.contracts.jobs import EventType, Job, JobSpec
from ml_workbench_service.jobs.process_record import ProcessRecord


class AttemptLostError(UnavailableError):
    """This attempt can say nothing more: another one has the job, or the control plane was away for too long. Its
    process ends without a last word, and whoever watches over the job sees to what follows."""


class BegunAttempt(ProcessRecord):
    """Who works at a job, and for the how manyth time somebody does."""

    attempt: int


class WorkersFolder(Protocol):
    """What a worker reads and writes of its job.

    Contract:

    - Threads: any, at any time.
    - Order: events stand in the log in the order in which they were appended, each once, numbered without a hole. The
      final one is on the control plane's disk when `append` returns; others are soon, and before any later checkpoint.
    - One attempt: once another worker was given the job, everything here raises, and nothing more is written of this.
    - Cancellation: `cancel_requested` is true within two seconds of somebody's asking.
    """

    @property
    def id(self) -> str:
        """The job's."""
        ...

    @property
    def spec(self) -> JobSpec:
        """The request."""
        ...

    @property
    def checkpoint(self) -> Path:
        """A folder of this machine, with what a predecessor has left there; what is put into it is left likewise."""
        ...

    def job(self) -> Job:
        """What the event log said as this attempt began, or says now."""
        ...

    def begin_attempt(self) -> BegunAttempt:
        """The worker says who it is, before it begins."""
        ...

    def append(self, kind: EventType, /, **data: Any) -> int:
        """Adds one event and returns its number; UnavailableError where it cannot be kept."""
        ...

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked to stop; cheap enough for every batch."""
        ...

    def beat(self) -> None:
        """A sign of life, about once a second."""
        ...
