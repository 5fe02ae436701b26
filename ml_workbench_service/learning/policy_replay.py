"""`RowReplay`: a replay buffer that keeps where each decision was made, not what was seen there.

An observation is a window of rows that lie on the tape anyway, and the position held. So a decision takes 32 bytes
instead of two windows (800 bytes at 24 rows of 4 features), and a checkpoint holds the whole buffer.

Legend: M decisions kept, N lanes, B of a batch, L the lookback, F features, O = L * F + 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.market.environment import generator_of, generator_words
from ml_workbench_service.market.tape import Bools

FIELDS: Mapping[str, Any] = {
    "row": np.int64,
    "held": np.float32,
    "action": np.int64,
    "reward": np.float32,
    "next_held": np.float32,
    "is_ruin": np.float32,
}


class RowReplay(BaseBuffer):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """The newest decisions of all lanes; the oldest are overwritten.

    Args:
        buffer_size: decisions kept.
        observation_space, action_space, device, n_envs: as stable-baselines3 gives them.
        rows_RF: the tape's rows.
        lookback: rows of a window.
        seed: of the batches drawn.
        others: what stable-baselines3 says to buffers of its own kind.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: Any,
        action_space: Any,
        device: Any = "cpu",
        n_envs: int = 1,
        *,
        rows_RF: Floats32,
        lookback: int,
        seed: int,
        **others: Any,
    ) -> None:
        super().__init__(max(buffer_size // n_envs, 1) * n_envs, observation_space, action_space, device, n_envs=n_envs)
        self.pos, self.full = 0, False
        self._kept = {name: np.zeros(self.buffer_size, dtype=kind) for name, kind in FIELDS.items()}
        self._rows_RF = torch.from_numpy(rows_RF).to(device)
        self._offsets_L = torch.arange(1 - lookback, 1, device=device)
        self.chance = np.random.Generator(np.random.PCG64(seed))

    def keep(
        self, *, rows_N: Ints, held_N: Floats32, actions_N: Ints, rewards_N: Floats32, ended_N: Bools, ruined_N: Bools
    ) -> None:
        """One decision of every lane; an episode that was cut goes on flat at the next row, as its value shall."""
        here = slice(self.pos, self.pos + self.n_envs)
        next_held_N = np.where(ended_N, 0.0, actions_N - 1)
        values = (rows_N, held_N, actions_N, rewards_N, next_held_N, ruined_N)
        for name, value in zip(FIELDS, values, strict=True):
            self._kept[name][here] = value
        self.pos += self.n_envs
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """A batch drawn with equal chances, as stable-baselines3's algorithms read one."""
        return self._get_samples(self._drawn(batch_size), env)

    def draw(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Observations (2B, O), first those of the decisions, then the next ones; actions, rewards, ruins (B,)."""
        return self._at(self._drawn(batch_size))

    def _drawn(self, batch_size: int) -> Ints:
        return self.chance.integers(self.size(), size=batch_size)

    def _get_samples(self, batch_inds: Ints, env: Any = None) -> ReplayBufferSamples:
        both_O, actions, rewards, is_ruin = self._at(batch_inds)
        here_BO, next_BO = both_O.chunk(2)
        return ReplayBufferSamples(here_BO, actions[:, None], next_BO, is_ruin[:, None], rewards[:, None])

    def _at(self, chosen: Ints) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        row, held, action, reward, next_held, is_ruin = (
            torch.from_numpy(self._kept[name][chosen]).to(self.device) for name in FIELDS
        )
        ends = torch.cat([row, row + 1])
        windows = self._rows_RF[ends[:, None] + self._offsets_L].flatten(1)
        return torch.cat([windows, torch.cat([held, next_held])[:, None]], dim=1), action, reward, is_ruin

    def state(self) -> dict[str, np.ndarray]:
        """What is kept, as plain arrays."""
        kept = {name: value[: self.size()].copy() for name, value in self._kept.items()}
        return kept | {"place": np.array([self.pos, self.full]), "generator": generator_words(self.chance)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self.pos, self.full = int(state["place"][0]), bool(state["place"][1])
        for name, value in self._kept.items():
            value[: self.size()] = state[name]
        self.chance = generator_of(state["generator"])

    def size(self) -> int:
        """Decisions kept."""
        return int(self.buffer_size if self.full else self.pos)
