"""Deep Q-learning: `VectorDqn`, stable-baselines3's DQN over many environments, with a lean update and replay buffer.

Mnih et al., Nature 518, 2015. Exploration schedule, target network and rollouts are stable-baselines3's. Ours: each
environment explores by itself (there one draw decides for all environments at once), the replay buffer keeps rows
instead of windows, the gradient is written out, clipping and Adam are one operation each. A test holds the update
against stable-baselines3's own.

The replay buffer keeps where each decision was made, not what was seen there: an observation is a window of rows that
lie on the series anyway, and the position held. So a decision takes 32 bytes instead of two windows (800 bytes at 24
rows of 4 features), and a checkpoint holds the whole buffer.

Legend: M decisions kept, N environments, B of a batch, L the lookback, F features, O = L * F + 1 of an observation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor, nn

from ml_workbench_service.contracts.market import Bools, Floats32, Ints
from ml_workbench_service.market.trading_series import POSITIONS
from ml_workbench_service.reinforcement.environment import generator_of, generator_words
from ml_workbench_service.reinforcement.hyperparameters import DqnHyperparameters
from ml_workbench_service.reinforcement.policy_algorithm import PolicyAlgorithm, below, linear_layers
from ml_workbench_service.reinforcement.policy_network import Layers, ObservedWindow
from ml_workbench_service.reinforcement.sb3_environment import MarketEnvironment

FIELDS: Mapping[str, Any] = {
    "row": np.int64,
    "held": np.float32,
    "action": np.int64,
    "reward": np.float32,
    "next_held": np.float32,
    "is_ruin": np.float32,
}


class RowReplay(BaseBuffer):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """Replay buffer: the newest decisions of all environments; the oldest are overwritten.

    Args:
        buffer_size: decisions kept.
        observation_space, action_space, device, n_envs: as stable-baselines3 gives them.
        rows_RF: the series' rows.
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
        seed: int,
        **others: Any,
    ) -> None:
        super().__init__(max(buffer_size // n_envs, 1) * n_envs, observation_space, action_space, device, n_envs=n_envs)
        self.pos, self.full = 0, False
        self._kept = {name: np.zeros(self.buffer_size, dtype=kind) for name, kind in FIELDS.items()}
        self._rows_RF = torch.from_numpy(rows_RF).to(device)
        lookback = (observation_space.shape[0] - 1) // rows_RF.shape[1]
        self._offsets_L = torch.arange(1 - lookback, 1, device=device)
        self.chance = np.random.Generator(np.random.PCG64(seed))

    def keep(
        self, *, rows_N: Ints, held_N: Floats32, actions_N: Ints, rewards_N: Floats32, ended_N: Bools, ruined_N: Bools
    ) -> None:
        """One decision of every environment; a cut episode goes on flat at the next row, as its value shall."""
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


class VectorDqn(PolicyAlgorithm[DqnHyperparameters], DQN):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """A step or more of all environments, then the gradient steps that are due for them, again and again."""

    activation = "relu"

    def __init__(
        self, environment: MarketEnvironment, hyperparameters: DqnHyperparameters, *, seed: int, **run: Any
    ) -> None:
        super().__init__(environment, hyperparameters, seed=seed, **run)
        self.chance = np.random.Generator(np.random.PCG64(seed + 1))
        self._held_N: Floats32 = np.zeros(environment.num_envs, dtype=np.float32)
        self._target = Layers(linear_layers(self.q_net_target.q_net), self.activation)

    def options(
        self, environment: MarketEnvironment, hyperparameters: DqnHyperparameters, *, seed: int
    ) -> dict[str, Any]:
        """Learning starts no later than the replay buffer is full."""
        hyper, envs = hyperparameters, environment.envs
        steps = max(1, hyper.decisions_per_update // envs.num_envs)
        return {
            "policy": "MlpPolicy",
            "buffer_size": max(hyper.memory, envs.num_envs),
            "learning_starts": min(hyper.learning_starts, hyper.memory),
            "batch_size": hyper.batch_size,
            "train_freq": steps,
            "gradient_steps": max(1, steps * envs.num_envs // hyper.decisions_per_update),
            "replay_buffer_class": RowReplay,
            "replay_buffer_kwargs": {"rows_RF": envs.series.rows_RF, "seed": seed},
            "target_update_interval": max(hyper.target_interval, envs.num_envs),
            "exploration_fraction": hyper.exploration_share,
            "exploration_initial_eps": hyper.exploration_rate,
            "exploration_final_eps": min(hyper.exploration_minimum, hyper.exploration_rate),
        }

    def learnt(self) -> nn.Module:
        """The network of action values, not its delayed copy."""
        network: nn.Module = self.q_net
        return network

    def actor(self) -> tuple[ObservedWindow, list[nn.Linear]]:
        """Of the network of action values."""
        return self.q_net.features_extractor, linear_layers(self.q_net.q_net)

    @property
    def rollout_size(self) -> int:
        """Decisions between two updates."""
        return int(self.train_freq.frequency * self.n_envs)

    def rollout(self) -> None:
        """Collects, and learns once there is enough to learn from."""
        self.collect_rollouts(
            self.env, self._watch, self.train_freq, self.replay_buffer, learning_starts=self.learning_starts
        )
        if self.num_timesteps > self.learning_starts:
            self.train(self.gradient_steps, self.batch_size)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """So many gradient steps on batches of the replay buffer."""
        self.policy.set_training_mode(True)
        for _ in range(gradient_steps):
            self.report.check()
            self.differentiate(*self.replay_buffer.draw(batch_size))
            self.adam.step()
        self._n_updates += gradient_steps

    @torch.no_grad()
    def differentiate(self, both_O: Tensor, actions_B: Tensor, rewards_B: Tensor, is_ruin_B: Tensor) -> None:
        """Writes the gradient of Huber's loss between the values chosen and reward plus discounted best next value."""
        here_BO, next_BO = self.q_net.features_extractor(both_O).chunk(2)
        following_B = self._target.forward(next_BO).amax(dim=1)
        wanted_B = rewards_B + (1 - is_ruin_B) * self.gamma * following_B
        values_BA = self.network.stack.forward(here_BO)
        chosen_B1 = actions_B[:, None]
        missed_B1 = values_BA.gather(1, chosen_B1) - wanted_B[:, None]
        slopes_BA = torch.zeros_like(values_BA).scatter_(1, chosen_B1, missed_B1.clamp(-1, 1) / len(actions_B))
        self.network.stack.backward(slopes_BA)

    def _sample_action(self, learning_starts: int, action_noise: Any = None, n_envs: int = 1) -> tuple[Ints, Ints]:
        rate = 1.0 if self.num_timesteps < learning_starts else self.exploration_rate
        explores_N = self.chance.random(n_envs) < rate
        actions_N = self.chance.integers(0, len(POSITIONS), n_envs)
        self._held_N = self._last_obs[:, -1].copy()
        if not explores_N.all():
            with torch.no_grad():
                values_NA = self.q_net(torch.from_numpy(self._last_obs).to(self.device))
            actions_N = np.where(explores_N, actions_N, values_NA.argmax(dim=1).cpu().numpy())
        return actions_N, actions_N

    def _store_transition(
        self,
        replay_buffer: RowReplay,
        buffer_action: Ints,
        new_obs: Floats32,
        reward: Floats32,
        dones: Bools,
        infos: list[dict[str, Any]],
    ) -> None:
        cut_N = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        replay_buffer.keep(
            rows_N=self.env.decided_N,
            held_N=self._held_N,
            actions_N=buffer_action,
            rewards_N=reward,
            ended_N=dones,
            ruined_N=dones & ~cut_N,
        )
        self._last_obs = new_obs

    def state(self) -> dict[str, np.ndarray]:
        """Replay buffer, exploration and counters beside what all have."""
        counters = [self.num_timesteps, self._n_updates, self._n_calls, self._episode_num]
        return (
            super().state()
            | {f"replay.{name}": value for name, value in self.replay_buffer.state().items()}
            | {"random.exploration": generator_words(self.chance), "counters": np.array(counters, dtype=np.int64)}
        )

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self.num_timesteps, self._n_updates, self._n_calls, self._episode_num = map(int, arrays["counters"])
        super().restore(arrays)
        self.replay_buffer.restore(below("replay.", arrays))
        self.chance = generator_of(arrays["random.exploration"])
        self.exploration_rate = self.exploration_schedule(self._current_progress_remaining)
