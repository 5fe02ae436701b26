"""The one prediction record, the three bodies that ask for it, and the protocol of a serving model.

Shape legend: N windows, T rows of a window, F features, K named outputs.
"""

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import FailFast, Field, Strict, model_validator

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import (
    Contract,
    Finite,
    MarketDatetime,
    Semver,
    Symbol,
    Timeframe,
    UtcDatetime,
)
from ml_workbench_service.contracts.market import Costs, Floats32
from ml_workbench_service.contracts.sizing import PositionWanted

Direction = Literal["buy", "sell", "hold"]
Precision = Literal["int8", "fp32"]
Role = Literal["champion", "candidate"]
Sample = Literal["train", "stop", "calibrate", "test", "live", "historical"]
"""The part of the data that a prediction is about; `historical`: asked about the past, whichever part that is in."""
AbstainReason = Literal[
    "novel_input", "stale_features", "model_expired", "interval_too_wide", "market_closed", "unknown_symbol",
    "undeployed",
]  # fmt: skip
"""`undeployed` stands in closing records alone: the model is not served any more, and its series end here."""
PRIMARY_SIDE = "primary_side"
"""Among a follower's outputs: what its primary would hold at the costs of the moment, -1, 0 or 1."""
FeatureValue = Annotated[Finite, Strict(), Field(ge=-1e15, le=1e15)]
"""No feature of a market comes near the bound; beyond it a float32 network would overflow. Strict by pydantic's own
means, for columns are long; a denormal is what a feature may come to, and counts as 0 in the network."""
FeatureColumns = Annotated[
    dict[str, Annotated[list[FeatureValue], Field(min_length=1, max_length=100_000)]], Field(max_length=1_000)
]


def new_prediction_id() -> str:
    """A fresh id: 128 random bits, as a UUID has them, in a fifth of its time."""
    return os.urandom(16).hex()


class PredictionContext(Asked):
    """Which series `inputs` belong to; needed only where a model knows several symbols."""

    symbol: Symbol
    timeframe: Timeframe | None = None


class PredictRequest(Asked):
    """One of three bodies: `features` with symbol and timeframe, `inputs`, or neither: the service fetches them.

    Columns run oldest first and have equal lengths; order of names does not matter.
    """

    symbol: Symbol | None = None
    timeframe: Timeframe | None = None
    features: FeatureColumns | None = None
    inputs: FeatureColumns | None = None
    context: PredictionContext | None = None
    version: Semver | None = None
    version_id: Semver | None = Field(default=None, description="The same as `version`.")
    as_of: MarketDatetime | None = None
    price: Annotated[Finite, Field(gt=0)] | None = None
    position: Annotated[Finite, Field(ge=-1, le=1)] | None = Field(
        default=None, description="What is held already; read by reinforcement-learning models, flat unless given."
    )

    @model_validator(mode="after")
    def _one_body(self) -> "PredictRequest":
        if self.features is not None and self.inputs is not None:
            raise ValueError("send `features` or `inputs`, not both")
        if self.inputs is None and (self.symbol is None or self.timeframe is None):
            raise ValueError("send `symbol` and `timeframe` (the service fetches the features), or `inputs`")
        if self.inputs is None and self.context is not None:
            raise ValueError("`context` goes with `inputs`; here `symbol` and `timeframe` say it")
        if self.inputs is not None and self.symbol is not None:
            raise ValueError("with `inputs`, name the symbol inside `context`")
        if self.version and self.version_id and self.version != self.version_id:
            raise ValueError("`version` and `version_id` differ; send one of them")
        return self

    @property
    def wanted_version(self) -> str | None:
        """The version asked for, by either name."""
        return self.version or self.version_id

    @property
    def columns(self) -> FeatureColumns | None:
        """The caller's columns, by either name; None where the service fetches them."""
        return self.features if self.features is not None else self.inputs


class PredictBatchRequest(Asked):
    """Several predictions in one call; a bad item fails alone."""

    items: Annotated[list[Any], Field(min_length=1, max_length=1000, description="Each a body of /predict.")]


class ReadBatch(Contract):
    """The same as it is read: an item that is not valid stays what it was, so that it can fail alone."""

    items: Annotated[
        list[Annotated[PredictRequest | Any, Field(union_mode="left_to_right")]], Field(min_length=1, max_length=1000)
    ]


