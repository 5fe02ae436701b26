"""`Family`: a model family, registered by being defined. Free of torch: the API reads schemas from here.

ADD A MODEL FAMILY = ADD ONE FILE in `families/`: hyper-parameters, and a class that is generic over them:

    class LinearHyperparameters(Contract): ...          every field with a default, bounds and a sentence
    class Linear(Family[LinearHyperparameters]): ...    `name`, `model_type`, `min_window`, `train`, two estimates
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin

import numpy as np
from pydantic import ValidationError

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Costs, FeatureTable, FillRule
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.contracts.sizing import PositionRule
from ml_workbench_service.contracts.strict_numbers import loose_numbers
from ml_workbench_service.contracts.training import ModelType, Target, TrainRequest
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.primary import Primary
from ml_workbench_service.market.features.expressions.nodes import Expression
from ml_workbench_service.market.regimes import RegimeRule
from ml_workbench_service.market.seasonal_volatility import SeasonalProfile

TORCH_BYTES = 275_000_000
"""Resident pages of torch's CPU build, and of the threads' and allocator's pools, after a training; measured."""


@dataclass(frozen=True)
class TrainingProblem:
    """What a training is about: the data, what is to be learnt from them, and everything that may change the outcome.

    Attributes:
        windows: rows, labels and parts.
        targets: what is forecast; empty where nothing is (anomalies, reinforcement learning).
        seed: decides every random number.
        quantiles: the quantile outputs of a time series, ascending; empty: point forecasts.
        costs: resolved trading costs of each symbol.
        fill: when a signal is filled.
        tables: what was fetched, by symbol, in the windows' order of rows.
        candidates: what a feature search chooses from; nothing else has any.
        regimes: each symbol's fitted rule, where a market regime is among the targets.
        profiles: each symbol's seasonal profile, fitted on the training part; none for daily bars.
        model_id: what the product will be called.
        version: and its version.
        checkpoint: where a training leaves what it needs to go on after its process was killed; None: nowhere.
        position_rules: what a forecast's position may be decided by; empty: the sign after costs.
        note_rules: takes what each rule earned on the calibration part, day by day, before the test part is read; None:
            nobody counts them.
        primary: of meta-labelling, the version whose side is followed or skipped.
        num_evaluations: test-set evaluations of parts that overlap this one, this time included; they deflate figures.
    """

    windows: Windows
    targets: tuple[Target, ...]
    seed: int = 0
    quantiles: tuple[float, ...] = ()
    costs: Mapping[str, Costs] = field(default_factory=dict)
    fill: FillRule = "next_open"
    tables: tuple[FeatureTable, ...] = ()
    candidates: tuple[Expression, ...] = ()
    regimes: Mapping[str, RegimeRule] = field(default_factory=dict)
    profiles: Mapping[str, SeasonalProfile] = field(default_factory=dict)
    model_id: str = ""
    version: str = ""
    checkpoint: Checkpoint | None = None
    position_rules: tuple[PositionRule, ...] = ()
    note_rules: Callable[[Sequence[Mapping[str, float]]], None] | None = None
    primary: Primary | None = None
    num_evaluations: int = 1


@dataclass(frozen=True)
class Trained:
    """What a family hands over: plain arrays, a description, an ONNX graph, and its own answers to check it against.

    Attributes:
        outputs: names of the network's outputs.
        weights: plain arrays by name.
        network: `network.json`: kind, sizes; enough to rebuild it with the weights.
        graph: makes the onnx.ModelProto: `rows` (N, T, F) → `outputs` (N, K), `last_rows` (N, F). A policy's graph
            has a second input `positions` (N, 1).
        predict: the network's own answers to scaled rows and positions held, to compare the graph with.
        epochs_run: epochs, or whatever the family counts its passes in.
        best_epoch: the one whose weights were kept.
        warnings: for the card.
        findings: what else the training found out, for its task to put onto the card.
        can_quantize: whether int8 is worth trying: there are matrices in the graph.
        members: the trainings of each seed, whose mean this is (`learning.fitting.ensemble`); empty where there was
            one.
    """

    outputs: tuple[str, ...]
    weights: Mapping[str, np.ndarray]
    network: Mapping[str, Any]
    graph: Callable[[], Any]
    predict: Callable[..., RawPrediction]
    epochs_run: int
    best_epoch: int
    warnings: tuple[str, ...] = ()
    findings: Mapping[str, Any] = field(default_factory=dict)
    can_quantize: bool = True
    members: tuple["Trained", ...] = ()


H = TypeVar("H", bound=Contract, covariant=True)


