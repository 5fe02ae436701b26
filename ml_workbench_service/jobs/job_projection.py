"""Job projection (event sourcing): what the events so far say. Adding them singly or at once gives the same."""

import math
from typing import Any

from ml_workbench_service.contracts.contract import UtcDatetime
from ml_workbench_service.contracts.jobs import Job, JobError, JobEvent, JobProgress, JobSpec, JobStatus, JobTracking

_FINAL = {"succeeded": JobStatus.SUCCEEDED, "failed": JobStatus.FAILED, "cancelled": JobStatus.CANCELLED}


class JobProjection:
    """A running summary of one event log. The first final event counts; nothing follows it."""

    def __init__(self) -> None:
        self._status = JobStatus.QUEUED
        self._progress = JobProgress()
        self._attempt = 0
        self._started_at: UtcDatetime | None = None
        self._finished_at: UtcDatetime | None = None
        self._result: dict[str, Any] | None = None
        self._error: JobError | None = None
        self._warnings: list[str] = []

    def add(self, event: JobEvent) -> None:
        """Takes the next event of the log into account."""
        if self._status.is_final:
            return
        if event.type == "started":
            self._status = JobStatus.RUNNING
            self._started_at = self._started_at or event.at
            self._attempt = max(self._attempt + 1, int(event.data.get("attempt", 0)))
        elif event.type == "progress":
            self._progress = _advanced(self._progress, event.data)
        elif event.type == "warning":
            self._warnings.append(str(event.data.get("message", "")))
        elif event.type in _FINAL:
            self._end(event)

    def job(self, spec: JobSpec, *, cancel_requested: bool, tracking: JobTracking) -> Job:
        """The job as the events, the cancel marker and the tracker's note describe it."""
        status = self._status
        if cancel_requested and not status.is_final:
            status = JobStatus.CANCELLING
        return Job(
            id=spec.id,
            kind=spec.kind,
            status=status,
            progress=self._progress,
            request=spec.request,
            result=self._result,
            error=self._error,
            attempt=self._attempt,
            created_at=spec.created_at,
            started_at=self._started_at,
            finished_at=self._finished_at,
            tracking=tracking,
            warnings=tuple(self._warnings),
            correlation_id=spec.correlation_id,
        )

    def _end(self, event: JobEvent) -> None:
        self._status = _FINAL[event.type]
        self._finished_at = event.at
        if event.type == "succeeded":
            result = event.data.get("result")
            self._result = result if isinstance(result, dict) else {}
        if event.type == "failed":
            details = event.data.get("details")
            self._error = JobError(
                error_type=str(event.data.get("error_type", "TrainingError")),
                error_code=str(event.data.get("error_code", "TRAINING_ERROR")),
                message=str(event.data.get("message", "")),
                details=details if isinstance(details, dict) else {},
            )


def _advanced(progress: JobProgress, data: dict[str, Any]) -> JobProgress:
    """A report of numbers keeps the message, a message keeps the numbers; metrics are merged, newest first."""
    metrics = data.get("metrics")
    fresh = {name: _number(value) for name, value in metrics.items()} if isinstance(metrics, dict) else {}
    return JobProgress(
        step=int(data.get("step", progress.step)),
        total=int(data.get("total", progress.total)),
        message=str(data.get("message", progress.message)),
        metrics={**progress.metrics, **fresh},
    )


def _number(value: object) -> float | None:
    """A finite number, else None."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None
