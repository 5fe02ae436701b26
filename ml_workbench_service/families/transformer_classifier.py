"""`transformer_classifier`: classification by a causal transformer encoder."""

from ml_workbench_service.learning.networks.network_family import Classifier, ClassWeighting
from ml_workbench_service.learning.networks.transformer_family import TransformerFamily, TransformerHyperparameters


class Hyperparameters(TransformerHyperparameters, ClassWeighting):
    """Hyper-parameters of `transformer`, and `class_weights`."""


class TransformerClassifier(Classifier, TransformerFamily[Hyperparameters]):
    """Attention over the window, with a probability for each class (Vaswani et al., NeurIPS 2017, arXiv:1706.03762).

    Every bar is weighed against the newest one. Fails where data are few. Probabilities are calibrated by a temperature
    (Guo et al., ICML 2017); without a signal they are the training frequencies.
    """

    name = "transformer_classifier"
