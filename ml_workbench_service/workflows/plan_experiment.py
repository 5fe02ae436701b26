"""Experiment plan: everything that can be refused is refused before it starts, each corner of its space included.

The base is planned as the training that its winner will be, and reserves that version. Then each choice, and each end
of a range, is planned by itself, and the costliest ends together, whose memory decides how many trials run at a time.
Free of optuna.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from common_lib.exceptions import (
    DataValidationError,
    InsufficientMemoryError,
    ModelNotFoundError,
    VersionNotFoundError,
)
from ml_workbench_service import families as families  # loading the package registers every family
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.experiments import ExperimentRequest, RecordingRequest
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.training import ModelType, TrainingEstimate, TrainRequest
from ml_workbench_service.learning.interfaces.family import AnyFamily, family_for
from ml_workbench_service.market.costs import check_costs
from ml_workbench_service.reinforcement.agent_sweep import Q_LEARNING_GRID, grid_settings
from ml_workbench_service.resources import Workbench
from ml_workbench_service.search.space import (
    FEATURES,
    HORIZON,
    Dimension,
    choice_label,
    dimensions,
    grid_size,
    trial_request,
    variants,
)
from ml_workbench_service.training import tasks as tasks

NUM_TRIALS = 20
"""Where the request says nothing: ten at random, ten by what they have shown."""
OF_FEATURES = ("features", "expressions", "selected_until_ms", "primary")
UNRECORDED = (ModelType.ANOMALY_DETECTION, ModelType.FEATURE_ENGINEERING)
IDLE_GB = 0.6
"""Of the process that leads trials in other processes."""
OBJECTIVES: Mapping[ModelType, str] = {
    ModelType.TIME_SERIES: "1 - squared error / that of no change (volatility: of an EWMA), on the validation part",
    ModelType.CLASSIFICATION: "1 - log loss / that of the training part's frequencies, on the validation part",
    ModelType.REINFORCEMENT_LEARNING: "net log return per moment, on the validation part",
    ModelType.ANOMALY_DETECTION: "average precision among anomalies injected into the validation part",
    ModelType.FEATURE_ENGINEERING: "what the kept columns tell of the target beyond luck, held out",
}
GRID_OBJECTIVE = "net log return over the recording, mean over the seeds"


class PlannedTraining(Protocol):
    """What planning a training gives: `workflows.plan_training.TrainingPlan`."""

    @property
    def estimate(self) -> TrainingEstimate:
        """What it will need."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What the job keeps of it."""
        ...


PlanTraining = Callable[[TrainRequest], PlannedTraining]
Made = TypeVar("Made")


@dataclass(frozen=True)
class ExperimentPlan:
    """An experiment that can be run."""

    request: ExperimentRequest
    num_trials: int
    details: dict[str, Any]  # what the job keeps; see `plan_experiment`

    def to_json(self) -> dict[str, Any]:
        """What the job's `request.json` keeps of it, so that the job depends on nothing that may change."""
        return {**self.details, "num_trials": self.num_trials}

    @property
    def duration_s(self) -> float:
        """Of all trials, one training each, and of the winner's with its seeds and folds, by the estimate of one; 0.0
        of an agent grid, which has none.
        """
        if "estimate" not in self.details:
            return 0.0
        alone_s = float(self.details["estimate"]["duration_s"])
        trials_s = float(self.details["trial_s"]) * math.ceil(self.num_trials / int(self.details["max_parallel"]))
        return min(trials_s, self.request.timeout_s or math.inf) + alone_s


