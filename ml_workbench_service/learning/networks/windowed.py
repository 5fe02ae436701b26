"""`WindowedNetwork`: what every torch network over windows begins with, how it is asked from numpy, and `train`.

Legend: N windows, T rows, F features, K outputs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.learning.fitting.loop import Schedule, fit
from ml_workbench_service.learning.fitting.objectives import Objective
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem


class WindowedNetwork(nn.Module):
    """A network over time-major rows whose first operation is the window stage."""

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


def train(
    build: Callable[[], WindowedNetwork],
    problem: TrainingProblem,
    *,
    hyperparameters: Any,
    shortest_window: int,
    outputs: tuple[str, ...],
    objective: Objective,
    accelerator: Accelerator,
    report: Report,
    graph: Callable[[Mapping[str, np.ndarray]], ModelProto],
    description: Mapping[str, Any],
) -> Trained:
    """Builds, fits and describes a network; the same seed gives the same weights on the same hardware.

    Args:
        build: makes the network, with random weights.
        problem: the data, the seed, and where to leave checkpoints.
        hyperparameters: `learning_rate`, `batch_size`, `epochs`, `patience`.
        shortest_window: rows of the shortest window to train on.
        outputs: names of the network's outputs.
        objective: what to make small.
        graph: the ONNX graph of the network's weights.
        description: what `network.json` says of it.
    """
    device = accelerator.for_training()
    torch.manual_seed(problem.seed)
    network = build().to(device)
    schedule = Schedule(
        learning_rate=hyperparameters.learning_rate,
        batch_size=hyperparameters.batch_size,
        epochs=hyperparameters.epochs,
        patience=hyperparameters.patience,
        shortest_window=shortest_window,
        seed=problem.seed,
    )
    outcome = fit(
        network,
        problem.windows,
        schedule,
        device=device,
        report=report,
        objective=objective,
        checkpoint=problem.checkpoint,
    )
    network.eval().cpu()
    weights = network.weights()
    return Trained(
        outputs=outputs,
        weights=weights,
        network={**description, "num_features": len(problem.windows.features), "num_outputs": len(outputs)},
        graph=lambda: graph(weights),
        predict=network.answer,
        epochs_run=outcome.epochs_run,
        best_epoch=outcome.best_epoch,
    )
