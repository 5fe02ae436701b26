"""The prediction ledger on the wire: what was predicted, what came true, and how a live version fares.

docs/monitoring.md defines every figure. `Answered` is what serving hands to the ledger: the record, and what of its
making the wire does not show.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract, Finite, MarketDatetime, UtcDatetime
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import AbstainReason, Direction, Interval, PredictionRecord, Sample
from ml_workbench_service.contracts.training import Target

OutcomeState = Literal["open", "known", "unavailable", "none"]
"""Not known yet · known · never to be known from prices, `reason` says why · an abstention, or nothing was forecast."""
OutcomeSource = Literal["stream", "feature_store", "caller"]
"""A later record's price · the feature store's closes · POST /predictions/{id}/outcome."""
Realised = Annotated[Finite, Field(ge=-1e6, le=1e6, description="In the target's units; of classes the number.")]


@dataclass(frozen=True, slots=True)
class Answered:
    """A served record with what the ledger keeps beside it.

    Attributes:
        last_row_F: the newest row as the network read it, scaled; None where the symbol is unknown.
        bar_volatility: ex-ante standard deviation of one bar's log return; None where unknown.
        reference_price: of the symbol, for costs where the record has no price.
    """

    record: PredictionRecord
    last_row_F: Floats32 | None
    bar_volatility: float | None
    reference_price: float | None


@dataclass(frozen=True, slots=True)
class Making:
    """What the ledger must know of a version to find out what came true.

    Attributes:
        target: what its predictions foretell; None: nothing (a score, a position, features).
        horizon: in bars.
        barrier_width: of triple barriers, in volatilities over the horizon.
    """

    target: Target | None
    horizon: int
    barrier_width: float = 1.0


class PredictionOutcome(Contract):
    """What became of a prediction."""

    state: OutcomeState
    realised: Finite | None = Field(default=None, description="The value of the model's target, in its units.")
    at: UtcDatetime | None = Field(default=None, description="When it became known.")
    source: OutcomeSource | None = None
    reason: str | None = Field(default=None, description="Why there is none, where it is unavailable.")


class RecordedPrediction(Contract):
    """A row of the ledger: a served prediction of a live version, and its outcome."""

    prediction_id: str
    model_id: str
    version: str
    symbol: str
    timeframe: str
    target: str | None
    as_of: UtcDatetime
    valid_until: UtcDatetime = Field(description="The end of its horizon.")
    timestamp: UtcDatetime
    sample: Sample
    status: Literal["ok", "abstain"]
    price: Finite | None
    prediction: Finite | None
    label: str | None
    direction: Direction
    confidence: Finite | None
    interval: Interval | None
    novelty: Finite | None = Field(description="Its score; above 1 the input was unlike the training part.")
    abstain_reasons: tuple[AbstainReason, ...] = ()
    outcome: PredictionOutcome


class PredictionList(Contract):
    """`GET /predictions`, newest first."""

    predictions: tuple[RecordedPrediction, ...]
    next_cursor: str | None = None


class OutcomeReport(Asked):
    """`POST /predictions/{id}/outcome`: what came true, from whoever knows."""

    realised: Realised
    at: MarketDatetime = Field(description="When it became known: not before the prediction's `valid_until`.")


class Share(Contract):
    """A share of counted things, as it was found and how surely."""

    value: Finite | None = Field(description="Null before the first.")
    standard_error: Finite | None = Field(
        description="Rows at one moment count as one and overlapping horizons are allowed for; null under 10 moments."
    )
    num: int = Field(description="Rows behind it.")


class LiveError(Contract):
    """Errors of the forecasts beside those of the target's naive baseline, on the same rows."""

    mae: Finite
    rmse: Finite
    bias: Finite = Field(description="Mean of prediction less realised.")
    baseline: Literal["zero", "ex_ante_volatility"] = Field(
        description="No change for prices; the record's own ex-ante volatility for volatilities."
    )
    baseline_mae: Finite
    baseline_rmse: Finite
    mae_ratio: Finite | None = Field(description="Below 1 the forecasts are better; null where the baseline has none.")
    rmse_ratio: Finite | None


class LiveCoverageReport(Contract):
    """How often the stated intervals held."""

    level: Finite = Field(description="The share they promise.")
    coverage: Share


