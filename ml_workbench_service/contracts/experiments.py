"""Experiments: a search over settings, its trials, and what came of it.

A trial is scored on the validation part alone (never on the test part); every trial is counted by the ledgers.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import (
    Contract,
    Finite,
    MarketDatetime,
    ModelId,
    Semver,
    Symbol,
    UtcDatetime,
    each_once,
)
from ml_workbench_service.contracts.jobs import JobError, JobStatus, JobTracking
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.strict_numbers import TOO_SMALL, is_denormal
from ml_workbench_service.contracts.training import MOST_HYPERPARAMETERS, JobPriority, TrainRequest

MOST_TRIALS = 10_000
SamplerName = Literal["tpe", "random", "grid"]
PrunerName = Literal["none", "median", "hyperband"]
OF_A_SEARCH = frozenset({"sampler", "pruner", "num_trials", "timeout_s", "seed"})
"""What has no meaning for an agent grid."""
PresetName = Literal["q_learning_grid"]
TrialState = Literal["running", "complete", "pruned", "failed"]


def _is_choice(value: Any) -> Any:
    """Says in one sentence what a union would say once for each of its members."""
    is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not is_list and not isinstance(value, str | bool | int | float | None):
        raise ValueError("a choice is a text, a number, true, false or null; of features a list of names")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a choice must be a finite number")
    if is_denormal(value):
        raise ValueError(TOO_SMALL)
    return value


Choice = Annotated[str | bool | int | Finite | list[str] | None, BeforeValidator(_is_choice)]


class SearchDimension(Asked):
    """A range `{low, high, log?, step?}` or a list `{choices}`."""

    low: Finite | None = None
    high: Finite | None = None
    log: bool = Field(default=False, description="Sample the logarithm evenly.")
    step: Finite | None = Field(default=None, gt=0)
    choices: Annotated[list[Choice], Field(min_length=1, max_length=200)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "SearchDimension":
        is_range = self.low is not None and self.high is not None
        if (self.choices is None) == (not is_range) or (
            self.choices is not None and (self.low, self.high) != (None,) * 2
        ):
            raise ValueError("a dimension is either {low, high} (with log or step) or {choices}")
        if is_range and self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("`low` must not be above `high`")
        if self.log and (self.step is not None or self.low is None or self.low <= 0):
            raise ValueError("`log` needs a range above zero and no `step`")
        if self.choices is not None and (self.log or self.step is not None):
            raise ValueError("`log` and `step` belong to ranges; leave them out beside `choices`")
        return self


class RecordingRequest(Asked):
    """What an agent grid learns from: predictions of one version over a past range, recorded by the job itself."""

    model_id: ModelId
    version: Semver | None = Field(default=None, description="Default: the live one, else the newest.")
    symbols: Annotated[list[Symbol], Field(min_length=1, max_length=64)]
    start_date: MarketDatetime
    end_date: MarketDatetime
    family: Literal["q_learning"] = "q_learning"
    hyperparameters: dict[str, Any] = Field(
        default_factory=dict, max_length=MOST_HYPERPARAMETERS, description="Those of the agent that are not searched."
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1, max_length=100)] = Field(
        default_factory=lambda: [0, 1, 2, 3, 4]
    )
    costs: Costs | None = None
    allow_in_sample: bool = Field(
        default=False, description="Also learn from predictions of data that the model was fitted on."
    )

    _no_twins = field_validator("symbols", "seeds")(each_once)


def _by_its_keys(base: Any) -> Any:
    """What a recording has in common with no training decides, so that an error is told of the one that was meant."""
    if isinstance(base, TrainRequest | RecordingRequest):
        return base
    if not isinstance(base, dict):
        raise ValueError("`base` is a train request, or a recording for an agent grid: model_id, symbols, dates")
    is_recording = "model_id" in base and not {"name", "model_type", "features", "target"} & base.keys()
    return (RecordingRequest if is_recording else TrainRequest).model_validate(base)


class ExperimentRequest(Asked):
    """`POST /experiments`. `base` is a train request, or a recording for an agent grid."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    base: Annotated[TrainRequest | RecordingRequest, BeforeValidator(_by_its_keys)]
    search_space: Annotated[
        dict[str, SearchDimension],
        Field(
            max_length=32,
            description="Hyper-parameters of the family by name; of a train request also `features`, `lookback` and "
            "`horizon`. `features` takes choices that are lists of names.",
        ),
    ] = {}  # noqa: RUF012
    sampler: SamplerName = "tpe"
    num_trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = Field(
        default=None, description="Default: 20; the whole grid for the sampler `grid`."
    )
    pruner: PrunerName = "none"
    timeout_s: Annotated[Finite, Field(gt=0, le=30 * 86400)] | None = Field(
        default=None,
        description="No further trial begins after so many seconds of work, and those under way are ended as soon as "
        "one is complete.",
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="Of the sampler.")
    preset: PresetName | None = Field(default=None, description="A ready-made search space and sampler.")
    priority: JobPriority = Field(default=JobPriority.NORMAL, description="Among the waiting jobs of the same key.")

    @model_validator(mode="after")
    def _something_to_search(self) -> "ExperimentRequest":
        is_recording = isinstance(self.base, RecordingRequest)
        if self.preset is not None and not is_recording:
            raise ValueError("the preset q_learning_grid needs a recording as `base`: model_id, symbols, dates")
        if self.preset is not None and self.search_space:
            raise ValueError("a preset brings its own `search_space`; leave one of them out")
        if self.preset is None and not self.search_space:
            raise ValueError("`search_space` names no dimension; add one, or send a `preset`")
        if is_recording and self.preset is None and any(each.choices is None for each in self.search_space.values()):
            raise ValueError("an agent grid searches `choices`; ranges belong to train requests")
        given = sorted(OF_A_SEARCH & self.model_fields_set)
        if is_recording and given:
            raise ValueError(f"an agent grid runs every setting at once; leave {', '.join(given)} out")
        if isinstance(self.base, TrainRequest) and "priority" in self.base.model_fields_set:
            raise ValueError("a `priority` is the experiment's; send it beside `base`")
        return self


