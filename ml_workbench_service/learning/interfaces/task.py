"""`Task`: what a model type means: which targets it takes, how its labels are made, how its product is judged.

One class a model type, in `training/tasks/`; a family belongs to the task of its `model_type`. Free of torch and onnx
at import: the API checks requests with it.

Legend: N windows, K outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.evaluation import Evaluation, PositionTrial
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import FeatureStore, Floats, Floats32, Ints
from ml_workbench_service.contracts.models import Quantization
from ml_workbench_service.contracts.training import ModelType, Target, TrainRequest
from ml_workbench_service.learning.data.windows import SCORING_ROWS, Windows
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.learning.interfaces.family import AnyFamily, Trained, TrainingProblem, families_of, family_for
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.market.features.expressions.nodes import Expression


@dataclass(frozen=True)
class SizingChoice:
    """The position rules that were tried on the calibration part, in the request's order.

    Attributes:
        tried: what each came to.
        daily: and the net log return of each FX day.
        chosen: the place of the one that reached the test part.
    """

    tried: tuple[PositionTrial, ...]
    daily: tuple[Mapping[str, float], ...]
    chosen: int


@dataclass(frozen=True)
class Product:
    """What a training publishes: how it answers, how well, and what serving needs beside the network.

    Attributes:
        recipe: joins `recipe.json`.
        derivation: the features that a prediction reads, where they are not the training's own.
        findings: join the card's.
        warnings: join the card's.
        differentials: what the evaluation's comparisons are made of.
        sized: how its positions were chosen; None where no rule was asked for.
    """

    outputs: tuple[str, ...]
    quantization: Quantization
    evaluation: Evaluation
    recipe: dict[str, Any]
    derivation: Derivation | None = None
    findings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    differentials: tuple[Differentials, ...] = ()
    sized: SizingChoice | None = None

    @property
    def precision(self) -> Literal["int8", "fp32"]:
        """What serves single predictions."""
        return "int8" if self.quantization.accepted else "fp32"


class Task(ABC):
    """One model type; registers by being defined (what several types share says `registers=False`, the task of requests
    with `meta` says `follows=True`).

    Attributes:
        needs_features: whether a request must name features.
        has_verdict: whether its models bet on anything, so that trials and verdicts have a meaning.
        averages_seeds: whether several seeds' networks can answer with their mean.
        learns_apart: whether it can learn from stretches of time that lie apart.
    """

    model_type: ClassVar[ModelType]
    needs_features: ClassVar[bool] = True
    has_verdict: ClassVar[bool] = True
    averages_seeds: ClassVar[bool] = True
    learns_apart: ClassVar[bool] = True
    known: ClassVar[dict[ModelType, type["Task"]]] = {}
    following: ClassVar[list[type["Task"]]] = []

    def __init_subclass__(cls, *, registers: bool = True, follows: bool = False) -> None:
        super().__init_subclass__()
        if follows:
            Task.following.append(cls)
        if not registers or follows:
            return
        if cls.model_type in Task.known:
            raise TypeError(f"two tasks are made for {cls.model_type}")
        Task.known[cls.model_type] = cls

    def check(self, request: TrainRequest) -> tuple[Target, ...]:
        """The request's targets, once everything that belongs to this type is there and nothing else is.

        Raises:
            DataValidationError: naming the field and what to send instead.
        """
        if not request.features and self.needs_features:
            raise DataValidationError.at(
                "body.features", f"{self.model_type.value} needs features; GET /api/v1/features lists them",
                code="missing",
            )  # fmt: skip
        if request.position is not None and self.model_type is not ModelType.TIME_SERIES:
            raise DataValidationError.at(
                "body.position",
                f"`position` sizes the forecast of a time_series; {self.model_type.value} has none: leave it out",
            )
        if request.quantiles is not None and self.model_type is not ModelType.TIME_SERIES:
            raise DataValidationError.at(
                "body.quantiles", f"quantiles belong to time_series, not to {self.model_type.value}; leave them out"
            )
        self._check_meta(request)
        try:
            targets = request.parsed_targets()
        except ValueError as error:
            raise DataValidationError.at("body.target", str(error)) from error
        options = request.label
        has_width = options is not None and (options.k != 1.0 or options.model_fields_set == {"k"})
        if has_width and not any(each.measure == "triple_barrier" for each in targets):
            raise DataValidationError.at("body.label", "`k` belongs to the target triple_barrier; leave it out")
        self.check_targets(targets)
        self._check_weights(request)
        return targets

    def _check_meta(self, request: TrainRequest) -> None:
        """Raises DataValidationError where another version's side is followed without one, or by another type."""
        if request.meta is None and any(name.startswith("follow_") for name in request.target_names):
            raise DataValidationError.at(
                "body.target", "`follow` learns when another version's side pays; name that version in `meta.primary`"
            )
        if request.meta is not None and self.model_type is not ModelType.CLASSIFICATION:
            raise DataValidationError.at(
                "body.meta",
                f"whether to follow a primary is a class, which {self.model_type.value} does not learn; send "
                "model_type classification, or leave `meta` out",
            )

    def _check_weights(self, request: TrainRequest) -> None:
        """Raises DataValidationError where rows are to count differently and the family's loss cannot weigh them."""
        family = family_for(self.model_type, request.family)
        if request.sample_weights == "none" or family.weighs_samples:
            return
        others = [each.name for each in families_of(self.model_type) if each.weighs_samples]
        hint = f"send family {' or '.join(others)}, or leave it out" if others else "leave it out"
        raise DataValidationError.at(
            "body.sample_weights", f"{family.name} has no loss that counts one row more than another; {hint}"
        )

    def candidates(self, request: TrainRequest, family: AnyFamily, store: FeatureStore) -> tuple[Expression, ...]:
        """What a feature search chooses from; the other types search nothing."""
        return ()

    @abstractmethod
    def check_targets(self, targets: Sequence[Target]) -> None:
        """Raises DataValidationError where this type does not learn these targets."""

    def positions(self, predict: "Predict", ends: Ints, problem: TrainingProblem) -> Ints | None:
        """The signal at these windows: -1, 0 or 1 each, 0 where no decision can be settled; None: nothing is traded.

        `predict` is the serving network's, or `Predict(trained, None)`.
        """
        return None

    @abstractmethod
    def score(self, trained: Trained, ends: Ints, problem: TrainingProblem) -> float:
        """One number about these windows, more is better: what trials are ranked by, on the validation part.

        `Predict(trained, None)` asks the network.
        """

    @abstractmethod
    def package(
        self, trained: Trained, draft: Path, problem: TrainingProblem, *, family: AnyFamily, is_simulated: bool,
        report: Report,
    ) -> Product:  # fmt: skip
        """Writes what is published into the draft folder and measures it on the test part."""


