"""`gru_classifier`: classification by gated recurrent units."""

from ml_workbench_service.learning.networks.network_family import Classifier, ClassWeighting
from ml_workbench_service.learning.networks.recurrent_family import GRU, GruHyperparameters, RecurrentFamily


class Hyperparameters(GruHyperparameters, ClassWeighting):
    """Hyper-parameters of `gru`, and `class_weights`."""


class GruClassifier(Classifier, RecurrentFamily[Hyperparameters]):
    """Gated recurrent units over the window, with a probability for each class (Cho et al., EMNLP 2014).

    Two gates instead of three and no separate cell; often as good as an LSTM on short windows. Probabilities are
    calibrated by a temperature (Guo et al., ICML 2017); without a signal they are the training frequencies.
    """

    name = "gru_classifier"
    cell = GRU