class ExperimentTrial(Contract):
    """One trial as `GET /experiments/{id}` lists it."""

    number: int
    state: TrialState
    params: dict[str, Any]
    value: Finite | None = Field(default=None, description="The score on the validation part; more is better.")
    spread: Finite | None = Field(
        default=None, description="Standard deviation over the seeds, where there are several."
    )
    sharpe: Finite | None = Field(default=None, description="Of daily net returns on the validation part, per year.")
    curve: tuple[tuple[int, Finite], ...] = Field(default=(), description="Step and intermediate score.")
    message: str = ""
    started_at: UtcDatetime | None = None
    finished_at: UtcDatetime | None = None
    run_id: str | None = None


class TrialRecord(ExperimentTrial):
    """One trial as a line of `trials.jsonl` keeps it; the last line of a number counts."""

    curve_at_ms: tuple[int, ...] = Field(default=(), description="When each point of the curve was reported.")

    @property
    def is_finished(self) -> bool:
        """Whether nothing follows any more."""
        return self.state != "running"

    def shown(self, *, run_id: str | None = None) -> ExperimentTrial:
        """Without what only the tracker needs."""
        return ExperimentTrial(**{**self.model_dump(exclude={"curve_at_ms"}), "run_id": run_id})


class Experiment(Contract):
    """`GET /experiments/{id}`: trials, importance and curves as data; the winner's model once it is judged."""

    id: str
    name: str
    status: JobStatus
    job_href: str
    created_at: UtcDatetime
    finished_at: UtcDatetime | None
    sampler: SamplerName
    num_trials: int = Field(description="Trials asked for.")
    objective: str
    trials: tuple[ExperimentTrial, ...]
    best_trial: ExperimentTrial | None
    importance: dict[str, Finite] = Field(default_factory=dict, description="Share of the score's variance (fANOVA).")
    num_trials_ever: int | None = Field(
        default=None,
        description="Trials on validation parts that overlap this one, of all jobs; they deflate the score.",
    )
    deflated_sharpe: Finite | None = None
    probability_of_backtest_overfitting: Finite | None = None
    test_looks: int | None = None
    result: dict[str, Any] | None = None
    error: JobError | None = None
    tracking: JobTracking = JobTracking()


class ExperimentSummary(Contract):
    """One line of `GET /experiments`."""

    id: str
    name: str
    status: JobStatus
    created_at: UtcDatetime
    num_trials: int
    num_finished: int
    best_value: Finite | None
    result: dict[str, Any] | None


class ExperimentList(Contract):
    """`GET /experiments`, newest first."""

    experiments: tuple[ExperimentSummary, ...]
    next_cursor: str | None = None
