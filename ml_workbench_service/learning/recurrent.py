"""Recurrent networks in torch: the module, and its way from windows to `Trained`.

Legend: N windows, T rows, F features, H units, K outputs.
"""

from torch import Tensor, nn

from ml_workbench_service.learning.heads import Head
from ml_workbench_service.learning.windowed import WindowedNetwork

KERNEL_SIZES = {"LSTM": 100_000, "GRU": 2_000_000}
"""Steps x windows x units up to which our kernel on one thread keeps up with torch's on two."""


class RecurrentForecaster(WindowedNetwork):
    """Window stage, recurrent layers, dropout, one linear layer on the last state."""

    def __init__(
        self, cell: str, *, is_level_F: tuple[bool, ...], units: int, layers: int, head: Head, dropout: float
    ) -> None:
        super().__init__(is_level_F)
        self.finish = head.finish
        between = dropout if layers > 1 else 0.0
        self.rnn: nn.RNNBase = getattr(nn, cell)(len(is_level_F), units, layers, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(units, head.num_raw)

    def forward(self, rows_TNF: Tensor) -> Tensor:
        """Time-major rows → (N, K) in units of the label scale."""
        windows_TNF = self.window_stage(rows_TNF)
        state_NH = self._by_kernel(windows_TNF) if self._suits_kernel(windows_TNF) else self.rnn(windows_TNF)[0][-1]
        return self.finish(self.head(self.dropout(state_NH)))

    def _suits_kernel(self, windows_TNF: Tensor) -> bool:
        """Training on a processor, as long as torch's bookkeeping rather than its arithmetic is the cost."""
        size = windows_TNF.shape[0] * windows_TNF.shape[1] * self.rnn.hidden_size
        return self.training and windows_TNF.device.type == "cpu" and size <= KERNEL_SIZES[self.rnn.mode]

    def _by_kernel(self, states_TNX: Tensor) -> Tensor:
        """The last layer's last state."""
        from ml_workbench_service.learning.recurrent_kernel import CELLS, RecurrentPass  # half a second of numba

        last = self.rnn.num_layers - 1
        for layer in range(self.rnn.num_layers):
            if layer:
                states_TNX = nn.functional.dropout(states_TNX, self.rnn.dropout, training=True)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = (getattr(self.rnn, f"{name}_l{layer}") for name in names)
            states_TNX = RecurrentPass.apply(CELLS[self.rnn.mode], layer == last, states_TNX, *weights)  # type: ignore[no-untyped-call]
        return states_TNX
