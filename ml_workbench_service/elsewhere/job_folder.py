"""`JobFolderElsewhere`: a job's folder, for its worker on another machine (`jobs.workers_folder.WorkersFolder`)."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from common_lib.exceptions import PlatformError
from ml_workbench_service.contracts.jobs import EventType, Job, JobSpec
from ml_workbench_service.contracts.work_elsewhere import Heard, JobView
from ml_workbench_service.elsewhere.checkpoint_mirror import CheckpointMirror
from ml_workbench_service.elsewhere.connection import JobConnection, NotNowError
from ml_workbench_service.elsewhere.event_sender import EventSender
from ml_workbench_service.jobs.process_record import ProcessRecord
from ml_workbench_service.jobs.workers_folder import BegunAttempt

BEAT_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class JobFolderElsewhere:
    """One attempt at a job, over HTTP; for any threads.

    Args:
        connection: that has begun.
        work: a folder of this machine, empty, for this attempt alone.
    """

    def __init__(self, connection: JobConnection, work: Path) -> None:
        self.connection = connection
        self._view = connection.get("", JobView)
        self._is_cancelled = threading.Event()
        if self._view.job.status == "cancelling":
            self._is_cancelled.set()
        self._sender = EventSender(connection, self._view.last_seq, self._hear)
        self._mirror = CheckpointMirror(connection, work / "checkpoint", self._sender.flush)
        self.checkpoint = work / "checkpoint"

    @property
    def id(self) -> str:
        """The job's."""
        return self._view.spec.id

    @property
    def spec(self) -> JobSpec:
        """The request, as it was when the attempt began."""
        return self._view.spec

    def job(self) -> Job:
        """As the attempt began."""
        return self._view.job

    def begin_attempt(self) -> BegunAttempt:
        """The control plane knows who it is since the exchange of tokens."""
        return BegunAttempt(**ProcessRecord.of(os.getpid()).model_dump(), attempt=self._view.attempt)

    def append(self, kind: EventType, /, **data: Any) -> int:
        """Adds one event; see `EventSender.append`."""
        return self._sender.append(kind, data)

    @property
    def cancel_requested(self) -> bool:
        """As the control plane said with its last answer; raises AttemptLostError where there will be none."""
        self.connection.check()
        return self._is_cancelled.is_set()

    def beat(self) -> None:
        """A sign of life, whose answer says of a cancellation; while the control plane is away, nothing."""
        try:
            self._hear(self.connection.put_once("beat", b"{}", Heard, timeout_s=BEAT_TIMEOUT_S))
        except (httpx.HTTPError, NotNowError, PlatformError) as error:
            log.debug("no answer to a beat: %s", error)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The time of the attempt: what a predecessor left is here, and what is left here goes there."""
        try:
            self._mirror.fetch()
            self._mirror.start()
            yield
        finally:
            self._mirror.close()
            self._sender.close()

    def leave(self) -> None:
        """Everything that is in the checkpoint folder now is on the control plane when this returns."""
        self._mirror.leave()

    def _hear(self, heard: Heard) -> None:
        if heard.cancel_requested:
            self._is_cancelled.set()
