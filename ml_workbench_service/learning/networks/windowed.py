"""Torch networks over windows: the window stage that each begins with, how one is asked from numpy, and `train`.

Legend: N windows, T rows, F features, K outputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.learning.fitting.loop import Outcome, Schedule, fit
from ml_workbench_service.learning.fitting.objectives import Objective
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import MIN_WINDOW, NetworkHyperparameters
from ml_workbench_service.learning.networks.heads import Head


class WindowedNetwork(nn.Module):
    """A network over time-major rows whose first operation is the window stage.

    Attributes:
        joins_rows: whether it then reads each window as one row, and so trains on windows that lie together in memory.
    """

    joins_rows: ClassVar[bool] = False

    def __init__(self, is_level_F: tuple[bool, ...]) -> None:
        super().__init__()
        self.is_level_F: Tensor
        self.register_buffer("is_level_F", torch.tensor(is_level_F, dtype=torch.float32), persistent=False)
        self._any_level = any(is_level_F)

    def window_stage(self, rows_TNF: Tensor) -> Tensor:
        """Level columns lose their mean over the window."""
        if not self._any_level:
            return rows_TNF
        return rows_TNF - rows_TNF.mean(dim=0, keepdim=True) * self.is_level_F

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of the weights, by name."""
        return {name: value.detach().numpy().copy() for name, value in self.state_dict().items()}

    @torch.inference_mode()
    def answer(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """Outputs and last rows, as the exported graph must give them; what is held makes no difference here."""
        rows_TNF = torch.from_numpy(np.ascontiguousarray(rows_NTF.transpose(1, 0, 2)))
        return RawPrediction(self(rows_TNF).numpy(), self.window_stage(rows_TNF)[-1].numpy())


@dataclass(frozen=True)
class Architecture:
    """Network architecture: what a family of networks is, given its hyper-parameters and a problem.

    Attributes:
        build: makes the network, with random weights.
        graph: the ONNX graph of the network's weights.
        head: its outputs, and the loss that they are trained for.
        description: what `network.json` says of it, beside the numbers of features and outputs.
    """

    build: Callable[[], WindowedNetwork]
    graph: Callable[[Mapping[str, np.ndarray]], ModelProto]
    head: Head
    description: Mapping[str, Any]


def train(
    architecture: Architecture,
    problem: TrainingProblem,
    hyperparameters: NetworkHyperparameters,
    *,
    accelerator: Accelerator,
    report: Report,
) -> Trained:
    """Builds, fits and describes a network; the same seed gives the same weights on the same hardware."""
    torch.manual_seed(problem.seed)
    network, head = architecture.build(), architecture.head
    outcome = fit_network(
        network, problem, hyperparameters, objective=head.objective, accelerator=accelerator, report=report
    )
    weights, num_features = network.weights(), len(problem.windows.features)
    return Trained(
        outputs=head.names,
        weights=weights,
        network={**architecture.description, "num_features": num_features, "num_outputs": head.num_outputs},
        graph=lambda: architecture.graph(weights),
        predict=network.answer,
        epochs_run=outcome.epochs_run,
        best_epoch=outcome.best_epoch,
    )


def fit_network(
    network: WindowedNetwork,
    problem: TrainingProblem,
    hyperparameters: NetworkHyperparameters,
    *,
    objective: Objective,
    accelerator: Accelerator,
    report: Report,
) -> Outcome:
    """Fits a network in place on the accelerator and brings it back to the processor, ready to be asked."""
    device = accelerator.for_training()
    schedule = Schedule(
        learning_rate=hyperparameters.learning_rate,
        batch_size=hyperparameters.batch_size,
        epochs=hyperparameters.epochs,
        patience=hyperparameters.patience,
        shortest_window=MIN_WINDOW,
        seed=problem.seed,
    )
    outcome = fit(
        network.to(device),
        problem.windows,
        schedule,
        device=device,
        report=report,
        objective=objective,
        checkpoint=problem.checkpoint,
    )
    network.eval().cpu()
    return outcome
