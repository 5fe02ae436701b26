"""`linear`: one linear layer over the window; the bar that recurrent networks often miss on exchange rates."""

from ml_workbench_service.learning.interfaces.hyperparameters import NetworkHyperparameters
from ml_workbench_service.learning.networks.linear_family import LinearFamily


class Linear(LinearFamily[NetworkHyperparameters]):
    """One linear layer over the whole window (Zeng et al., AAAI 2023, arXiv:2205.13504).

    There to be compared with: in published comparisons of forecasters it is seldom beaten by much larger networks.
    Fails where the signal is not additive over bars and features. Cost per window and epoch grows with the lookback.
    """

    name = "linear"
