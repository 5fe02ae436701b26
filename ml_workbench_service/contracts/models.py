"""Model cards: what a bundle says of itself, on disk and on the wire.

The list shows the original specification's seven keys first; `status` is not stored in a bundle, it is derived from the
deployment history and the archive marker.
"""

from typing import Any, Literal

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.evaluation import Adds, Certificate, Evaluation, Proof, TodaysVerdict
from ml_workbench_service.contracts.reading_reports import ReadingReport
from ml_workbench_service.contracts.training import PrimaryReference

ModelStatus = Literal["experimental", "deployed", "archived"]
ModelOrder = Literal["id", "newest"]
UNPROVEN_THEN = "judged by earlier rules, which did not ask for a proof of its columns: train it again to be told apart"
LEAKED_THEN = "judged by earlier rules, which named no leak in the verdict: its leakage certificate failed"


class Quantization(Contract):
    """Whether the int8 network serves single predictions, and the measurement that decided it."""

    accepted: bool
    reason: str
    speedup: Finite | None = None
    max_delta_std: Finite | None = Field(
        default=None, description="Largest |difference| in prediction standard deviations."
    )
    mean_delta_std: Finite | None = None
    direction_agreement: Finite | None = None
    processor: tuple[str, ...] = Field(
        default=(), description="Features of the processor that it was measured on; empty on cards older than this."
    )


class SampleWeights(Contract):
    """What the training part's rows counted, where not each counts as much."""

    scheme: Literal["uniqueness"] = "uniqueness"
    mean_uniqueness: Finite = Field(description="Of a label's bars the share that is its own; 1: none overlap.")
    distinct_labels: Finite = Field(description="The sum of it: about as many labels share no bar.")
    effective_windows: Finite = Field(description="(sum of weights)² ÷ sum of their squares; all, if all weigh alike.")


class Split(Contract):
    """The parts of the data, with borders by time and counts after purging."""

    borders: dict[str, UtcDatetime]
    num_windows: dict[str, int]
    num_purged: int
    num_dropped: dict[str, int] = Field(default_factory=dict)
    sample_weights: SampleWeights | None = None


class Lineage(Contract):
    """Where a version came from."""

    job_id: str
    run_id: str | None = None
    data_fingerprint: str
    seeds: tuple[int, ...]
    parent_version: str | None = None
    library_versions: dict[str, str]


class LiveIntervalReport(Contract):
    """What became of a live version's intervals so far."""

    level: Finite = Field(description="The share that is promised.")
    coverage: Finite | None = Field(description="Of the newest outcomes; null before the first.")
    num_outcomes: int
    factor: Finite = Field(description="What live intervals are multiplied by at usual volatility.")
    num_dropped: dict[str, int] = Field(default_factory=dict, description="What taught nothing, by reason.")


VolatilityRule = Literal["ewma", "seasonal_ewma"]
"""Ex-ante volatility that intervals, barriers and agents read: an EWMA of returns, or of deseasonalised ones times the
coming bars' season. Cards older than the second, and cards of daily bars, have the first."""


class ModelCard(Contract):
    """A version's full card. Metrics are the test part's."""

    id: str
    name: str
    type: str
    version: str
    status: ModelStatus = "experimental"
    created_at: UtcDatetime
    metrics: dict[str, Finite | None]

    family: str
    symbols: tuple[str, ...]
    timeframe: str
    features: tuple[str, ...]
    expressions: dict[str, str] = Field(
        default_factory=dict, description="Of the features that are evaluated, the expression's text by their name."
    )
    base_columns: tuple[str, ...] = Field(
        default=(),
        description="What may be sent in the features' place: the columns that they and their expressions are made "
        "of; empty where nothing is evaluated.",
    )
    history: int = Field(default=0, description="Bars before a window that its expressions look back.")
    target: str | None = Field(description="The headline target; null where nothing is forecast.")
    targets: tuple[str, ...] = Field(default=(), description="Every target, where there are several.")
    quantiles: tuple[Finite, ...] = ()
    classes: tuple[str, ...] = Field(default=(), description="What a classifier tells apart, in order.")
    primary: PrimaryReference | None = Field(
        default=None, description="Of meta-labelling: the version whose side is followed or skipped."
    )
    horizon: int
    label_start: Literal["fill", "close"] = Field(
        default="close",
        description="Where the label of a price move begins: at the row's own close, or a bar later, where fixings "
        "fill the decision.",
    )
    lookback: int
    min_window: int
    outputs: tuple[str, ...]
    precision: Literal["int8", "fp32"]
    quantization: Quantization
    evaluation: Evaluation
    certificate: Certificate | None = Field(default=None, description="Whether anything knew the future.")
    split: Split
    data_source: str
    calendar: Literal["fx", "fixings"]
    fill: Literal["next_open", "next_close"]
    volatility_rule: VolatilityRule = "ewma"
    expires_at: UtcDatetime
    hyperparameters: dict[str, Any]
    epochs_run: int
    findings: dict[str, Any] = Field(default_factory=dict, description="What else the training found out.")
    warnings: tuple[str, ...] = ()
    notes: str = ""
    readings: tuple[ReadingReport, ...] = Field(
        default=(), description="How each file of bars was read; empty where no file of the user's was."
    )
    live_intervals: LiveIntervalReport | None = Field(
        default=None, description="Derived like `status`, not in the bundle: null unless the version has been live."
    )
    todays_verdict: TodaysVerdict | None = Field(
        default=None,
        description="Derived like `status`, not in the bundle: `evaluation` after all evaluations known today; null "
        "where nothing was tested by today's rules.",
    )
    lineage: Lineage
    digest: str = ""
    size_bytes: int = 0

    @property
    def target_names(self) -> tuple[str, ...]:
        """Every target; none where nothing is forecast."""
        return self.targets or (() if self.target is None else (self.target,))

    def by_current_rules(self) -> "ModelCard":
        """The card with its verdict as it reads by the rules of today; what is on disk is never rewritten.

        Rules of before (`verdict_rules: 1`) called skill what nothing proved, and no failed certificate a leak.
        """
        found, certificate = self.evaluation, self.certificate
        if found.verdict_rules > 1:
            return self
        status, proof = ("", None) if certificate is None else (certificate.status, certificate.proof)
        update: dict[str, Any] = {}
        if status == "failed" and found.verdict not in ("not_applicable", "leak"):
            update = {"verdict": "leak", "reason": f"{LEAKED_THEN}; {found.reason}"}
        elif found.verdict == "skill" and status == "passed":
            update = {"proof": proof or "recomputed"}  # earlier certificates passed by recomputing alone
        elif found.verdict == "skill":
            update = {"verdict": "unverified", "reason": f"{UNPROVEN_THEN}; {found.reason}"}
        return self.model_copy(update={"evaluation": found.model_copy(update=update)})


