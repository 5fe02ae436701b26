"""`RecurrentFamily`: what lstm and gru share; their files add a name, a source and the cell that stands here.

Free of torch at import; training loads it.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

from pydantic import Field

from ml_workbench_service.contracts.contract import Finite
from ml_workbench_service.learning.interfaces.family import TORCH_BYTES, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import BatchSize, NetworkHyperparameters, Units
from ml_workbench_service.learning.networks.network_family import NetworkFamily

if TYPE_CHECKING:
    from ml_workbench_service.learning.networks.windowed import Architecture


class Cell(NamedTuple):
    """A recurrent cell: torch's and ONNX's name for it, its gates, what it keeps, and how fast it trains.

    `kept` are numbers a unit and bar that a gradient step keeps: gates, state, output, and what a cell needs beside.

    The windows a second were measured at 24 rows, 64 units, batch 32, two cores.
    """

    name: str
    gates: int
    kept: int
    windows_per_second: float


STEP_COPIES = 2.1
"""Of gates, states and outputs, in a gradient step: kept for the way back, their gradients, and what is at hand."""
RECURRENT_BYTES = 140_000_000
"""Compiled code and workspaces of oneDNN's recurrent kernels; measured."""


LSTM = Cell("LSTM", gates=4, kept=6, windows_per_second=11_000.0)
GRU = Cell("GRU", gates=3, kept=6, windows_per_second=11_000.0)


class RecurrentHyperparameters(NetworkHyperparameters):
    """Everything but the number of units, whose name belongs to the cell."""

    batch_size: BatchSize = 32
    layers: int = Field(default=1, ge=1, le=8, description="Recurrent layers on top of each other.")
    dropout: Finite = Field(
        default=0.2, ge=0, lt=1, description="Share of hidden values dropped before each further layer and the output."
    )

    @property
    @abstractmethod
    def units(self) -> int:
        """Hidden units of each layer, under whatever name."""


class LstmHyperparameters(RecurrentHyperparameters):
    """Hyper-parameters of long short-term memory."""

    lstm_units: Units = 64

    @property
    def units(self) -> int:
        """`lstm_units`."""
        return self.lstm_units


class GruHyperparameters(RecurrentHyperparameters):
    """Hyper-parameters of gated recurrent units."""

    gru_units: Units = 64

    @property
    def units(self) -> int:
        """`gru_units`."""
        return self.gru_units


R = TypeVar("R", bound=RecurrentHyperparameters, covariant=True)


class RecurrentFamily(NetworkFamily[R], abstract=True):
    """A recurrent network over the window; its last hidden state, through one linear layer, is the forecast.

    Fails where the signal is older than `lookback`, or where there is none: then it lands near zero and its card
    says so. Cost per window and epoch grows with lookback x units².
    """

    cell: ClassVar[Cell]
    library_bytes = TORCH_BYTES + RECURRENT_BYTES

    def architecture(self, problem: TrainingProblem) -> "Architecture":
        """Recurrent layers, then one linear layer."""
        from ml_workbench_service.learning.networks.recurrent import RecurrentForecaster, recurrent_graph
        from ml_workbench_service.learning.networks.windowed import Architecture

        hyper, cell = self.hyperparameters, self.cell.name
        is_level_F, head = problem.windows.scaler.is_level_F, self.head(problem)
        sizes = {"units": hyper.units, "layers": hyper.layers}
        return Architecture(
            build=lambda: RecurrentForecaster(cell, is_level_F=is_level_F, head=head, dropout=hyper.dropout, **sizes),
            graph=lambda weights: recurrent_graph(
                weights, cell=cell, num_layers=hyper.layers, is_level_F=is_level_F, head=head
            ),
            head=head,
            description={"kind": "recurrent_forecaster", "cell": cell, **sizes},
        )

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, the weights, and the states of a gradient step, of all layers, or of a scoring batch, of one."""
        hyper, gates, units = self.hyperparameters, self.cell.gates, self.hyperparameters.units
        a_bar = units * self.cell.kept
        step = hyper.batch_size * (num_features + a_bar * hyper.layers) * STEP_COPIES
        scored = hyper.scored_windows(num_rows) * (num_features + a_bar)
        weights = gates * units * (num_features + units * (2 * hyper.layers - 1)) * 4
        return int(num_rows * (num_features + 8) * 16 + hyper.lookback * max(step, scored) * 4 + 8 * weights)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, at the measured speed scaled by the work of a window."""
        hyper = self.hyperparameters
        work = (hyper.lookback / 24) * hyper.layers * (0.4 + 0.6 * (hyper.units / 64) ** 1.5)
        batch = 1.0 + 20.0 / hyper.batch_size
        return float(5.0 + 0.5 * hyper.epochs * num_windows * work * batch / (1.6 * self.cell.windows_per_second))
