"""`WindowedNetwork`: what every torch network over windows begins with, and how it is asked from numpy.

Legend: N windows, T rows, F features, K outputs.
"""

import numpy as np
import torch
from torch import Tensor, nn

from ml_workbench_service.contracts.market import Floats32
from ml_workbench_service.contracts.prediction import RawPrediction


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
    def answer(self, rows_NTF: Floats32) -> RawPrediction:
        """Outputs and last rows, as the exported graph must give them."""
        rows_TNF = torch.from_numpy(np.ascontiguousarray(rows_NTF.transpose(1, 0, 2)))
        return RawPrediction(self(rows_TNF).numpy(), self.window_stage(rows_TNF)[-1].numpy())
