"""`PolicyFamily`: what the families of reinforcement learning share: series, units of reward. Free of torch.

A policy maps a window and the position held to three numbers, one an action: short, flat, long. It is learnt by trading
in `reinforcement/environment.py`, which pays net log returns; a step's reward is that return in units of the symbol's
typical bar, so that every symbol is learnt in its own unit. The best policy is the one that earned most, net, in one
walk over the validation part.

Legend: R rows, N decisions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.data.windows import Part
from ml_workbench_service.learning.interfaces.family import TORCH_BYTES, Family, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import MIN_WINDOW
from ml_workbench_service.market.trading_series import TradingSeries, build_trading_series
from ml_workbench_service.reinforcement.hyperparameters import WALK_CHUNK, PolicyHyperparameters

SMALLEST_UNIT = 1e-9
"""A symbol whose bars move less than this has no unit of its own."""
NEXT_BORDER: Mapping[Part, Part] = {"train": "validation", "validation": "calibration", "calibration": "test"}


POLICY_BYTES = 110_000_000
"""Resident pages of numba, gymnasium and stable-baselines3, and of the kernels that numba compiles; measured."""
WALK_COPIES = 6
"""Of their windows: gathered, with the position, and as torch or onnxruntime takes and holds them."""


class Budget(NamedTuple):
    """What a sanity run may use: rows of the training part, and epochs."""

    rows: int
    epochs: int


def walk_bytes(lookback: int, num_features: int) -> int:
    """Of the windows that a policy is asked about together in a walk, with a position each."""
    return WALK_COPIES * WALK_CHUNK * (lookback * num_features + 1) * 4


P = TypeVar("P", bound=PolicyHyperparameters, covariant=True)


class PolicyFamily(Family[P], abstract=True):
    """Learns when to be short, flat or long, paid net of spread, commission and swap.

    Rows that a short window lacks count as average; a level feature needs some rows for its mean.

    Attributes:
        budget: of each training of the sanity runs.
        outputs: names of the three outputs.
    """

    model_type = ModelType.REINFORCEMENT_LEARNING
    library_bytes = TORCH_BYTES + POLICY_BYTES
    min_window: ClassVar[int] = MIN_WINDOW
    budget: ClassVar[Budget]
    outputs: ClassVar[tuple[str, str, str]] = ("q_short", "q_flat", "q_long")

    def with_budget(self, *, epochs: int) -> Self:
        """The same family and hyper-parameters, but at most so many epochs; for the sanity runs."""
        plain = self.hyperparameters.model_dump()
        return type(self)(plain | {"epochs": min(self.hyperparameters.epochs, epochs)})


AnyPolicyFamily = PolicyFamily[PolicyHyperparameters]


@dataclass(frozen=True)
class Market:
    """What a policy trades on.

    Attributes:
        series: prices, costs and scaled features.
        train, validation: decision rows that can be paid without a look over the part's border, ascending.
        units_R: one over the typical move of a bar, so that a reward times it is around one.
    """

    series: TradingSeries
    train: Ints
    validation: Ints
    units_R: Floats

    @classmethod
    def of(cls, problem: TrainingProblem) -> "Market":
        """Raises DataValidationError where no row of a part can be paid."""
        series = series_of(problem)
        train, validation = (decision_rows(series, problem, part) for part in ("train", "validation"))
        return cls(series, train, validation, _units(series, train))


@dataclass
class Standing:
    """How far a training is, and the best epoch so far: the one whose walk over the validation part earned most.

    Attributes:
        kept: that epoch's weights.
    """

    kept: dict[str, np.ndarray] = field(default_factory=dict)
    best: float = float("-inf")
    best_epoch: int = 0
    epoch: int = 0

    def end_epoch(self, earned: float, weights: dict[str, np.ndarray]) -> None:
        """Counts an epoch and keeps its weights where no earlier one earned as much."""
        self.epoch += 1
        if earned > self.best:
            self.best, self.best_epoch, self.kept = earned, self.epoch, weights

    def counts(self) -> dict[str, Any]:
        """What a checkpoint says of it beside the weights."""
        return {"best": self.best, "best_epoch": self.best_epoch, "epoch": self.epoch}

    @classmethod
    def restored(cls, kept: dict[str, np.ndarray], counts: Mapping[str, Any]) -> Self:
        """From a checkpoint."""
        return cls(kept, float(counts["best"]), int(counts["best_epoch"]), int(counts["epoch"]))


def series_of(problem: TrainingProblem) -> TradingSeries:
    """The windows' rows with prices and costs; the bars' own spread wins where they have one."""
    return build_trading_series(problem.windows, costs=problem.costs, fill=problem.fill)


def decision_rows(series: TradingSeries, problem: TrainingProblem, part: Part) -> Ints:
    """A part's rows whose decision is settled inside the part, ascending.

    Raises:
        DataValidationError: there is none.
    """
    windows = problem.windows
    border = NEXT_BORDER.get(part)
    until_ms = None if border is None else windows.borders_ms[border]
    rows = series.payable(np.sort(windows.decisions[part]), until_ms=until_ms)
    if not len(rows):
        raise DataValidationError.at(
            "body.start_date", f"no decision of the {part} part can be settled inside it; ask for a longer range"
        )
    return rows


def _units(series: TradingSeries, rows: Ints) -> Floats:
    """One over the root mean square move of each symbol's bars in these rows."""
    entries = rows + series.delay
    units_S = np.ones(len(series.symbols))
    for number in range(len(series.symbols)):
        moves = series.move_R[entries[series.symbol_R[rows] == number]]
        size = float(np.sqrt(np.mean(moves**2))) if len(moves) else 0.0
        units_S[number] = 1.0 / size if size > SMALLEST_UNIT else 1.0
    units_R: Floats = units_S[series.symbol_R]
    return units_R
