"""Loss functions: what a network is asked to make small; each is a batch's mean over windows, so that sums add up.

Legend: N windows, T rows, F features, K labels.
"""

from typing import Protocol

from torch import Tensor, nn


class Objective(Protocol):
    """The loss of a batch, and what the plainest answer would lose."""

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor) -> Tensor:
        """The mean loss over the batch's windows, differentiable."""
        ...

    def baseline(self, labels_NK: Tensor) -> float:
        """The loss of the plainest answer to these labels, for the progress report's `stop_skill`; 0: none is known."""
        ...


class SquaredError:
    """The mean squared error over all labels; the plainest answer is zero: the random walk."""

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor) -> Tensor:
        """Mean over windows and labels."""
        return nn.functional.mse_loss(network(rows_TNF), labels_NK)

    def baseline(self, labels_NK: Tensor) -> float:
        """The labels' mean square."""
        return float(labels_NK.square().mean())
