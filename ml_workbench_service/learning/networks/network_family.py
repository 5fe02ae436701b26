"""`NetworkFamily`: families of torch networks over windows; one adds its hyper-parameters and its architecture.

    class LstmClassifier(Classifier, RecurrentFamily[...]): ...     the mix-in first, so that its head wins

Free of torch at import; training loads it.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from pydantic import Field

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.calibration.class_probabilities import ClassWeights
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import MIN_WINDOW, NetworkHyperparameters

if TYPE_CHECKING:
    from ml_workbench_service.learning.networks.heads import Head
    from ml_workbench_service.learning.networks.windowed import Architecture

N = TypeVar("N", bound=NetworkHyperparameters, covariant=True)


class NetworkFamily(Family[N], abstract=True):
    """Network over windows, trained by gradient descent with early stopping; forecasts unless a subclass says else."""

    model_type = ModelType.TIME_SERIES
    min_window: ClassVar[int] = MIN_WINDOW
    weighs_samples: ClassVar[bool] = True

    @abstractmethod
    def architecture(self, problem: TrainingProblem) -> "Architecture":
        """The network for this problem's features and outputs."""

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Adam with gradient clipping, early stopping on the validation part, the best epoch's weights."""
        from ml_workbench_service.learning.networks.windowed import train

        return train(self.architecture(problem), problem, self.hyperparameters, accelerator=accelerator, report=report)

    def head(self, problem: TrainingProblem) -> "Head":
        """What the last layer is for: forecasts, unless a subclass learns something else."""
        from ml_workbench_service.learning.networks.heads import head_for

        return head_for(problem)


class ClassWeighting(Contract):
    """Class weights of the loss, for the hyper-parameters of a classifier.

    `none` unless asked for: probabilities are calibrated and the most probable class is stated, so that weights no
    longer decide what is said; they only let a rare class be learnt from more, at the price of its few rows' noise.
    """

    class_weights: ClassWeights = Field(
        default="none",
        description="What a row counts in the loss: `none` as much as any other, `balanced` the more the rarer its "
        "class.",
    )


class _Weighted(Protocol):
    @property
    def hyperparameters(self) -> ClassWeighting: ...


class Classifier:
    """Classification mix-in: one logit a class in place of forecasts; probabilities come from calibration."""

    model_type = ModelType.CLASSIFICATION

    def head(self: _Weighted, problem: TrainingProblem) -> "Head":
        """Cross-entropy over the target's classes."""
        from ml_workbench_service.learning.networks.heads import class_head

        return class_head(problem, self.hyperparameters.class_weights)
