"""`PolicyAlgorithm`: what our variants of stable-baselines3's algorithms share: environments, network, Adam, one state.

    class VectorPpo(PolicyAlgorithm[PpoHyperparameters], PPO): ...

A variant says how its algorithm's arguments follow from its hyper-parameters (`options`) and which of its modules
decide (`actor`); everything that decides the rest of a training is in `state`, as plain arrays. stable-baselines3's own
save files hold pickles and are never written or read.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import nn

from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.fitting.optimizer import ClippedAdam
from ml_workbench_service.reinforcement.hyperparameters import PolicyNetworkHyperparameters
from ml_workbench_service.reinforcement.policy_network import Activation, ObservedWindow, PolicyNetwork
from ml_workbench_service.reinforcement.sb3_environment import MarketEnvironment

P = TypeVar("P", bound=PolicyNetworkHyperparameters)


class PolicyAlgorithm(BaseAlgorithm, Generic[P]):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """An algorithm that learns a policy from rollouts, over the environments it is given.

    Args:
        environment: the environments.
        hyperparameters: the family's.
        is_level_F: the columns from which the window's mean is subtracted.
        total: decisions of the whole training.
        seed: decides every random number.
        device: a torch device.
        report: hears of every step and batch.

    Attributes:
        network: what serves; it shares its layers with the algorithm.
        adam: steps everything that is learnt.
    """

    activation: ClassVar[Activation]
    gives_probabilities: ClassVar[bool] = False

    def __init__(
        self,
        environment: MarketEnvironment,
        hyperparameters: P,
        *,
        is_level_F: tuple[bool, ...],
        total: int,
        seed: int,
        device: Any,
        report: Report,
    ) -> None:
        hyper = hyperparameters
        super().__init__(
            env=environment,
            learning_rate=hyper.learning_rate,
            gamma=hyper.discount_factor,
            policy_kwargs={
                "net_arch": [hyper.units] * hyper.layers,
                "features_extractor_class": ObservedWindow,
                "features_extractor_kwargs": {"is_level_F": is_level_F, "lookback": environment.envs.lookback},
                "optimizer_class": _Later,
            },
            seed=seed,
            device=device,
            **self.options(environment, hyper, seed=seed),
        )
        self.set_logger(silent())
        self.total, self.report = total, report
        self.adam = ClippedAdam(self.learnt(), learning_rate=hyper.learning_rate)
        extractor, layers = self.actor()
        self.network = PolicyNetwork(
            extractor.stage, layers, activation=self.activation, gives_probabilities=self.gives_probabilities
        )
        _, self._watch = self._setup_learn(total, _Watch(report))

    @abstractmethod
    def options(self, environment: MarketEnvironment, hyperparameters: P, *, seed: int) -> dict[str, Any]:
        """Arguments of the algorithm beside those that all have."""

    def learnt(self) -> nn.Module:
        """What Adam steps."""
        policy: nn.Module = self.policy
        return policy

    @abstractmethod
    def actor(self) -> tuple[ObservedWindow, list[nn.Linear]]:
        """The features extractor and the layers that decide."""

    @property
    @abstractmethod
    def rollout_size(self) -> int:
        """Decisions between two updates."""

    @abstractmethod
    def rollout(self) -> None:
        """Collects decisions and learns from them."""

    def let_go(self) -> None:
        """Frees what was collected, once nothing is learnt from it any more.

        Algorithm, environments and callback hold each other, so that it would stay until Python looks for cycles: the
        sanity runs' forty trainings held a score of rollouts at a time.
        """
        for name in ("rollout_buffer", "replay_buffer"):
            if (buffer := getattr(self, name, None)) is not None:
                vars(buffer).clear()

    def state(self) -> dict[str, np.ndarray]:
        """Everything that decides the rest of the training, as plain arrays; a variant adds its own."""
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()}
        tensors |= {f"adam.{name}": value for name, value in self.adam.state().items()}
        arrays = {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}
        return arrays | {f"lanes.{name}": value for name, value in self.env.state().items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on from a state; a variant restores its counters first."""
        saved = below("policy.", arrays)
        for name, value in self.policy.state_dict().items():  # in place: the parameters are views of one vector
            value.copy_(torch.from_numpy(np.array(saved[name])))
        moments = below("adam.", arrays)
        self.adam.restore({name: torch.from_numpy(np.array(value)) for name, value in moments.items()})
        self._last_obs = self.env.restore(below("lanes.", arrays))
        self._update_current_progress_remaining(self.num_timesteps, self.total)


def below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def linear_layers(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    """The fully connected ones among them."""
    return [each for each in modules if isinstance(each, nn.Linear)]


def silent() -> Logger:
    """A logger that writes nowhere; stable-baselines3's own makes a folder for each training."""
    return Logger(folder=None, output_formats=[])


class _Watch(BaseCallback):  # type: ignore[misc]  # stable-baselines3 is not read by mypy
    """Looks for a cancellation at every step of the environments."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def _on_step(self) -> bool:
        self._report.check()
        return True


class _Later:
    """Stands where stable-baselines3 makes its optimizer, until the network lies on its device."""

    def __init__(self, parameters: Any, lr: float) -> None:
        self.learning_rate = lr