def plan_experiment(
    request: ExperimentRequest,
    workbench: Workbench,
    *,
    plan_training: PlanTraining,
    max_workers: int = 1,
    max_memory_gb: float,
) -> ExperimentPlan:
    """Validates an experiment as far as that goes without data.

    Args:
        request: the parsed body.
        workbench: for the registry.
        plan_training: plans one training, or refuses it; `workflows.plan_training.plan_training` with everything but
            a request.
        max_workers: trials that may run at a time.
        max_memory_gb: of all of them together.

    Raises:
        DataValidationError: something of the base or the space is not usable; the path says what.
        VersionExistsError: the version asked for exists or is being trained.
        InsufficientMemoryError: the largest trial's estimate is over the limit.
    """
    base = request.base
    if isinstance(base, RecordingRequest):
        return _plan_grid(request, base, workbench)
    family = _of_base(lambda: family_for(base.model_type, base.family))
    found = dimensions(request.search_space, base, family.Hyperparameters)
    size = grid_size(found) if request.sampler == "grid" else None
    num_trials = request.num_trials or size or NUM_TRIALS
    first = {each.name: each.ends[0] for each in found}
    planned = _of_base(lambda: plan_training(_merged(base, first)), found)
    single = base.model_copy(update={"cv": None, "seeds": base.seeds[:1]})  # as a trial trains it
    trial_s = _of_base(lambda: plan_training(_merged(single, first)), found).estimate.duration_s
    corners = [
        _Corner(path, change, _at(path, lambda change=change: plan_training(_merged(base, first | change))))  # type: ignore[misc]
        for path, change in variants(found)
    ]
    _check_twins(found, corners)
    memory_gb = _largest_gb(base, found, first, corners, plan_training, max_memory_gb=max_memory_gb)
    details = planned.to_json()
    details["hyperparameters"] = {
        name: value for name, value in details["hyperparameters"].items() if name not in first
    }
    details |= {
        "estimate": planned.estimate.model_copy(update={"memory_gb": memory_gb}).model_dump(),
        "trial_s": trial_s,
        "max_parallel": _num_parallel(memory_gb, max_workers=max_workers, max_memory_gb=max_memory_gb),
        "most_steps": _of_base(lambda: _most_steps(family, base, found)),
        "feature_choices": {
            choice_label(each.change[FEATURES]): _features_of(each.planned)
            for each in corners
            if FEATURES in each.change
        },
        "objective": OBJECTIVES[base.model_type],
    }
    return ExperimentPlan(request, min(num_trials, size or num_trials), details)


@dataclass(frozen=True)
class _Corner:
    """The base's first values with one of them changed, and what planning said of it."""

    path: str
    change: dict[str, Any]
    planned: PlannedTraining


def _plan_grid(request: ExperimentRequest, base: RecordingRequest, workbench: Workbench) -> ExperimentPlan:
    """The recorded version is fixed now; the settings are made once, to see that they can be."""
    if base.end_date <= base.start_date:
        raise DataValidationError.at("body.base.end_date", "`end_date` must be later than `start_date`")
    if base.start_date > utc_now():
        raise DataValidationError.at("body.base.start_date", "no bar is known yet in this range; start in the past")
    card = _recorded_card(base, workbench)
    if card.type in UNRECORDED:
        raise DataValidationError.at(
            "body.base.model_id", f"{card.id} is a model of type {card.type}, which tells an agent no direction"
        )
    for place, symbol in enumerate(base.symbols):
        if symbol not in card.symbols:
            raise DataValidationError.at(
                f"body.base.symbols.{place}", f"{card.id} knows {', '.join(card.symbols)}; name some of them",
                code="unknown_symbol",
            )  # fmt: skip
    check_costs(base.symbols, base.costs, path="body.base.costs")
    choices = {name: each.choices or [] for name, each in request.search_space.items()} or Q_LEARNING_GRID
    settings = grid_settings(choices, fixed=base.hyperparameters)
    if len({setting.model_dump_json() for _, setting in settings}) < len(settings):
        raise DataValidationError.at("body.search_space", "two choices mean the same setting; list each value once")
    recorded = {"model_id": card.id, "version": card.version}
    return ExperimentPlan(request, len(settings), {"recorded": recorded, "objective": GRID_OBJECTIVE})


def _recorded_card(base: RecordingRequest, workbench: Workbench) -> ModelCard:
    """The version that is recorded; raises DataValidationError where there is none."""
    registry = workbench.registry
    try:
        if base.version is None:
            return registry.served_card(base.model_id)
        return registry.card(base.model_id, base.version)
    except ModelNotFoundError as error:
        raise DataValidationError.at("body.base.model_id", error.message, code="unknown_model") from error
    except VersionNotFoundError as error:
        raise DataValidationError.at("body.base.version", error.message, code="unknown_version") from error


def _check_twins(found: Sequence[Dimension], corners: Sequence[_Corner]) -> None:
    """Refuses two choices that the family reads as the same value, such as 1 and 1.0: both would be trained."""
    for each in found:
        if each.kind != "choice" or each.name in (FEATURES, HORIZON):
            continue
        read = [
            corner.planned.to_json()["hyperparameters"][each.name] for corner in corners if each.name in corner.change
        ]
        if len(set(map(choice_label, read))) < len(read):
            raise DataValidationError.at(
                f"body.search_space.{each.name}", "two choices mean the same value; list each value once"
            )


