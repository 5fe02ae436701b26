"""`gru`: gated recurrent units, lighter than an LSTM by a quarter of its weights."""

from typing import ClassVar

from ml_workbench_service.learning.recurrent_family import RecurrentFamily, RecurrentHyperparameters, Units


class Gru(RecurrentFamily):
    """Gated recurrent units over the window (Cho et al., EMNLP 2014, arXiv:1406.1078).

    Two gates instead of three and no separate cell; often as good as an LSTM on short windows.
    """

    name = "gru"
    cell: ClassVar[str] = "GRU"
    gates: ClassVar[int] = 3
    windows_per_second: ClassVar[float] = 11_000.0

    class Hyperparameters(RecurrentHyperparameters):
        """The recurrent families' own, and `gru_units`."""

        gru_units: int = Units
