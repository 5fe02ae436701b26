"""Jobs: the vocabulary of long work, from request to result. The event log is the truth; `Job` is its projection.

queued → running → succeeded | failed | cancelled
            └→ cancelling → cancelled | failed | succeeded
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal, Protocol

from pydantic import ConfigDict, Field

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract, Finite, MarketDatetime, ModelId, Semver, UtcDatetime
from ml_workbench_service.contracts.training import JobPriority, TrainingEstimate


class JobKind(StrEnum):
    """What a job does; each has one workflow."""

    TRAIN = "train"  # fetch, train, evaluate, export, publish one model version
    EXPERIMENT = "experiment"  # try settings on the validation part, train and evaluate the best
    REPLAY = "replay"  # stream past bars through the predict path into the queue
    IMPORTANCE = "importance"  # permute the columns of a published version, and measure what its answers lose
    RESILIENCE = "resilience"  # flood a private queue, break things, and prove what became of every record


class JobStatus(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  # accepted, waiting for a worker
    RUNNING = "running"  # a worker process is at it
    CANCELLING = "cancelling"  # asked to stop; the worker will see it at its next report
    SUCCEEDED = "succeeded"  # done, `result` is set
    FAILED = "failed"  # ended without result, `error` says why
    CANCELLED = "cancelled"  # ended because somebody asked

    @property
    def is_final(self) -> bool:
        """Whether nothing follows any more."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


EventType = Literal["queued", "started", "progress", "warning", "succeeded", "failed", "cancelled"]


class JobEvent(Contract):
    """One line of `events.jsonl`; `seq` counts from 1 without holes within the readable lines."""

    seq: int
    at: UtcDatetime
    type: EventType
    data: dict[str, Any] = Field(default_factory=dict)


class JobSpec(Contract):
    """`request.json`: everything a worker needs, written before the work starts."""

    id: str
    kind: JobKind
    request: dict[str, Any]
    plan: dict[str, Any] = Field(default_factory=dict)  # what the API decided: model id, version, estimate …
    created_at: UtcDatetime
    correlation_id: str
    idempotency_key: str | None = None
    body_digest: str | None = None
    client: str = ""  # whose key asked for it
    traceparent: str | None = None  # of the request that asked for it, where that was traced

    @property
    def priority(self) -> JobPriority:
        """Among jobs of the same client."""
        return JobPriority(self.request.get("priority", JobPriority.NORMAL))


class JobProgress(Contract):
    """How far, with the newest figures."""

    step: int = 0
    total: int = 0
    message: str = ""
    metrics: dict[str, Finite | None] = Field(default_factory=dict)


class JobTracking(Contract):
    """Whether the tracking server knows the run."""

    status: Literal["pending", "synced", "disabled"] = "pending"
    run_id: str | None = None
    url: str | None = None


class JobError(Contract):
    """Why a job failed: the body of the platform's error, without the correlation id."""

    error_type: str
    error_code: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


class Job(Contract):
    """One job as `GET /jobs/{id}` shows it."""

    id: str
    kind: JobKind
    status: JobStatus
    progress: JobProgress
    request: dict[str, Any]
    result: dict[str, Any] | None
    error: JobError | None
    attempt: int
    created_at: UtcDatetime
    started_at: UtcDatetime | None
    finished_at: UtcDatetime | None
    tracking: JobTracking
    warnings: tuple[str, ...] = ()
    correlation_id: str


class DeletedJob(Contract):
    """What is left of a deleted job: its id and Idempotency-Key stay taken, and a card still finds its run."""

    id: str
    kind: JobKind
    status: JobStatus
    created_at: UtcDatetime
    deleted_at: UtcDatetime
    run_id: str | None = None
    idempotency_key: str | None = None
    body_digest: str | None = None


class JobAccepted(Contract):
    """Every 202: the job that was accepted or asked to stop, and where it is; further keys where they say something."""

    job_id: str
    id: str | None = Field(default=None, description="The same, where it was answered under this name before.")
    kind: JobKind
    status: JobStatus
    href: str = Field(description="Where the job is asked for.")
    model_id: str | None = Field(default=None, description="Of what is to be published, or replayed.")
    version: str | None = Field(default=None, description="Of that model.")
    experiment_id: str | None = Field(default=None, description="Of a search.")
    num_trials: int | None = Field(default=None, description="Of a search.")
    estimate: TrainingEstimate | None = Field(default=None, description="Of a training.")


class EventData(Contract):
    """What every event says: when; some say more than is listed here."""

    model_config = ConfigDict(extra="allow")
    at: UtcDatetime