class Tombstone(Contract):
    """What is left of a purged version: by its digests a copy elsewhere is known again. Its number stays taken."""

    model_id: str
    version: str
    digest: str = Field(default="", description="Of its manifest; empty where that could not be read any more.")
    files: dict[str, str] = Field(default_factory=dict, description="SHA-256 of each file, as its manifest had it.")
    size_bytes: int = 0
    type: str = ""
    job_id: str = Field(default="", description="The job that trained it.")
    created_at: UtcDatetime | None = None
    was_live: bool = False
    purged_at: UtcDatetime
    correlation_id: str = ""


class PurgedModel(Contract):
    """`DELETE /models/{id}`: the model's files are gone, its history and its version numbers are kept."""

    model_id: str
    purged: tuple[Tombstone, ...]


class SetAside(Contract):
    """A version that is not served, deployed or trained on until somebody sees to it; the others go on."""

    model_id: str
    version: str
    state: Literal["damaged", "tampered", "unsigned"] = Field(
        description="Its files are not what its manifest lists; its signature does not verify; nobody known signed it."
    )
    reason: str = Field(description="In words, with the next step.")


class ModelSummary(Contract):
    """One line of `GET /models`: the newest or live version of each model."""

    id: str
    name: str
    type: str
    version: str
    status: ModelStatus
    created_at: UtcDatetime
    metrics: dict[str, Finite | None]
    family: str
    symbols: tuple[str, ...]
    timeframe: str
    target: str | None
    data_source: str
    verdict: str = Field(description="As it reads by today's rules and after all evaluations known today.")
    published_verdict: str = Field(description="What the card was published with, by today's rules.")
    adjusted_p_value: Finite | None = Field(
        default=None, description="After all evaluations known today; null where nothing was tested."
    )
    adds_over_linear: Adds | None = None
    digest: str
    proof: Proof | None = Field(default=None, description="With `skill`: why no column can have known the future.")
    warnings: tuple[str, ...] = Field(default=(), description="What a deployed version is live with, by today's rules.")


class ModelList(Contract):
    """`GET /models`."""

    models: tuple[ModelSummary, ...]
    set_aside: tuple[SetAside, ...] = Field(
        default=(), description="Versions of all models that cannot be served, the first 200; whole each page."
    )
    next_cursor: str | None = None


class VersionList(Contract):
    """`GET /models/{id}/versions`, newest first."""

    versions: tuple[ModelCard, ...]
    purged: tuple[Tombstone, ...] = Field(
        default=(), description="Whose files are gone, oldest first; whole each page."
    )
    set_aside: tuple[SetAside, ...] = Field(
        default=(), description="That cannot be served, newest first; whole each page."
    )
    next_cursor: str | None = None


class FamilyDescription(Contract):
    """A family as `GET /model-types` shows it."""

    name: str
    is_default: bool
    summary: str
    package: str = Field(description="The distribution that brings it, and its version: `name==version`.")
    hyperparameters: dict[str, Any] = Field(description="JSON Schema with defaults and a sentence per field.")
    explains_answers: bool = Field(default=False, description="Whether `/predict` takes `explain=true`.")


class ModelTypeDescription(Contract):
    """A model type with the families installed for it."""

    model_type: str
    families: tuple[FamilyDescription, ...]


class ModelTypeList(Contract):
    """`GET /model-types`."""

    model_types: tuple[ModelTypeDescription, ...]
