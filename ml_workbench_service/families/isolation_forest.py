"""`isolation_forest`: what few random cuts set apart is an anomaly; trained in seconds."""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import TORCH_BYTES, Family, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import MIN_WINDOW, AlarmRate, Lookback, scored_windows

SKLEARN_BYTES = 40_000_000
"""Resident pages of scikit-learn; measured."""
NODE_BYTES = 64
"""Of scikit-learn's node."""


class IsolationForestHyperparameters(Contract):
    """The forest's, the window, and how rare an alarm should be."""

    expected_alarm_rate: AlarmRate = 0.01
    trees: int = Field(default=100, ge=1, le=1000, description="Trees of the forest.")
    max_samples: int = Field(
        default=1024, ge=2, le=4096, description="Windows that each tree is grown on; the paper's 256 finds less."
    )
    lookback: Lookback = 24


class IsolationForest(Family[IsolationForestHyperparameters]):
    """An isolation forest over the window's newest rows (Liu, Ting and Zhou, ICDM 2008), grown by scikit-learn.

    Finds spikes, stale prices and bursts of volatility. Fails where many features hide one that is wrong, and on
    features that part: an autoencoder finds several times as many of these. Cost grows with trees x samples.
    """

    name = "isolation_forest"
    model_type = ModelType.ANOMALY_DETECTION
    min_window: ClassVar[int] = MIN_WINDOW
    library_bytes = TORCH_BYTES + SKLEARN_BYTES

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Grows on the training part alone, on the processor whatever the accelerator."""
        from ml_workbench_service.learning.networks.isolation_forest import train_forest

        hyper = self.hyperparameters
        trained = train_forest(problem, num_trees=hyper.trees, max_samples=hyper.max_samples, report=report)
        return replace(trained, findings={"expected_alarm_rate": hyper.expected_alarm_rate})

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, a batch of windows with what is derived of them, and the nodes of all trees."""
        hyper = self.hyperparameters
        nodes = 2 * hyper.trees * hyper.max_samples
        windows = scored_windows(num_rows, hyper.lookback) * hyper.lookback
        return num_rows * (num_features + 8) + 48 * windows * num_features + nodes * NODE_BYTES

    def seconds(self, num_windows: int) -> float:
        """The libraries' seconds, what is derived of each window, and the trees."""
        hyper = self.hyperparameters
        return float(8.0 + num_windows * hyper.lookback * 4e-7 + hyper.trees * (0.01 + hyper.max_samples * 2e-5))