class ReliabilityBin(Contract):
    """Predictions whose confidence lies within [lower, upper)."""

    lower: Finite
    upper: Finite
    num: int
    confidence: Finite = Field(description="Their mean confidence.")
    came_true: Finite = Field(description="The share of them whose statement came true.")


class Calibration(Contract):
    """Whether `confidence` is what it says: the probability that the stated direction, or class, comes true."""

    num: int
    brier: Finite = Field(description="Mean squared difference of confidence and truth: 0 is best.")
    brier_of_base_rate: Finite = Field(description="The same of who always says the share that came true.")
    expected_calibration_error: Finite
    chance_error: Finite = Field(
        description="What a perfectly calibrated confidence would show by chance, on so many rows."
    )
    bins: tuple[ReliabilityBin, ...]


DriftState = Literal["stable", "moderate", "major", "insufficient_data", "constant"]
"""By PSI: under 0.1, or no more than chance · from 0.1 · from 0.25 · too few rows · a constant in training."""


class FeatureDrift(Contract):
    """One feature's live values against the training part's, both as the network reads them."""

    feature: str
    state: DriftState
    psi: Finite | None = Field(description="Population stability index over the training part's tenths.")
    psi_by_chance: Finite | None = Field(description="What it would be without any drift, on so few rows.")
    psi_threshold: Finite | None = Field(description="It is above this in 1 of 100 reports without any drift.")
    ks_statistic: Finite | None
    ks_p_value: Finite | None = Field(description="By the effective number of rows, since rows resemble each other.")
    outside_share: Finite = Field(description="Share outside the training part's range.")
    num_rows: int
    num_effective: Finite = Field(description="As many independent rows would tell as much.")


class Drift(Contract):
    """Inputs against training, worst feature first."""

    worst_feature: str | None
    num_rows: int
    features: tuple[FeatureDrift, ...]


class LiveVerdict(Contract):
    """Whether live evidence alone shows skill: answers received in time, with outcomes from the store's bars alone."""

    verdict: Literal["skill", "insufficient_data", "not_applicable"]
    reason: str
    baseline: str | None = Field(default=None, description="The one that was hardest to beat.")
    p_value: Finite | None = Field(
        default=None, description="In units of what its test may spend: 0.025 at most passes."
    )
    num_moments: int = Field(default=0, description="Moments of evidence; symbols at one moment are one.")
    next_at: int | None = Field(
        default=None, description="Moments that the next test waits for; until then this holds."
    )
    num_bars: int = Field(default=0, description="Bars from the first evidence on that have an outcome or should.")
    num_answered: int = Field(default=0, description="Of them, asked in time and with an outcome.")
    missing_share: Finite = Field(default=1.0, description="Of the bars; above 0.05 nothing is said.")


class VersionMonitoring(Contract):
    """One version's live figures."""

    version: str
    target: str | None
    monitoring_level: Literal["low", "medium", "high"] | None = Field(
        description="What is sampled while it is live; null where it is not."
    )
    num_predictions: int = Field(description="Rows about moments after the training's data; the figures are theirs.")
    num_abstained: int
    num_outcomes: int
    num_open: int
    num_unavailable: int
    num_not_live: int = Field(
        description="Rows about the past, or about moments that the training knew; no figure reads them."
    )
    error: LiveError | None = Field(description="Null for classes, and before the first outcome.")
    accuracy: Share | None = Field(description="Of the stated class, where classes are forecast.")
    direction_accuracy: Share | None = Field(description="Of the answers that say buy or sell.")
    coverage: LiveCoverageReport | None
    calibration: Calibration | None
    drift: Drift | None
    drift_reason: str | None = Field(default=None, description="Why there is none.")
    live_verdict: LiveVerdict | None = Field(
        default=None, description="From evidence alone; `reason` says why there is none just now."
    )
    warnings: tuple[str, ...] = Field(
        default=(),
        description="`few_outcomes`: under 30, no figure means much. `newest_rows_only`: more than are read.",
    )


class MonitoringReport(Contract):
    """`GET /models/{id}/monitoring`: the ledger's figures, newest version first."""

    model_id: str
    versions: tuple[VersionMonitoring, ...]
