"""`RecurrentFamily`: what lstm and gru share; their files add a cell, a name for its units, and a source.

Free of torch at import; training loads it.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem

if TYPE_CHECKING:
    from ml_workbench_service.learning.networks.heads import Head

MIN_WINDOW = 3
"""Recurrent families train on windows from this length up, so that a short request is no foreign input."""

Units = Field(default=64, ge=1, le=2048, description="Hidden units of each layer.")


class RecurrentHyperparameters(Contract):
    """Everything but the number of units, whose name belongs to the family."""

    dropout: Finite = Field(
        default=0.2, ge=0, lt=1, description="Share of hidden values dropped before each further layer and the output."
    )
    learning_rate: Finite = Field(default=0.001, gt=0, le=1, description="Step of Adam.")
    batch_size: int = Field(default=32, ge=1, le=65536, description="Windows per gradient step.")
    epochs: int = Field(default=100, ge=1, le=10_000, description="Most passes over the training part.")
    lookback: int = Field(default=24, ge=MIN_WINDOW, le=1024, description="Rows of a window, oldest first.")
    layers: int = Field(default=1, ge=1, le=8, description="Recurrent layers on top of each other.")
    patience: int = Field(
        default=10, ge=1, le=10_000, description="Epochs without improvement on the stopping part before training ends."
    )


class RecurrentFamily(Family, abstract=True):
    """A recurrent network over the window; its last hidden state, through one linear layer, is the forecast.

    Fails where the signal is older than `lookback`, or where there is none: then it lands near zero and its card
    says so. Cost per window and epoch grows with lookback x units².
    """

    model_type = ModelType.TIME_SERIES
    min_window: ClassVar[int] = MIN_WINDOW
    cell: ClassVar[str]  # as torch.nn calls it
    gates: ClassVar[int]
    windows_per_second: ClassVar[float]  # at 24 rows, 64 units, batch 32, two cores

    @property
    def units(self) -> int:
        """Hidden units of each layer."""
        return int(getattr(self.hyperparameters, f"{self.cell.lower()}_units"))

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Adam with gradient clipping, early stopping on the part `stop`, the best epoch's weights."""
        from ml_workbench_service.learning.networks.recurrent import RecurrentForecaster, recurrent_graph
        from ml_workbench_service.learning.networks.windowed import train

        hyper: Any = self.hyperparameters
        is_level_F = problem.windows.scaler.is_level_F
        head = self.head(problem)
        return train(
            lambda: RecurrentForecaster(
                self.cell, is_level_F=is_level_F, units=self.units, layers=hyper.layers, head=head,
                dropout=hyper.dropout,
            ),
            problem,
            hyperparameters=hyper,
            shortest_window=self.min_window,
            outputs=head.names,
            objective=head.objective,
            accelerator=accelerator,
            report=report,
            graph=lambda weights: recurrent_graph(
                weights, cell=self.cell, num_layers=hyper.layers, is_level_F=is_level_F, head=head
            ),
            description={
                "kind": "recurrent_forecaster",
                "cell": self.cell,
                "units": self.units,
                "layers": hyper.layers,
            },
        )  # fmt: skip

    def head(self, problem: TrainingProblem) -> "Head":
        """What the last layer is for: forecasts, unless a subclass learns something else."""
        from ml_workbench_service.learning.networks.heads import head_for

        return head_for(problem)

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, and four copies of the largest batch's activations; scoring takes batches of 98,304 rows."""
        hyper: Any = self.hyperparameters
        batch = max(hyper.batch_size, 98_304 // hyper.lookback)
        activations = batch * hyper.lookback * (num_features + self.units * (self.gates + 2) * hyper.layers) * 4
        weights = self.gates * self.units * (num_features + self.units * (2 * hyper.layers - 1)) * 4
        return int(num_rows * (num_features + 8) * 16 + 4 * activations + 8 * weights)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, at the measured speed scaled by the work of a window."""
        hyper: Any = self.hyperparameters
        work = (hyper.lookback / 24) * hyper.layers * (0.4 + 0.6 * (self.units / 64) ** 1.5)
        batch = 1.0 + 20.0 / hyper.batch_size
        return float(5.0 + 0.5 * hyper.epochs * num_windows * work * batch / (1.6 * self.windows_per_second))