class SoundBatch(Contract):
    """The same where every item is valid; reading ends at the first that is not."""

    items: Annotated[list[PredictRequest], FailFast(), Field(min_length=1, max_length=1000)]


class Interval(Contract):
    """Where the realised value falls with probability `level`, by conformal calibration."""

    level: Finite
    lower: Finite
    upper: Finite


class Novelty(Contract):
    """How far the input lies from the training part, in units of its 99.9 % quantile; above the threshold: abstain."""

    score: Finite
    threshold: Finite = 1.0
    top_features: tuple[str, ...] = ()


class Driver(Contract):
    """A feature's share in what makes an input unusual."""

    feature: str
    share: Finite


Action = Literal[-1, 0, 1]
FillingRule = Literal["record_close", "next_bar"]
"""`next_bar`: a decision is filled at the next bar's open, or its close where there is but the fixing. `record_close`:
at the close of its own record, as versions before this rule had it; what they wrote says nothing and keeps it."""
ActionsByPosition = tuple[Action, Action, Action]


class PredictionMetadata(Contract):
    """How the numbers came about; `actions_by_position` stands in records of reinforcement-learning models alone."""

    precision: Precision
    precision_reason: str | None = Field(
        default=None, description="Why fp32 answers where the card says int8: it does not agree on this processor."
    )
    data_source: str
    correlation_id: str = ""
    fill: Literal["next_open", "next_close"] = "next_open"
    filling_rule: FillingRule = "record_close"
    volatility: Finite | None = None  # ex-ante standard deviation of the target over its horizon
    strength: Finite | None = None  # -1 sell to 1 buy, where the prediction is no forecast: what an agent reads
    actions_by_position: ActionsByPosition | None = Field(
        default=None,
        description="The next position of one who holds -1, 0 and 1; an agent takes that of its own position.",
    )
    sizing: PositionWanted | None = Field(
        default=None,
        description="The position by the version's declared rule; null: the direction is the position, of size 1.",
    )
    deployment_id: str | None = None
    costs: Costs | None = None  # what the model was judged with; the agent settles with the same


class PredictionRecord(Contract):
    """The answer of `/predict`, the entry of the queue and, later, the row of the ledger: one shape."""

    prediction_id: str
    model_id: str
    version: str
    version_id: str
    role: Role
    symbol: str
    timeframe: str
    target: str | None
    as_of: UtcDatetime
    valid_until: UtcDatetime
    timestamp: UtcDatetime
    price: Finite | None
    bar_open: UtcDatetime | None = Field(default=None, description="When the record's newest bar opened.")
    open: Finite | None = Field(default=None, description="Its open: what the decision on the bar before is filled at.")
    close: Finite | None = Field(default=None, description="Its close: what fixings are filled at.")
    spread_open: Finite | None = Field(default=None, description="Spread at its open, in price units.")
    prev_bar_open: UtcDatetime | None = Field(
        default=None, description="When the bar right before it opened; null where that one is missing."
    )
    source: str  # "live" or "replay:<job_id>"
    sample: Sample
    status: Literal["ok", "abstain"]
    prediction: Finite | None
    label: str | None = None  # the class or action that `prediction` numbers
    direction: Direction
    confidence: Finite | None
    outputs: dict[str, Finite | None]
    interval: Interval | None
    novelty: Novelty | None
    drivers: tuple[Driver, ...] = ()  # what drove an anomaly score, most first
    warnings: tuple[str, ...] = ()
    abstain_reasons: tuple[AbstainReason, ...] = ()
    scaling_factor: Finite = 1.0
    metadata: PredictionMetadata

    @property
    def is_closing(self) -> bool:
        """Whether it ends its series: the model was undeployed, and no bar of it follows."""
        return "undeployed" in self.abstain_reasons

    @property
    def position_key(self) -> str:
        """Source, model, symbol and timeframe; an agent keeps one position and one last price for each."""
        return "|".join((self.source, self.model_id, self.symbol, self.timeframe))


@dataclass(frozen=True)
class RawPrediction:
    """What a network said: `outputs_NK` in the target's unit of scale, and the last row as the network saw it."""

    outputs_NK: Floats32
    last_rows_NF: Floats32


class Predictor(Protocol):
    """The serving life of a network: knows no optimiser and no torch."""

    def predict(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """Outputs for scaled rows; a policy also reads the positions held (flat unless given).

        Raises:
            PredictionError: the runtime failed.
        """
        ...