class Predict:
    """The network that serves single requests, asked about many windows: int8 one at a time, float32 in batches."""

    def __init__(self, float32: Any, int8: Any | None) -> None:
        self._float32, self._int8 = float32, int8

    def __call__(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> Floats:
        """Outputs (N, K) in float64, in units of the label scale."""
        network, size = (
            (self._float32, max(1, SCORING_ROWS // rows_NTF.shape[1])) if self._int8 is None else (self._int8, 1)
        )
        parts = [
            network.predict(
                rows_NTF[begin : begin + size], None if positions_N is None else positions_N[begin : begin + size]
            ).outputs_NK
            for begin in range(0, len(rows_NTF), size)
        ]
        return np.concatenate(parts).astype(np.float64)

    def over(self, windows: Windows, ends: Ints) -> Floats:
        """Outputs (N, K) for the windows that end there, gathered a batch at a time."""
        return np.concatenate([self(windows.gather(batch)) for batch in windows.batches(ends)])


def task_for(model_type: ModelType) -> Task:
    """The type's task; raises DataValidationError where none is installed."""
    kind = Task.known.get(model_type)
    if kind is None:
        raise DataValidationError.at("body.model_type", f"{model_type.value} is not installed here")
    return kind()


def task_of(request: TrainRequest) -> Task:
    """The request's task: its type's, or the one that follows a primary; raises as `task_for`."""
    if request.meta is not None and request.model_type is ModelType.CLASSIFICATION and Task.following:
        return Task.following[0]()
    return task_for(request.model_type)
