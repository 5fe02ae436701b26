"""`gru`: gated recurrent units, lighter than an LSTM by a quarter of its weights."""

from ml_workbench_service.learning.networks.recurrent_family import GRU, GruHyperparameters, RecurrentFamily


class Gru(RecurrentFamily[GruHyperparameters]):
    """Gated recurrent units over the window (Cho et al., EMNLP 2014, arXiv:1406.1078).

    Two gates instead of three and no separate cell; often as good as an LSTM on short windows.
    """

    name = "gru"
    cell = GRU
