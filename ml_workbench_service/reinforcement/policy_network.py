"""`PolicyNetwork`: from a window and the position held to three numbers, in torch; and the same for stable-baselines3.

The first operation is the window stage: level columns lose their mean over the window. Rows that a short window lacks
count as average, so they are zero after it. Then fully connected layers read all rows and the position at once.

Legend: N windows, T rows, L the lookback, F features, O = L * F + 1 numbers of an observation, A = 3 actions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.learning.judges.action import greedy_actions
from ml_workbench_service.learning.policy_layers import Activation, Layers


class WindowStage(nn.Module):
    """Windows and positions → what the first layer reads."""

    def __init__(self, is_level_F: Sequence[bool], lookback: int) -> None:
        super().__init__()
        self.lookback, self.num_features = lookback, len(is_level_F)
        self.is_level_F: Tensor
        self.register_buffer("is_level_F", torch.tensor(is_level_F, dtype=torch.float32), persistent=False)
        self._any_level = any(is_level_F)

    @property
    def num_observed(self) -> int:
        """O."""
        return self.lookback * self.num_features + 1

    def windows(self, rows_NTF: Tensor) -> Tensor:
        """Level columns less their mean over the window."""
        if not self._any_level:
            return rows_NTF
        return rows_NTF - rows_NTF.mean(dim=1, keepdim=True) * self.is_level_F

    def forward(self, rows_NTF: Tensor, positions_N1: Tensor) -> Tensor:
        """(N, O)."""
        flat = self.windows(rows_NTF).flatten(1)
        missing = self.num_observed - 1 - flat.shape[1]
        return torch.cat([nn.functional.pad(flat, (missing, 0)), positions_N1], dim=1)


class ObservedWindow(BaseFeaturesExtractor):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """The window stage as a features extractor of stable-baselines3: it reads whole observations (N, O)."""

    def __init__(self, observation_space: Any, *, is_level_F: Sequence[bool], lookback: int) -> None:
        stage = WindowStage(is_level_F, lookback)
        super().__init__(observation_space, features_dim=stage.num_observed)
        self.stage = stage

    def forward(self, observations_NO: Tensor) -> Tensor:
        """(N, O)."""
        rows_NTF = observations_NO[:, :-1].reshape(-1, self.stage.lookback, self.stage.num_features)
        staged: Tensor = self.stage(rows_NTF, observations_NO[:, -1:])
        return staged


class PolicyNetwork(nn.Module):
    """What serves: the stage and the layers, which may be shared with the algorithm that trains them.

    Args:
        stage: the window stage.
        layers: the linear layers, the last one with an output for each action.
        activation: between the layers.
        gives_probabilities: softmax at the end; else the last layer's values are the outputs.
    """

    def __init__(
        self, stage: WindowStage, layers: Sequence[nn.Linear], *, activation: Activation, gives_probabilities: bool
    ) -> None:
        super().__init__()
        self.stage = stage
        self.layers = nn.ModuleList(layers)
        self.gives_probabilities = gives_probabilities
        self.stack = Layers(layers, activation)

    def values(self, inputs_NO: Tensor) -> Tensor:
        """The last layer's values (N, A) of what the stage gave."""
        return self.stack(inputs_NO)

    def forward(self, rows_NTF: Tensor, positions_N1: Tensor) -> Tensor:
        """Outputs (N, A)."""
        values_NA = self.values(self.stage(rows_NTF, positions_N1))
        return values_NA.softmax(dim=1) if self.gives_probabilities else values_NA

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of the weights, by name."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.state_dict().items()}

    @torch.inference_mode()
    def answer(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """Outputs and last rows, as the exported graph must give them; flat unless positions are given."""
        rows = self._tensor(rows_NTF)
        positions = self._tensor(np.zeros(len(rows_NTF), np.float32) if positions_N is None else positions_N)
        outputs_NA = self(rows, positions[:, None])
        return RawPrediction(outputs_NA.cpu().numpy(), self.stage.windows(rows)[:, -1].cpu().numpy())

    def act(self, rows_NTF: Floats32, positions_N: Floats32) -> Ints:
        """The greedy actions (N,), as `market.environment.walk` asks for them."""
        return greedy_actions(self.answer(rows_NTF, positions_N).outputs_NK)

    def _tensor(self, values: Floats32) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.stage.is_level_F.device)
