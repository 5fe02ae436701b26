"""Keyword arguments of requests, typed: the names are the contracts' own (a test holds them to it).

Values are sent as they are, and the service alone says what is wrong with them, naming the nearest known key; so one
place refuses, in one wording, whichever client asks.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict

from ml_workbench_service.contracts.agents import AgentFamily, AgentMode, QLearningHyperparameters, RewardSettings
from ml_workbench_service.contracts.deployment import DeploymentTarget, GateName, MonitoringLevel
from ml_workbench_service.contracts.experiments import (
    PresetName,
    PrunerName,
    RecordingRequest,
    SamplerName,
    SearchDimension,
)
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.queue import QueuePolicy
from ml_workbench_service.contracts.resilience import Scenario
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.contracts.training import (
    CrossValidation,
    JobPriority,
    LabelOptions,
    MetaLabelling,
    ModelType,
    TrainRequest,
)

Moment = datetime | str
"""A moment with its zone, `2025-03-01T00:00:00Z` as text."""
ModelTypeName = Literal[
    "time_series", "classification", "reinforcement_learning", "anomaly_detection", "feature_engineering"
]
PriorityName = Literal["high", "normal", "low"]
SampleWeighting = Literal["none", "uniqueness"]
Json = Mapping[str, Any]


class TrainFields(TypedDict, total=False):
    """Of a training: the original specification's keys, then the optional ones."""

    name: str
    model_type: ModelType | ModelTypeName
    features: Sequence[str]
    target: str | Sequence[str] | None
    symbols: Sequence[str]
    start_date: Moment
    end_date: Moment
    hyperparameters: Json
    validation_split: float
    family: str | None
    model_id: str | None
    version: str | None
    timeframe: str | None
    seeds: Sequence[int]
    cv: CrossValidation | Json | None
    sample_weights: SampleWeighting
    costs: Costs | Json | None
    quantiles: Sequence[float] | None
    label: LabelOptions | Json | None
    position: PositionRule | Json | Sequence[PositionRule | Json] | None
    meta: MetaLabelling | Json | None
    as_of: Moment | None
    notes: str
    force: bool
    priority: JobPriority | PriorityName


class ExperimentFields(TypedDict, total=False):
    """Of an experiment: a base request and what is searched around it."""

    name: str
    base: TrainRequest | RecordingRequest | Json
    search_space: Mapping[str, SearchDimension | Json]
    sampler: SamplerName
    num_trials: int | None
    pruner: PrunerName
    timeout_s: float | None
    seed: int
    preset: PresetName | None
    priority: JobPriority | PriorityName


class ReplayFields(TypedDict, total=False):
    """Of a replay: which bars go through the predict path into the queue."""

    model_id: str
    version: str | None
    symbols: Sequence[str]
    start_date: Moment
    end_date: Moment
    speed: float | None
    priority: JobPriority | PriorityName


class AgentFields(TypedDict, total=False):
    """Of a new agent."""

    id: str | None
    model_id: str | None
    family: AgentFamily
    mode: AgentMode | None
    hyperparameters: QLearningHyperparameters | Json | None
    costs: Costs | Json | None
    reward: RewardSettings | Json | None
    copy_of: str | None


class DeployFields(TypedDict, total=False):
    """Of a deployment: the original specification's keys, then what guards it."""

    version: str
    deployment_target: DeploymentTarget
    scaling_factor: float
    monitoring_level: MonitoringLevel
    expected_current: str | None
    gates: Mapping[GateName, bool] | None
    declared_columns: Sequence[str]
    accepted_verdict: Literal["implausible"] | None
    reason: str
    force: bool


class ResilienceFields(TypedDict, total=False):
    """Of a resilience test."""

    scenario: Scenario
    rate_per_s: float
    duration_s: float
    faults: Sequence[str]
    seed: int | None
    capacity: int
    policy: QueuePolicy
    outbox_capacity: int
    num_symbols: int
    num_agents: int
    num_standbys: int
    num_shards: int
    ttl_s: float | None
    fsync: Literal["always", "everysec"]
    priority: JobPriority | PriorityName


class PredictFields(TypedDict, total=False):
    """Of a prediction, beside its columns. Columns named `features` and `inputs` are the first argument instead."""

    symbol: str | None
    timeframe: str | None
    version: str | None
    as_of: Moment | None
    price: float | None
    position: float | None


class PredictionFilter(TypedDict, total=False):
    """Which rows of the ledger are asked for; `from_` and `to` are the first and last `as_of`."""

    model_id: str | None
    version: str | None
    symbol: str | None
    from_: Moment | None
    to: Moment | None
    outcome: Literal["known", "open"] | None
    limit: int | None


class RangeFields(TypedDict, total=False):
    """Which bars are asked for, known when."""

    start_date: Moment | None
    end_date: Moment | None
    as_of: Moment | None


ENQUEUE = Literal["best_effort", "guaranteed", "never"]
"""`never` answers without publishing, counting or keeping anything."""
