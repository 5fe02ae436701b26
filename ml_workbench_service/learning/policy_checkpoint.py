"""`PolicyCheckpoint`: a policy's training between two epochs, as plain arrays in a `learning.checkpoint.Checkpoint`.

Parameters, Adam's moments, the lanes, the replay buffer, counters and every random state are the learner's own
`state`; here the best weights so far and torch's random state join them. stable-baselines3's own save files hold
pickles and are never written or read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ml_workbench_service.learning.checkpoint import Checkpoint


@dataclass
class Standing:
    """How far a training is, and the best weights so far."""

    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    best: float = float("-inf")
    best_epoch: int = 0
    epoch: int = 0

    def end_epoch(self, earned: float, weights: Mapping[str, np.ndarray]) -> None:
        """Counts an epoch and keeps its weights where no earlier one earned as much."""
        self.epoch += 1
        if earned > self.best:
            self.best, self.best_epoch, self.kept = earned, self.epoch, weights


class PolicyCheckpoint:
    """Saves and restores a learner with `state` and `restore`, and its standing."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def save(self, learner: Any, standing: Standing) -> None:
        """Everything that decides the rest."""
        arrays = {f"learner.{name}": value for name, value in learner.state().items()}
        arrays |= {f"kept.{name}": value for name, value in standing.kept.items()}
        arrays["random.torch"] = torch.get_rng_state().numpy()
        if torch.cuda.is_available():
            arrays["random.cuda"] = torch.cuda.get_rng_state().numpy()
        self.checkpoint.save(
            arrays,
            {
                "best": standing.best,
                "best_epoch": standing.best_epoch,
                "epoch": standing.epoch,
            },
        )

    def restore(self, learner: Any, standing: Standing) -> bool:
        """Goes on where a checkpoint was left; False where there is none."""
        saved = self.checkpoint.load()
        if saved is None:
            return False
        learner.restore(_below("learner.", saved.arrays))
        standing.kept = _below("kept.", saved.arrays)
        standing.best, standing.best_epoch = float(saved.state["best"]), int(saved.state["best_epoch"])
        standing.epoch = int(saved.state["epoch"])
        torch.set_rng_state(torch.from_numpy(np.array(saved.arrays["random.torch"])))
        if "random.cuda" in saved.arrays and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.from_numpy(np.array(saved.arrays["random.cuda"])))
        return True


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
