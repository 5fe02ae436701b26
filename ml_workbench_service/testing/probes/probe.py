"""Synthetic problem of a model type: what its families are given to learn, and how well they did: 0 baseline, 1 all."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.data.windows import Part, Windows
from ml_workbench_service.learning.interfaces.checkpoint import Checkpoint
from ml_workbench_service.learning.interfaces.family import AnyFamily, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Task, task_for
from ml_workbench_service.testing.synthetic import OneThread, Recorder, cut, symbol_rows

PAIRS = ("EUR/USD", "GBP/USD", "USD/JPY")


class Probe(ABC):
    """One model type; registers by being defined.

    Attributes:
        quick: few and small steps, as far as the family has these hyper-parameters.
        injected: the least quality where the signal was injected.
        chance: the largest quality where there is none.
        r2: share of the next bar's variance that the injected signal explains.
    """

    model_type: ClassVar[ModelType]
    quick: ClassVar[dict[str, Any]] = {
        "epochs": 12,
        "batch_size": 64,
        "lookback": 8,
        "learning_rate": 0.02,
        "dropout": 0.0,
        "patience": 4,
    }
    units: ClassVar[int] = 8
    injected: ClassVar[float]
    chance: ClassVar[float]
    r2: ClassVar[float] = 0.3
    known: ClassVar[dict[ModelType, "Probe"]] = {}

    def __init_subclass__(cls) -> None:
        Probe.known[cls.model_type] = cls()

    def family(self, kind: type[AnyFamily], **changes: Any) -> AnyFamily:
        """The family with few and small steps."""
        fields = kind.Hyperparameters.model_fields
        chosen = {name: value for name, value in (self.quick | changes).items() if name in fields}
        return kind({name: self.units for name in fields if name.endswith("_units")} | chosen)

    def windows(self, *tables: Any, num: int = 2000, r2: float | None = None, seed: int = 0) -> Windows:
        """Windows of these tables, or of one pair with an injected signal."""
        return cut(*(tables or [symbol_rows(num=num, r2=self.r2 if r2 is None else r2, seed=seed)]))

    def task(self) -> Task:
        """The type's task, as cheap as it goes."""
        return task_for(self.model_type)

    @abstractmethod
    def problem(self, windows: Windows, *, seed: int = 0, checkpoint: Checkpoint | None = None) -> TrainingProblem:
        """What the family is asked to learn."""

    @abstractmethod
    def quality(
        self, model: Trained, windows: Windows, part: Part = "test", *, length: int | None = None,
        symbols: Sequence[int] | None = None,
    ) -> float:  # fmt: skip
        """How much better than the baseline it is on a part: 0 no better, 1 all there is.

        Args:
            length: rows of the windows asked about, if not the lookback.
            symbols: positions of the symbols asked about, if not all.
        """

    def train(
        self,
        family: AnyFamily,
        windows: Windows,
        *,
        seed: int = 0,
        report: Recorder | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Trained:
        """One training on one thread."""
        problem = self.problem(windows, seed=seed, checkpoint=checkpoint)
        return family.train(problem, accelerator=OneThread(), report=report or Recorder())


def probe_of(kind: type[AnyFamily]) -> Probe:
    """The probe of a family's type."""
    return Probe.known[kind.model_type]
