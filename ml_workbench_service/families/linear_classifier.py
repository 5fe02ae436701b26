"""`linear_classifier`: logistic regression on the window; what every other classifier is measured against."""

from ml_workbench_service.learning.interfaces.hyperparameters import NetworkHyperparameters
from ml_workbench_service.learning.networks.linear_family import LinearFamily
from ml_workbench_service.learning.networks.network_family import Classifier, ClassWeighting


class Hyperparameters(NetworkHyperparameters, ClassWeighting):
    """Hyper-parameters of `linear`, and `class_weights`."""


class LinearClassifier(Classifier, LinearFamily[Hyperparameters]):
    """Multinomial logistic regression on the whole window (Cox, Journal of the Royal Statistical Society B 20, 1958).

    There to be compared with: whoever beats it has found more than a weighted sum. Trained by gradient descent with
    early stopping, probabilities calibrated by a temperature (Guo et al., ICML 2017); without a signal they are the
    training frequencies. Fails where the signal is not additive over bars and features.
    """

    name = "linear_classifier"
