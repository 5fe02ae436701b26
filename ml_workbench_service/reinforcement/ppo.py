"""Proximal policy optimisation: `VectorPpo`, stable-baselines3's PPO over many environments, with a lean update.

Schulman et al., 2017, arXiv:1707.06347. Rollouts, advantages and bootstrapping at an episode's cut are
stable-baselines3's. The update is the same arithmetic with less around it: the window stage, which has nothing to
learn, runs once a rollout instead of once a batch; the gradient is written out; clipping and Adam are one operation
each. A test holds it against stable-baselines3's own.

Legend: D decisions of a rollout, B of a batch, O numbers of an observation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from ml_workbench_service.reinforcement.hyperparameters import PpoHyperparameters
from ml_workbench_service.reinforcement.policy_algorithm import PolicyAlgorithm, linear_layers
from ml_workbench_service.reinforcement.policy_network import Layers, ObservedWindow
from ml_workbench_service.reinforcement.sb3_environment import MarketEnvironment

SMALL = 1e-8


class _Policy(ActorCriticPolicy):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """Another name alone: for its own one stable-baselines3 advises against a GPU, which was somebody's choice."""


class VectorPpo(PolicyAlgorithm[PpoHyperparameters], PPO):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """One rollout of all environments, then `passes` over it in batches, again and again."""

    activation = "tanh"
    gives_probabilities = True

    def __init__(
        self, environment: MarketEnvironment, hyperparameters: PpoHyperparameters, *, seed: int, **run: Any
    ) -> None:
        super().__init__(environment, hyperparameters, seed=seed, **run)
        self.minibatch_size = min(hyperparameters.batch_size, self.rollout_size)
        self.chance = torch.Generator().manual_seed(seed)
        critic = linear_layers(self.policy.mlp_extractor.value_net)
        self._critic = Layers([*critic, self.policy.value_net], self.activation)

    def options(
        self, environment: MarketEnvironment, hyperparameters: PpoHyperparameters, *, seed: int
    ) -> dict[str, Any]:
        """One batch a rollout: the batches are cut in `train`."""
        hyper = hyperparameters
        return {
            "policy": _Policy,
            "n_steps": hyper.rollout_steps,
            "batch_size": hyper.rollout_steps * environment.num_envs,
            "n_epochs": hyper.passes,
            "gae_lambda": hyper.gae_lambda,
            "clip_range": hyper.clip_range,
            "ent_coef": hyper.entropy_coefficient,
            "vf_coef": hyper.value_coefficient,
        }

    def actor(self) -> tuple[ObservedWindow, list[nn.Linear]]:
        """Of the policy, not of its critic."""
        layers = [*linear_layers(self.policy.mlp_extractor.policy_net), self.policy.action_net]
        return self.policy.features_extractor, layers

    @property
    def rollout_size(self) -> int:
        """Decisions of a rollout."""
        return int(self.n_steps * self.n_envs)

    def rollout(self) -> None:
        """Collects one rollout and learns from it."""
        self.collect_rollouts(self.env, self._watch, self.rollout_buffer, self.n_steps)
        self._update_current_progress_remaining(self.num_timesteps, self.total)
        self.train()

    def train(self) -> None:
        """All passes over the rollout at hand, in random batches."""
        self.policy.set_training_mode(True)
        buffer, size = self.rollout_buffer, self.rollout_size
        observations_DO = torch.from_numpy(buffer.observations.reshape(size, -1)).to(self.device)
        actions_D, log_prob_D, advantages_D, returns_D = (
            torch.from_numpy(each.reshape(size)).to(self.device)
            for each in (buffer.actions, buffer.log_probs, buffer.advantages, buffer.returns)
        )
        with torch.no_grad():
            inputs_DO = self.policy.features_extractor(observations_DO)
        clip = float(self.clip_range(self._current_progress_remaining))
        for _ in range(self.n_epochs):
            order = torch.randperm(size, generator=self.chance).to(self.device)
            shuffled = (inputs_DO, actions_D.long(), log_prob_D, advantages_D, returns_D)
            for batch in zip(*(torch.split(each[order], self.minibatch_size) for each in shuffled), strict=True):
                self.report.check()
                self.differentiate(*batch, clip=clip)
                self.adam.step()
            self._n_updates += 1

    @torch.no_grad()
    def differentiate(
        self,
        inputs_BO: Tensor,
        actions_B: Tensor,
        old_log_prob_B: Tensor,
        advantages_B: Tensor,
        returns_B: Tensor,
        *,
        clip: float,
    ) -> None:
        """Writes the gradient of the clipped surrogate, the entropy's bonus and the value's squared error."""
        size = len(actions_B)
        log_probs_BA = torch.log_softmax(self.network.stack.forward(inputs_BO), dim=1)
        probs_BA, chosen_B1 = log_probs_BA.exp(), actions_B[:, None]
        if size > 1:
            deviation, mean = torch.std_mean(advantages_B)
            advantages_B = (advantages_B - mean) / (deviation + SMALL)
        ratio_B = torch.exp(log_probs_BA.gather(1, chosen_B1)[:, 0] - old_log_prob_B)
        gain_B = advantages_B * ratio_B
        is_clipped_B = gain_B > advantages_B * ratio_B.clamp(1 - clip, 1 + clip)
        slope_B1 = gain_B.masked_fill(is_clipped_B, 0.0)[:, None]
        entropy_B1 = -torch.linalg.vecdot(probs_BA, log_probs_BA)[:, None]
        slopes_BA = probs_BA * (slope_B1 + self.ent_coef * (log_probs_BA + entropy_B1))
        slopes_BA.scatter_add_(1, chosen_B1, -slope_B1)
        self.network.stack.backward(slopes_BA / size)
        missed_B = self._critic.forward(inputs_BO)[:, 0] - returns_B
        self._critic.backward(missed_B[:, None] * (2 * self.vf_coef / size))

    def state(self) -> dict[str, np.ndarray]:
        """The order of batches and counters beside what all have."""
        return super().state() | {
            "random.order": self.chance.get_state().numpy().copy(),
            "episode_starts": np.array(self._last_episode_starts),
            "counters": np.array([self.num_timesteps, self._n_updates], dtype=np.int64),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        self.num_timesteps, self._n_updates = (int(each) for each in arrays["counters"])
        super().restore(arrays)
        self.chance.set_state(torch.from_numpy(np.array(arrays["random.order"])))
        self._last_episode_starts = np.array(arrays["episode_starts"])
