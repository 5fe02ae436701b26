"""Loss functions: what a network is asked to make small; each is a batch's mean over windows, so that sums add up.

Where windows count differently (`sample_weights`), each window's loss is multiplied by its weight, whose mean over a
part is 1, and the batch's mean is still over its windows: sums add up to the part's weighted mean.

Legend: N windows, T rows, F features, K labels.
"""

from typing import Protocol

from torch import Tensor, nn


def weighted_mean(losses_NV: Tensor, weights_N: Tensor | None) -> Tensor:
    """The mean over windows, and over whatever each has several losses of; without weights the plain mean."""
    if weights_N is None:
        return losses_NV.mean()
    return (losses_NV.reshape(len(losses_NV), -1).mean(dim=1) * weights_N).mean()


class Objective(Protocol):
    """The loss of a batch, and what the plainest answer would lose."""

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor, weights_N: Tensor | None = None) -> Tensor:
        """The mean loss over the batch's windows, differentiable; of windows that count, with what each counts."""
        ...

    def baseline(self, labels_NK: Tensor, weights_N: Tensor | None = None) -> float:
        """The loss of the plainest answer to these labels, for the progress report's `stop_skill`; 0: none is known."""
        ...


class SquaredError:
    """The mean squared error over all labels; the plainest answer is zero: the random walk."""

    def loss(self, network: nn.Module, rows_TNF: Tensor, labels_NK: Tensor, weights_N: Tensor | None = None) -> Tensor:
        """Mean over windows and labels."""
        if weights_N is None:
            return nn.functional.mse_loss(network(rows_TNF), labels_NK)
        return weighted_mean((network(rows_TNF) - labels_NK).square(), weights_N)

    def baseline(self, labels_NK: Tensor, weights_N: Tensor | None = None) -> float:
        """The labels' mean square."""
        return float(weighted_mean(labels_NK.square(), weights_N))
