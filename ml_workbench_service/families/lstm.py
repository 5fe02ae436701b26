"""`lstm`: long short-term memory, the default family for time series."""

from typing import ClassVar

from ml_workbench_service.learning.networks.recurrent_family import RecurrentFamily, RecurrentHyperparameters, Units


class Lstm(RecurrentFamily):
    """Long short-term memory over the window (Hochreiter and Schmidhuber, Neural Computation 9(8), 1997).

    The gated cell keeps what is worth keeping over many bars. On exchange rates it rarely beats a linear model.
    """

    name = "lstm"
    is_default = True
    cell: ClassVar[str] = "LSTM"
    gates: ClassVar[int] = 4
    windows_per_second: ClassVar[float] = 11_000.0

    class Hyperparameters(RecurrentHyperparameters):
        """The recurrent families' own, and `lstm_units`."""

        lstm_units: int = Units
