"""`linear`: one linear layer over the window; the bar that recurrent networks often miss on exchange rates."""

from typing import Any, ClassVar

from pydantic import Field

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem


class Linear(Family):
    """One linear layer over the whole window (Zeng et al., AAAI 2023, arXiv:2205.13504).

    There to be compared with: in published comparisons of forecasters it is seldom beaten by much larger networks.
    Fails where the signal is not additive over bars and features. Cost per window and epoch grows with the lookback.
    """

    name = "linear"
    model_type = ModelType.TIME_SERIES
    min_window: ClassVar[int] = 3

    class Hyperparameters(Contract):
        """Those of the training loop; the layer itself has none."""

        learning_rate: Finite = Field(default=0.001, gt=0, le=1, description="Step of Adam.")
        batch_size: int = Field(default=256, ge=1, le=65536, description="Windows per gradient step.")
        epochs: int = Field(default=100, ge=1, le=10_000, description="Most passes over the training part.")
        lookback: int = Field(default=24, ge=3, le=1024, description="Rows of a window, oldest first.")
        patience: int = Field(
            default=10, ge=1, le=10_000, description="Epochs without improvement on the stopping part until the end."
        )

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Adam with gradient clipping, early stopping on the part `stop`, the best epoch's weights."""
        from ml_workbench_service.learning.networks.heads import head_for
        from ml_workbench_service.learning.networks.linear import LinearForecaster, linear_graph
        from ml_workbench_service.learning.networks.windowed import train

        windows = problem.windows
        is_level_F = windows.scaler.is_level_F
        head = head_for(problem)
        return train(
            lambda: LinearForecaster(is_level_F=is_level_F, lookback=windows.lookback, head=head),
            problem,
            hyperparameters=self.hyperparameters,
            shortest_window=self.min_window,
            outputs=head.names,
            objective=head.objective,
            accelerator=accelerator,
            report=report,
            graph=lambda weights: linear_graph(weights, is_level_F=is_level_F, head=head),
            description={"kind": "linear_forecaster", "lookback": windows.lookback},
        )

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, and the largest batch's windows; scoring takes batches of 98,304 rows."""
        hyper: Any = self.hyperparameters
        batch = max(hyper.batch_size, 98_304 // hyper.lookback)
        return int(num_rows * (num_features + 8) * 16 + 16 * batch * hyper.lookback * num_features)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, at some 3,000 batches a second."""
        hyper: Any = self.hyperparameters
        return float(5.0 + 0.5 * hyper.epochs * num_windows / hyper.batch_size / 3000)