def _merged(base: TrainRequest, params: Mapping[str, Any]) -> TrainRequest:
    """The base with these values; raises DataValidationError where they make no request."""
    try:
        return trial_request(base, params)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, ("body", *first["loc"])))
        message = str(first["msg"]).removeprefix("Value error, ")
        raise DataValidationError.at(path, message, code=str(first["type"])) from error


def _of_base(make: Callable[[], Made], found: Sequence[Dimension] = ()) -> Made:
    """What is made of the base; its errors under the base's path, or that of the dimension that brought the value."""
    try:
        return make()
    except DataValidationError as error:
        varied = {each.name for each in found}
        errors = [{**each, "path": _path(str(each["path"]), varied)} for each in error.details.get("errors", [])]
        raise DataValidationError(error.message, details={**error.details, "errors": errors}) from error


def _path(path: str, varied: set[str]) -> str:
    name = path.rpartition("body.hyperparameters.")[2]
    if path.startswith("body.hyperparameters.") and name in varied:
        return f"body.search_space.{name}"
    top = path.removeprefix("body.").partition(".")[0]
    if top == FEATURES and FEATURES in varied:
        return f"body.search_space.{FEATURES}"
    return f"body.base.{path.removeprefix('body.')}"


def _at(path: str, make: Callable[[], Made]) -> Made:
    """What is made of one value of the space; its errors under that value's path."""
    try:
        return make()
    except DataValidationError as error:
        first = (error.details.get("errors") or [{"message": error.message, "code": "invalid"}])[0]
        raise _unusable(path, str(first["message"]), code=str(first["code"])) from error
    except InsufficientMemoryError as error:
        raise _too_large(path, error) from error


def _unusable(path: str, message: str, *, code: str) -> DataValidationError:
    """As the API words what pydantic finds."""
    return DataValidationError(
        f"{path}: {message}; correct it and send the request again",
        details={"errors": [{"path": path, "message": message, "code": code}]},
    )


def _largest_gb(
    base: TrainRequest,
    found: Sequence[Dimension],
    first: Mapping[str, Any],
    corners: Sequence[_Corner],
    plan_training: PlanTraining,
    *,
    max_memory_gb: float,
) -> float:
    """The memory of the costliest trial: each dimension's costliest value, all together where they go together."""
    together = dict(first)
    for each in found:
        own = [corner for corner in corners if each.name in corner.change]
        together |= max(own, key=lambda corner: corner.planned.estimate.memory_gb).change
    alone = max(corner.planned.estimate.memory_gb for corner in corners)
    try:
        return max(alone, plan_training(_merged(base, together)).estimate.memory_gb)
    except DataValidationError:  # such a trial fails by itself, with the same sentence
        return alone
    except InsufficientMemoryError as error:
        raise _too_large("body.search_space", error) from error


def _too_large(path: str, error: InsufficientMemoryError) -> InsufficientMemoryError:
    estimate = error.details.get("estimate", {})
    return InsufficientMemoryError(
        f"{path}: the largest trial would need about {estimate.get('memory_gb')} GB, over the limit of "
        f"{error.details.get('limit_gb'):g} GB; narrow the space at its costly end, or raise MAX_TRAINING_MEMORY",
        details={"path": path, "estimate": estimate, "limit_gb": error.details.get("limit_gb")},
    )


def _num_parallel(memory_gb: float, *, max_workers: int, max_memory_gb: float) -> int:
    """Trials at a time: as many as workers are allowed and as fit beside the process that leads them."""
    return max(1, min(max_workers, int((max_memory_gb - IDLE_GB) / memory_gb)))


def _most_steps(family: type[AnyFamily], base: TrainRequest, found: Sequence[Dimension]) -> int:
    """Most steps that a trial can report, by which hyperband cuts its brackets."""
    varied = [int(end) for each in found if each.name == "epochs" for end in each.ends]
    plain = getattr(family(base.hyperparameters).hyperparameters, "epochs", 100)
    return max(varied, default=int(plain))


def _features_of(planned: PlannedTraining) -> dict[str, Any]:
    """What the plan of a choice of features says of them."""
    return {name: value for name, value in planned.to_json().items() if name in OF_FEATURES}
