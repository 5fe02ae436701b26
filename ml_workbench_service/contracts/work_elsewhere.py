"""Work elsewhere: what a worker on another machine and the control plane say to each other about one job.

All of it lies below `/api/v1/jobs/{job_id}/worker`, is said with a job's own token, and may be said twice: whoever did
not hear the answer says it again (docs/jobs_elsewhere.md).
"""

from typing import Any, Literal

from pydantic import Base64Bytes, Field

from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.jobs import Job, JobEvent, JobSpec
from ml_workbench_service.contracts.market import FeatureDescription, OutsideThing
from ml_workbench_service.contracts.multiple_testing import PartRead, Trial

MOST_EVENTS = 500
"""In one post."""
MOST_EVENT_BYTES = 1_000_000
"""That a worker puts into one post, but for a single event that is longer."""
FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"


class TokenExchange(Contract):
    """A worker begins: who it is, and a number of its own by which it may ask again for the same token."""

    nonce: str = Field(pattern=r"^[0-9a-f]{32,128}$")
    pid: int
    started_at: float
    boot_id: str = ""


class JobToken(Contract):
    """Good for this job and this attempt alone, until another attempt follows."""

    token: str
    attempt: int


class JobView(Contract):
    """The job as its worker needs it; `last_seq` is the number of the newest event."""

    spec: JobSpec
    job: Job
    attempt: int
    last_seq: int


class PostedEvents(Contract):
    """Events in order, each with the number that it has in the log."""

    events: tuple[JobEvent, ...] = Field(min_length=1, max_length=MOST_EVENTS)


class Heard(Contract):
    """What the control plane has by now, and whether somebody asked to stop."""

    last_seq: int
    cancel_requested: bool


class KeptFile(Contract):
    """A file of a checkpoint, by its path below the folder."""

    path: str
    size: int


class KeptFiles(Contract):
    """All of a checkpoint."""

    files: tuple[KeptFile, ...]


class Publication(Contract):
    """What became of a version that was handed in; `error` is the refusal's, by its class."""

    state: Literal["nothing", "waiting", "published", "refused"]
    error_type: str = ""
    message: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class BundleListing(Contract):
    """A published version: its card as JSON, and its files."""

    card: dict[str, Any]
    files: tuple[KeptFile, ...]


class VersionListing(Contract):
    """Published versions of a model, newest first; `published` is the one that this job has published, as JSON."""

    versions: tuple[str, ...]
    published: dict[str, Any] | None = None


class StoreFacts(Contract):
    """The control plane's feature store.

    `makes_columns` says that there are bars to make features from; else columns come ready-made.
    """

    makes_columns: bool
    by_request: bool = Field(default=False, description="Whether further columns of a series must be asked for.")
    own_columns: tuple[str, ...] = ()
    described: tuple[FeatureDescription, ...] = ()
    now_ms: int | None = None
    is_witnessed: bool = False
    check: OutsideThing


class ColumnsAsked(Contract):
    """Ready-made columns, as `FeatureStore.fetch` is asked for them."""

    symbols: tuple[str, ...]
    timeframe: str
    start_ms: int | None
    end_ms: int | None
    features: tuple[str, ...]
    as_of_ms: int | None = None
    last: int | None = None


class WitnessQuestion(Contract):
    """When these values of a column were first seen; both are columns of 8 bytes a row."""

    symbol: str
    timeframe: str
    column: str
    opened_ms: Base64Bytes
    values: Base64Bytes


class PostedSeries(Contract):
    """A series that an evaluation bets on; steps and log closes are columns of 8 bytes a row."""

    symbol: str
    step_ms: int
    steps: Base64Bytes
    log_close: Base64Bytes


class PostedResult(Contract):
    """An `EvaluationResult`."""

    p_value: Finite | None
    from_ms: int
    until_ms: int
    own_columns: str
    differentials: Base64Bytes


class LogQuestion(Contract):
    """A call of the multiple-testing log, by its method; of the rest what that method takes."""

    method: Literal[
        "record_evaluation", "record_result", "results", "other_p_values", "num_evaluations", "record_trial", "trials"
    ]
    read: PartRead | None = None
    recipe: str = ""
    series: tuple[PostedSeries, ...] = ()
    evaluation: str = ""
    result: PostedResult | None = None
    trial: Trial | None = None


class LogAnswer(Contract):
    """What it gave, by what the method gives."""

    number: int = 0
    results: tuple[PostedResult, ...] = ()
    p_values: tuple[Finite | None, ...] = ()
    trials: tuple[Trial, ...] = ()
