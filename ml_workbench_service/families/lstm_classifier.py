"""`lstm_classifier`: classification by long short-term memory, the default family for classification."""

from ml_workbench_service.learning.networks.network_family import Classifier, ClassWeighting
from ml_workbench_service.learning.networks.recurrent_family import LSTM, LstmHyperparameters, RecurrentFamily


class Hyperparameters(LstmHyperparameters, ClassWeighting):
    """Hyper-parameters of `lstm`, and `class_weights`."""


class LstmClassifier(Classifier, RecurrentFamily[Hyperparameters]):
    """Long short-term memory over the window, with a probability for each class (Hochreiter and Schmidhuber, 1997).

    Probabilities are calibrated by a temperature (Guo et al., ICML 2017). Fails where classes change their frequency:
    then it is sure of itself for reasons that have passed. Without a signal it answers the training frequencies.
    """

    name = "lstm_classifier"
    is_default = True
    cell = LSTM