class Family(ABC, Generic[H]):
    """Model family: one way of learning, generic over its hyper-parameters.

    Attributes:
        name: how requests call it.
        model_type: the type it belongs to.
        is_default: whether a request of this type without `family` means this one.
        library_bytes: what its libraries hold once it has trained, beyond those that every worker loads; torch's,
            unless it says otherwise.
        min_window: fewest rows a prediction needs; shorter than `lookback` where the family trains for it.
        weighs_samples: whether `train` heeds `windows.weights_R`, so that rows may count differently.
        explains_answers: whether a single answer can be taken apart by feature (`?explain=true`).
        Hyperparameters: the type argument.
    """

    name: ClassVar[str]
    model_type: ClassVar[ModelType]
    is_default: ClassVar[bool] = False
    min_window: ClassVar[int]
    weighs_samples: ClassVar[bool] = False
    explains_answers: ClassVar[bool] = False
    library_bytes: ClassVar[int] = TORCH_BYTES
    Hyperparameters: ClassVar[type[Contract]]
    known: ClassVar[dict[str, type["Family[Contract]"]]] = {}

    def __init_subclass__(cls, abstract: bool = False) -> None:
        super().__init_subclass__()
        argument = _type_argument(cls)
        if argument is not None:
            if cls.__dict__.get("Hyperparameters", argument) is not argument:
                raise TypeError(f"family {cls.__name__}: `Hyperparameters` is its type argument; leave it out")
            cls.Hyperparameters = argument
        if not abstract:
            cls._register()

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        """Validates the hyper-parameters; raises DataValidationError naming the key and the nearest known one."""
        self.hyperparameters: H = cast(H, self._validated(hyperparameters))

    @property
    def lookback(self) -> int:
        """Rows of a whole window; a feature set's values stand in one row."""
        return int(getattr(self.hyperparameters, "lookback", 1))

    def check_features(self, num_features: int) -> None:
        """Raises DataValidationError where this family cannot learn from so many features."""

    def check_request(self, request: TrainRequest, features: Sequence[str]) -> None:
        """Raises DataValidationError where the hyper-parameters do not fit these features, or what is asked for."""

    @abstractmethod
    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Learns from the training and validation parts alone, reporting and looking for a cancellation as it goes."""

    @abstractmethod
    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """What `train`, or the judging of its network, holds at most beyond the libraries; see 0060 for its terms.

        Args:
            num_rows: of all symbols.
            num_features: columns that the network reads.
        """

    @abstractmethod
    def seconds(self, num_windows: int) -> float:
        """A rough estimate of how long `train` takes on two cores."""

    @classmethod
    def _register(cls) -> None:
        """Raises TypeError where something is missing, so that an ill-formed family fails at import."""
        if not hasattr(cls, "Hyperparameters"):
            raise TypeError(f"family {cls.__name__} needs its Hyperparameters as a type argument: `Family[...]`")
        for attribute in ("name", "model_type", "min_window"):
            if not hasattr(cls, attribute):
                raise TypeError(f"family {cls.__name__} needs a class attribute `{attribute}`")
        if not cls.__doc__:
            raise TypeError(f"family {cls.__name__} needs a docstring; GET /model-types shows its first line")
        if cls.name in Family.known:
            raise TypeError(f"two families are called {cls.name}")
        if cls.is_default and any(each.is_default for each in families_of(cls.model_type)):
            raise TypeError(f"family {cls.name}: {cls.model_type.value} has a default already; leave `is_default` out")
        fields = cls.Hyperparameters.model_fields
        bare = [name for name, each in fields.items() if not each.description or each.is_required()]
        if bare:
            raise TypeError(f"family {cls.name}: hyper-parameters {bare} need a default and a sentence")
        if "lookback" not in fields and cls.model_type is not ModelType.FEATURE_ENGINEERING:
            raise TypeError(f"family {cls.name}: hyper-parameters need `lookback`")
        Family.known[cls.name] = cls

    def _validated(self, hyperparameters: Mapping[str, Any]) -> Contract:
        loose = [
            {"path": f"body.hyperparameters.{place}", "message": message, "code": code}
            for place, code, message in loose_numbers(self.Hyperparameters, hyperparameters)
        ]
        if loose:
            raise self._not_usable(loose)
        try:
            return self.Hyperparameters(**hyperparameters)
        except ValidationError as error:
            raise self._not_usable([self._explained(each) for each in error.errors()]) from error

    def _not_usable(self, errors: list[dict[str, str]]) -> DataValidationError:
        return DataValidationError(
            f"hyperparameters of family {self.name} are not usable; GET /api/v1/model-types lists them",
            details={"errors": errors},
        )

    def _explained(self, error: Any) -> dict[str, str]:
        path = ".".join(map(str, error["loc"]))
        message = str(error["msg"])
        if error["type"] == "extra_forbidden":
            names = list(self.Hyperparameters.model_fields)
            near = close_names(path, names, n=1, cutoff=0.5)
            message = f"family {self.name} has no hyper-parameter of this name; " + (
                f"did you mean {near[0]}?" if near else f"it has {', '.join(names)}"
            )
        return {"path": f"body.hyperparameters.{path}", "message": message, "code": error["type"]}


AnyFamily = Family[Contract]
"""For whoever asks any family alike."""


def _type_argument(kind: type[AnyFamily]) -> type[Contract] | None:
    """The hyper-parameters that a class names between brackets; None where it is generic itself or names none."""
    for base in kind.__dict__.get("__orig_bases__", ()):
        origin, arguments = get_origin(base), get_args(base)
        if isinstance(origin, type) and issubclass(origin, Family) and isinstance(arguments[0], type):
            return arguments[0]
    return None


def families_of(model_type: ModelType) -> list[type[AnyFamily]]:
    """The families of a type, the default first."""
    return sorted(
        (kind for kind in Family.known.values() if kind.model_type is model_type),
        key=lambda kind: (not kind.is_default, kind.name),
    )


def family_for(model_type: ModelType, name: str | None) -> type[AnyFamily]:
    """The named family, or the type's default; raises DataValidationError naming the known and the nearest."""
    candidates = families_of(model_type)
    if not candidates:
        served = ", ".join(sorted({kind.model_type.value for kind in Family.known.values()}))
        raise DataValidationError.at(
            "body.model_type", f"no family of type {model_type.value} is installed; installed types: {served}"
        )
    if name is None:
        return candidates[0]
    for kind in candidates:
        if kind.name == name:
            return kind
    names = [kind.name for kind in candidates]
    near = close_names(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    raise DataValidationError.at("body.family", f"no family of this name learns {model_type.value}; {hint}")
