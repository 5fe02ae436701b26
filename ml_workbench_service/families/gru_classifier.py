"""`gru_classifier`: gated recurrent units that tell classes apart."""

from typing import ClassVar

from ml_workbench_service.learning.class_calibration import ClassWeights
from ml_workbench_service.learning.classifier import Classifier, ClassWeightsChoice
from ml_workbench_service.learning.recurrent_family import RecurrentFamily, RecurrentHyperparameters, Units


class GruClassifier(Classifier, RecurrentFamily):
    """Gated recurrent units over the window, with a probability for each class (Cho et al., EMNLP 2014).

    Two gates instead of three and no separate cell; often as good as an LSTM on short windows. Probabilities are
    calibrated by a temperature (Guo et al., ICML 2017); without a signal they are the training frequencies.
    """

    name = "gru_classifier"
    cell: ClassVar[str] = "GRU"
    gates: ClassVar[int] = 3
    windows_per_second: ClassVar[float] = 11_000.0

    class Hyperparameters(RecurrentHyperparameters):
        """The recurrent families' own, `gru_units`, and `class_weights`."""

        gru_units: int = Units
        class_weights: ClassWeights = ClassWeightsChoice
