"""`LinearFamily`: one linear layer over the window; the families' files add what it learns.

Free of torch at import; training loads it.
"""

from typing import TYPE_CHECKING, TypeVar

from ml_workbench_service.learning.interfaces.family import TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import NetworkHyperparameters
from ml_workbench_service.learning.networks.network_family import NetworkFamily

if TYPE_CHECKING:
    from ml_workbench_service.learning.networks.windowed import Architecture


WINDOW_COPIES = 6
"""Of a batch's windows: gathered, less their mean, joined, and as onnxruntime takes and holds them."""

L = TypeVar("L", bound=NetworkHyperparameters, covariant=True)


class LinearFamily(NetworkFamily[L], abstract=True):
    """One linear layer over the whole window."""

    def architecture(self, problem: TrainingProblem) -> "Architecture":
        """One weight for each output, bar and feature."""
        from ml_workbench_service.learning.networks.linear import LinearForecaster, linear_graph
        from ml_workbench_service.learning.networks.windowed import Architecture

        windows, head = problem.windows, self.head(problem)
        is_level_F = windows.scaler.is_level_F
        return Architecture(
            build=lambda: LinearForecaster(is_level_F=is_level_F, lookback=windows.lookback, head=head),
            graph=lambda weights: linear_graph(weights, is_level_F=is_level_F, head=head),
            head=head,
            description={"kind": "linear_forecaster", "lookback": windows.lookback},
        )

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, and the largest batch's windows."""
        hyper = self.hyperparameters
        windows = max(hyper.batch_size, hyper.scored_windows(num_rows))
        return num_rows * (num_features + 8) * 16 + WINDOW_COPIES * windows * hyper.lookback * num_features * 4

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, at some 3,000 batches a second."""
        hyper = self.hyperparameters
        return 5.0 + 0.5 * hyper.epochs * num_windows / hyper.batch_size / 3000
