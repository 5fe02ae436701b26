"""`VectorPpo`: stable-baselines3's PPO over many environments, with a lean update (Schulman et al., arXiv:1707.06347).

Rollouts, advantages and bootstrapping at an episode's cut are stable-baselines3's. The update is the same arithmetic
with less around it: the window stage, which has nothing to learn, runs once a rollout instead of once a batch; the
gradient is written out; clipping and Adam are one operation each. A test holds it against stable-baselines3's own.

Legend: D decisions of a rollout, B of a batch, O numbers of an observation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.fitting.optimizer import ClippedAdam
from ml_workbench_service.reinforcement.policy_network import Layers, ObservedWindow, PolicyNetwork
from ml_workbench_service.reinforcement.sb3_environment import Later, MarketEnvironment, Watch, silent

SMALL = 1e-8


class _Policy(ActorCriticPolicy):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """Another name alone: for its own one stable-baselines3 advises against a GPU, which was somebody's choice."""


class VectorPpo(PPO):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """One rollout of all environments, then `passes` over it in batches, again and again.

    Args:
        environment: the environments.
        hyperparameters: those of the family `ppo`.
        is_level_F: the columns from which the window's mean is subtracted.
        total: decisions of the whole training.
        seed: decides every random number.
        device: a torch device.
        report: hears of every step and batch.
    """

    def __init__(
        self,
        environment: MarketEnvironment,
        hyperparameters: Any,
        *,
        is_level_F: tuple[bool, ...],
        total: int,
        seed: int,
        device: Any,
        report: Report,
    ) -> None:
        hyper = hyperparameters
        units = [hyper.ppo_units] * hyper.layers
        super().__init__(
            _Policy,
            environment,
            learning_rate=hyper.learning_rate,
            n_steps=hyper.rollout_steps,
            batch_size=hyper.rollout_steps * environment.num_envs,  # the batches are cut in `train`
            n_epochs=hyper.passes,
            gamma=hyper.discount_factor,
            gae_lambda=hyper.gae_lambda,
            clip_range=hyper.clip_range,
            ent_coef=hyper.entropy_coefficient,
            vf_coef=hyper.value_coefficient,
            policy_kwargs={
                "net_arch": {"pi": units, "vf": units},
                "features_extractor_class": ObservedWindow,
                "features_extractor_kwargs": {"is_level_F": is_level_F, "lookback": environment.envs.lookback},
                "optimizer_class": Later,
            },
            seed=seed,
            device=device,
        )
        self.set_logger(silent())
        self.minibatch_size = min(hyper.batch_size, self.rollout_size)
        self.total, self._report = total, report
        self.adam = ClippedAdam(self.policy, learning_rate=hyper.learning_rate)
        self.chance = torch.Generator().manual_seed(seed)
        actor, critic = (
            [each for each in layers if isinstance(each, nn.Linear)]
            for layers in (self.policy.mlp_extractor.policy_net, self.policy.mlp_extractor.value_net)
        )
        self._critic = Layers([*critic, self.policy.value_net], "tanh")
        self.network = PolicyNetwork(
            self.policy.features_extractor.stage,
            [*actor, self.policy.action_net],
            activation="tanh",
            gives_probabilities=True,
        )
        _, self._watch = self._setup_learn(total, Watch(report))

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
                self._report.check()
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
        """Everything that decides the rest of the training, as plain arrays."""
        environment: MarketEnvironment = self.env
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        tensors |= {f"adam.{name}": value for name, value in self.adam.state().items()}
        tensors["random.order"] = self.chance.get_state()
        arrays = {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}
        arrays |= {f"lanes.{name}": value for name, value in environment.state().items()}
        arrays["episode_starts"] = np.array(self._last_episode_starts)
        arrays["counters"] = np.array([self.num_timesteps, self._n_updates], dtype=np.int64)
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state."""
        restore_network(self.policy, self.adam, arrays, prefix="policy.")
        self.chance.set_state(torch.from_numpy(np.array(arrays["random.order"])))
        self._last_obs = self.env.restore(environment_of(arrays))
        self._last_episode_starts = np.array(arrays["episode_starts"])
        self.num_timesteps, self._n_updates = (int(each) for each in arrays["counters"])
        self._update_current_progress_remaining(self.num_timesteps, self.total)


def restore_network(network: nn.Module, adam: ClippedAdam, arrays: Mapping[str, np.ndarray], *, prefix: str) -> None:
    """Parameters, in place (they are views of one vector), and Adam's moments."""
    for name, value in network.state_dict().items():
        value.copy_(torch.from_numpy(np.array(arrays[prefix + name])))
    moments = {name: value for name, value in arrays.items() if name.startswith("adam.")}
    adam.restore({name.removeprefix("adam."): torch.from_numpy(np.array(value)) for name, value in moments.items()})


def environment_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The environments' part of a state."""
    return {name.removeprefix("lanes."): value for name, value in arrays.items() if name.startswith("lanes.")}
