"""`autoencoder`: what cannot be told back from a few numbers is strange; the default family for anomalies."""

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem


class Autoencoder(Family):
    """An LSTM autoencoder of the window (Malhotra et al., 2016, arXiv:1607.00148); its error is the anomaly.

    Finds spikes, stale prices, bursts of volatility and, of features that belong together, some that part. Fails where
    the features have nothing to do with each other or with their past, and where the training part was strange itself.
    Cost per window and epoch grows with lookback x units².
    """

    name = "autoencoder"
    model_type = ModelType.ANOMALY_DETECTION
    is_default = True
    min_window: ClassVar[int] = 3
    windows_per_second: ClassVar[float] = 6_000.0  # at 24 rows, 64 units, batch 256, two cores

    class Hyperparameters(Contract):
        """Sizes, the training loop's, and how rare an alarm should be."""

        expected_alarm_rate: Finite = Field(
            default=0.01, gt=0, le=0.5, description="Share of ordinary windows that may alarm; sets the threshold."
        )
        autoencoder_units: int = Field(default=64, ge=1, le=2048, description="Hidden units of encoder and decoder.")
        bottleneck: int = Field(
            default=16, ge=1, le=2048, description="Numbers that the window is told back from; fewer than it holds."
        )
        learning_rate: Finite = Field(default=0.003, gt=0, le=1, description="Step of Adam.")
        batch_size: int = Field(default=256, ge=1, le=65536, description="Windows per gradient step.")
        epochs: int = Field(default=30, ge=1, le=10_000, description="Most passes over the training part.")
        lookback: int = Field(default=24, ge=3, le=1024, description="Rows of a window, oldest first.")
        patience: int = Field(
            default=5, ge=1, le=10_000, description="Epochs without improvement on the stopping part until the end."
        )

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Adam with gradient clipping, early stopping on the part `stop`, the best epoch's weights."""
        from ml_workbench_service.learning.networks.autoencoder import train_autoencoder

        hyper: Any = self.hyperparameters
        trained = train_autoencoder(
            problem,
            hyperparameters=hyper,
            shortest_window=self.min_window,
            accelerator=accelerator,
            report=report,
        )
        return replace(trained, findings={"expected_alarm_rate": hyper.expected_alarm_rate})

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, and four copies of the largest batch's activations; scoring takes batches of 98,304 rows."""
        hyper: Any = self.hyperparameters
        batch = max(hyper.batch_size, 98_304 // hyper.lookback)
        activations = batch * hyper.lookback * (8 * num_features + hyper.bottleneck + 12 * hyper.autoencoder_units) * 4
        weights = 4 * hyper.autoencoder_units * (2 * num_features + hyper.bottleneck + 2 * hyper.autoencoder_units) * 4
        return int(num_rows * (num_features + 8) * 16 + 4 * activations + 8 * weights + 64 * num_features**2)

    def seconds(self, num_windows: int) -> float:
        """Two thirds of the epochs asked for, at the measured speed scaled by the work of a window."""
        hyper: Any = self.hyperparameters
        work = (hyper.lookback / 24) * (0.4 + 0.6 * (hyper.autoencoder_units / 64) ** 1.5)
        batch = 1.0 + 60.0 / hyper.batch_size
        return float(5.0 + 0.7 * hyper.epochs * num_windows * work * batch / self.windows_per_second)
