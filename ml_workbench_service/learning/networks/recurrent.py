"""Recurrent networks in torch: the module, and its way from windows to `Trained`.

Legend: N windows, T rows, F features, H units, K outputs.
"""

from torch import Tensor, nn

from ml_workbench_service.learning.gru_kernel import GruPass
from ml_workbench_service.learning.heads import Head
from ml_workbench_service.learning.windowed import WindowedNetwork

KERNEL_SIZE = 2_000_000
"""Steps x windows x units up to which the GRU's own kernel beats torch's on a processor."""


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
        if self._suits_kernel(windows_TNF):
            states_TNH = self._by_kernel(windows_TNF)
        else:
            states_TNH, _ = self.rnn(windows_TNF)
        return self.finish(self.head(self.dropout(states_TNH[-1])))

    def _suits_kernel(self, windows_TNF: Tensor) -> bool:
        """Training a GRU on a processor, as long as torch's bookkeeping rather than its arithmetic is the cost."""
        size = windows_TNF.shape[0] * windows_TNF.shape[1] * self.rnn.hidden_size
        return (
            isinstance(self.rnn, nn.GRU) and self.training and windows_TNF.device.type == "cpu" and size <= KERNEL_SIZE
        )

    def _by_kernel(self, states_TNX: Tensor) -> Tensor:
        for layer in range(self.rnn.num_layers):
            if layer:
                states_TNX = nn.functional.dropout(states_TNX, self.rnn.dropout, training=True)
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = (getattr(self.rnn, f"{name}_l{layer}") for name in names)
            states_TNX = GruPass.apply(states_TNX, *weights)  # type: ignore[no-untyped-call]
        return states_TNX
