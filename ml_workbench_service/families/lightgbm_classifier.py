"""`lightgbm_classifier`: classification by gradient-boosted trees."""

from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.calibration.class_probabilities import ClassWeights
from ml_workbench_service.learning.networks.boosted_trees.family import BoostedTreesFamily
from ml_workbench_service.learning.networks.boosted_trees.hyperparameters import BoostedTreesHyperparameters
from ml_workbench_service.learning.networks.network_family import ClassWeighting


class Hyperparameters(BoostedTreesHyperparameters, ClassWeighting):
    """Hyper-parameters of boosted trees, and `class_weights`."""

    @property
    def class_weighting(self) -> ClassWeights:
        """`class_weights`."""
        return self.class_weights


class LightGbmClassifier(BoostedTreesFamily[Hyperparameters]):
    """Gradient-boosted trees by LightGBM, with a probability for each class (Ke et al., NeurIPS 2017).

    Each round grows a tree a class on the softmax's gradients. Probabilities are calibrated by a temperature (Guo et
    al., ICML 2017); without a signal they are the training frequencies. Fails on classes of a few dozen windows. Cost
    per round grows with windows x columns x classes.
    """

    name = "lightgbm_classifier"
    model_type = ModelType.CLASSIFICATION
