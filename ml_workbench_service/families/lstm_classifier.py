"""`lstm_classifier`: long short-term memory that tells classes apart, the default family for classification."""

from typing import ClassVar

from ml_workbench_service.learning.calibration.class_probabilities import ClassWeights
from ml_workbench_service.learning.networks.classifier_family import Classifier, ClassWeightsChoice
from ml_workbench_service.learning.networks.recurrent_family import RecurrentFamily, RecurrentHyperparameters, Units


class LstmClassifier(Classifier, RecurrentFamily):
    """Long short-term memory over the window, with a probability for each class (Hochreiter and Schmidhuber, 1997).

    Probabilities are calibrated by a temperature (Guo et al., ICML 2017). Fails where classes change their frequency:
    then it is sure of itself for reasons that have passed. Without a signal it answers the training frequencies.
    """

    name = "lstm_classifier"
    is_default = True
    cell: ClassVar[str] = "LSTM"
    gates: ClassVar[int] = 4
    windows_per_second: ClassVar[float] = 11_000.0

    class Hyperparameters(RecurrentHyperparameters):
        """The recurrent families' own, `lstm_units`, and `class_weights`."""

        lstm_units: int = Units
        class_weights: ClassWeights = ClassWeightsChoice