class StartedData(EventData):
    """A worker process has begun, for the `attempt`-th time."""

    attempt: int


class ProgressData(EventData):
    """How far: steps with their figures, or a sentence."""

    step: int = 0
    total: int = 0
    message: str = ""
    metrics: dict[str, Finite | None] = Field(default_factory=dict)


class WarningData(EventData):
    """A sentence that stays on the job."""

    message: str


class SucceededData(EventData):
    """What came of it, as the job's `result`."""

    result: dict[str, Any]


class FailedData(EventData):
    """Why it failed, as the job's `error`."""

    error_type: str
    error_code: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


class QueuedEvent(Contract):
    """The first event: the job is accepted."""

    id: str
    event: Literal["queued"]
    data: EventData


class StartedEvent(Contract):
    """A worker is at it; once more after a worker was lost."""

    id: str
    event: Literal["started"]
    data: StartedData


class ProgressEvent(Contract):
    """A step, or a message."""

    id: str
    event: Literal["progress"]
    data: ProgressData


class WarningEvent(Contract):
    """Something to know of."""

    id: str
    event: Literal["warning"]
    data: WarningData


class SucceededEvent(Contract):
    """The last event of a job that did its work."""

    id: str
    event: Literal["succeeded"]
    data: SucceededData


class FailedEvent(Contract):
    """The last event of a job that did not."""

    id: str
    event: Literal["failed"]
    data: FailedData


class CancelledEvent(Contract):
    """The last event of a job that was asked to stop."""

    id: str
    event: Literal["cancelled"]
    data: EventData


JobStreamEvent = Annotated[
    QueuedEvent | StartedEvent | ProgressEvent | WarningEvent | SucceededEvent | FailedEvent | CancelledEvent,
    Field(discriminator="event"),
]
"""One message of `GET /jobs/{id}/events`: its lines `id`, `event` and `data`, the last as JSON."""


class JobList(Contract):
    """`GET /jobs`, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None = None


class Report(Protocol):
    """One line in a loop feeds progress, MLflow and cancellation."""

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Records a step; raises JobCancelled when somebody asked for it."""
        ...

    def say(self, message: str) -> None:
        """Changes the progress message; raises JobCancelled like a step."""
        ...

    def warn(self, message: str) -> None:
        """Leaves a warning on the job."""
        ...

    def check(self) -> None:
        """Only checks for a cancellation; cheap enough for every batch."""
        ...


class SilentReport:
    """A `Report` that nobody follows: of a step or a message only a cancellation is looked for.

    Args:
        check: of the work that this is a part of; without it nobody cancels.
        warn: hears the warnings.
    """

    def __init__(
        self, check: Callable[[], None] = lambda: None, warn: Callable[[str], None] = lambda message: None
    ) -> None:
        self.check, self.warn = check, warn

    def __call__(self, step: int, total: int, **metrics: float) -> None:
        """Looks for a cancellation."""
        self.check()

    def say(self, message: str) -> None:
        """Looks for a cancellation."""
        self.check()


class ReplayRequest(Asked):
    """`POST /replays`."""

    model_id: ModelId
    version: Semver | None = None
    symbols: tuple[str, ...] = Field(min_length=1, max_length=64)
    start_date: MarketDatetime
    end_date: MarketDatetime
    speed: Finite | None = Field(default=None, gt=0, le=1e6, description="Bars per second; unset: as fast as it goes.")
    priority: JobPriority = Field(default=JobPriority.NORMAL, description="Among the waiting jobs of the same key.")


class HistoricalIntervalReport(Contract):
    """How adaptive intervals would have fared over a replay's bars that taught the model nothing."""

    level: Finite = Field(description="The share that is promised.")
    coverage: Finite = Field(description="Of all outcomes, with the widening that live intervals would have had.")
    published_coverage: Finite = Field(description="Of the same outcomes, as the records state their intervals.")
    width_ratio: Finite | None = Field(default=None, description="Mean width of the adaptive over the published ones.")
    num_outcomes: int
    factor: Finite = Field(description="What intervals would be multiplied by at usual volatility, at the end.")
    num_dropped: dict[str, int] = Field(default_factory=dict, description="What taught nothing, by reason.")


class ReplayResult(Contract):
    """The `result` of a replay job."""

    model_id: str
    version: str
    num_bars: int
    num_published: int
    num_abstained: int
    num_skipped: int = Field(default=0, description="Bars without a whole window behind them, or with missing values.")
    duration_s: Finite
    adaptive_intervals: HistoricalIntervalReport | None = Field(
        default=None, description="Apart from live intervals, which a replay does not move; null without an outcome."
    )
