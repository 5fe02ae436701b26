"""`autoencoder`: reconstruction error of an LSTM autoencoder; the default family for anomalies."""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import TORCH_BYTES, Family, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import (
    MIN_WINDOW,
    AlarmRate,
    Epochs,
    LearningRate,
    NetworkHyperparameters,
    Patience,
)
from ml_workbench_service.learning.networks.recurrent_family import RECURRENT_BYTES, STEP_COPIES

WINDOWS_PER_SECOND = 6_000.0
"""At 24 rows, 64 units, batch 256, two cores."""


class AutoencoderHyperparameters(NetworkHyperparameters):
    """Sizes, the training loop's, and how rare an alarm should be."""

    expected_alarm_rate: AlarmRate = 0.01
    autoencoder_units: int = Field(default=64, ge=1, le=2048, description="Hidden units of encoder and decoder.")
    bottleneck: int = Field(
        default=16, ge=1, le=2048, description="Numbers that the window is told back from; fewer than it holds."
    )
    learning_rate: LearningRate = 0.003
    epochs: Epochs = 30
    patience: Patience = 5


class Autoencoder(Family[AutoencoderHyperparameters]):
    """An LSTM autoencoder of the window (Malhotra et al., 2016, arXiv:1607.00148); its error is the anomaly.

    Finds spikes, stale prices, bursts of volatility and, of features that belong together, some that part. Fails where
    the features have nothing to do with each other or with their past, and where the training part was strange itself.
    Cost per window and epoch grows with lookback x units².
    """

    name = "autoencoder"
    model_type = ModelType.ANOMALY_DETECTION
    is_default = True
    min_window: ClassVar[int] = MIN_WINDOW
    library_bytes = TORCH_BYTES + RECURRENT_BYTES

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Adam with gradient clipping, early stopping on the validation part, the best epoch's weights."""
        from ml_workbench_service.learning.networks.autoencoder import train_autoencoder

        hyper = self.hyperparameters
        trained = train_autoencoder(
            problem,
            hyper,
            units=hyper.autoencoder_units,
            bottleneck=hyper.bottleneck,
            accelerator=accelerator,
            report=report,
        )
        return replace(trained, findings={"expected_alarm_rate": hyper.expected_alarm_rate})

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, the weights, and the states of encoder and decoder in a gradient step, or of one in scoring."""
        hyper, units = self.hyperparameters, self.hyperparameters.autoencoder_units
        step = hyper.batch_size * (8 * num_features + hyper.bottleneck + 12 * units) * STEP_COPIES
        scored = hyper.scored_windows(num_rows) * (4 * num_features + hyper.bottleneck + 6 * units)
        weights = 4 * units * (2 * num_features + hyper.bottleneck + 2 * units) * 4
        states = int(hyper.lookback * max(step, scored) * 4)
        return num_rows * (num_features + 8) * 16 + states + 8 * weights + 64 * num_features**2

    def seconds(self, num_windows: int) -> float:
        """Two thirds of the epochs asked for, at the measured speed scaled by the work of a window."""
        hyper = self.hyperparameters
        work = (hyper.lookback / 24) * (0.4 + 0.6 * (hyper.autoencoder_units / 64) ** 1.5)
        batch = 1.0 + 60.0 / hyper.batch_size
        return float(5.0 + 0.7 * hyper.epochs * num_windows * work * batch / WINDOWS_PER_SECOND)
