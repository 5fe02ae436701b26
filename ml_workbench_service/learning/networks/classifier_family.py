"""`Classifier`: what turns a family of networks into one that tells classes apart. Free of torch at import.

class LstmClassifier(Classifier, RecurrentFamily): ...     the mix-in first, so that its head wins
"""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.calibration.class_probabilities import ClassWeights
from ml_workbench_service.learning.interfaces.family import TrainingProblem

if TYPE_CHECKING:
    from ml_workbench_service.learning.networks.heads import Head

_AS_THEY_COME: ClassWeights = "none"
ClassWeightsChoice = Field(
    default=_AS_THEY_COME,
    description="What a row counts in the loss: `none` as much as any other, `balanced` the more the rarer its class.",
)
"""`none` unless asked for: probabilities are calibrated and the most probable class is stated, so that weights no
longer decide what is said; they only let a rare class be learnt from more, at the price of its few rows' noise."""


class Classifier:
    """One logit a class in place of forecasts; probabilities come from the decoder's calibration."""

    model_type = ModelType.CLASSIFICATION
    hyperparameters: Any

    def head(self, problem: TrainingProblem) -> "Head":
        """Cross-entropy over the target's classes."""
        from ml_workbench_service.learning.networks.heads import class_head

        return class_head(problem, self.hyperparameters.class_weights)
