"""`lstm`: long short-term memory, the default family for time series."""

from ml_workbench_service.learning.networks.recurrent_family import LSTM, LstmHyperparameters, RecurrentFamily


class Lstm(RecurrentFamily[LstmHyperparameters]):
    """Long short-term memory over the window (Hochreiter and Schmidhuber, Neural Computation 9(8), 1997).

    The gated cell keeps what is worth keeping over many bars. On exchange rates it rarely beats a linear model.
    """

    name = "lstm"
    is_default = True
    cell = LSTM
