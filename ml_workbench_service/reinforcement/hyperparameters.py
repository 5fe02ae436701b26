"""Hyper-parameters of reinforcement learning, typed for the algorithms that read them. Free of torch and numba.

`lanes` is the wire's name for parallel environments.
"""

from abc import abstractmethod
from typing import Annotated

from pydantic import Field

from ml_workbench_service.contracts.agents import QLearningHyperparameters
from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.learning.interfaces.hyperparameters import LearningRate, Lookback

WALK_CHUNK = 4096
"""Rows that a walk asks about at once."""
Lanes = Annotated[int, Field(ge=1, le=4096, description="Episodes side by side.")]
Rate = Annotated[Finite, Field(ge=0, le=1)]


class PolicyHyperparameters(Contract):
    """Hyper-parameters of every policy."""

    epochs: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="Most epochs; one has about as many decisions as the training part has rows.",
    )
    patience: int = Field(
        default=10, ge=1, le=10_000, description="Epochs without a better walk over the validation part until the end."
    )
    lookback: Lookback = 24


class FarsightedHyperparameters(PolicyHyperparameters):
    """Hyper-parameters of a policy that weighs what may be earned after the next bar."""

    discount_factor: Finite = Field(default=0.9, ge=0, lt=1, description="Weight of the next state's value.")


class PolicyNetworkHyperparameters(FarsightedHyperparameters):
    """Hyper-parameters of a policy that is a network, trained over many environments."""

    learning_rate: LearningRate = 0.0003
    batch_size: int = Field(default=256, ge=2, le=65536, description="Decisions per gradient step.")
    layers: int = Field(default=2, ge=1, le=8, description="Hidden layers of each network.")
    lanes: Lanes = 32
    episode_length: int = Field(default=256, ge=1, le=1_000_000, description="Most decisions of an episode.")

    @property
    @abstractmethod
    def units(self) -> int:
        """Hidden units of each layer, under whatever name."""


class DqnHyperparameters(PolicyNetworkHyperparameters):
    """Hyper-parameters of deep Q-learning: replay, target network, exploration."""

    learning_rate: LearningRate = 0.0005
    batch_size: int = Field(default=64, ge=1, le=65536, description="Decisions per gradient step.")
    lanes: Lanes = 16
    dqn_units: int = Field(default=64, ge=1, le=2048, description="Hidden units of each layer.")
    decisions_per_update: int = Field(default=4, ge=1, le=65536, description="Decisions for each gradient step.")
    memory: int = Field(default=50_000, ge=1, le=10_000_000, description="Decisions that are remembered.")
    learning_starts: int = Field(default=500, ge=0, le=1_000_000, description="Random decisions before learning.")
    target_interval: int = Field(
        default=1000, ge=1, le=10_000_000, description="Decisions after which the target network catches up."
    )
    exploration_rate: Rate = Field(default=1.0, description="Share of random actions at the start.")
    exploration_minimum: Rate = Field(default=0.05, description="Share of random actions at the end.")
    exploration_share: Finite = Field(
        default=0.1, gt=0, le=1, description="Share of the training over which exploration falls to its minimum."
    )

    @property
    def units(self) -> int:
        """`dqn_units`."""
        return self.dqn_units


class PpoHyperparameters(PolicyNetworkHyperparameters):
    """Hyper-parameters of proximal policy optimisation: rollouts, clipping, the loss's weights."""

    ppo_units: int = Field(default=64, ge=1, le=2048, description="Hidden units of each layer of policy and critic.")
    rollout_steps: int = Field(
        default=64, ge=2, le=65536, description="Decisions of each environment between two updates."
    )
    passes: int = Field(default=10, ge=1, le=100, description="Passes over each rollout.")
    clip_range: Finite = Field(default=0.2, gt=0, le=1, description="How far a probability may move in an update.")
    gae_lambda: Rate = Field(default=0.95, description="Weight of later steps in an advantage.")
    entropy_coefficient: Rate = Field(default=0.01, description="Weight of the policy's entropy.")
    value_coefficient: Finite = Field(default=0.5, ge=0, le=10, description="Weight of the critic's error.")

    @property
    def units(self) -> int:
        """`ppo_units`."""
        return self.ppo_units


class TabularHyperparameters(FarsightedHyperparameters):
    """Hyper-parameters of tabular Q-learning: the update's step, exploration, and the bins."""

    learning_rate: Finite = Field(default=0.02, gt=0, le=1, description="Step of the Q update.")
    exploration_rate: Rate = Field(default=1.0, description="Share of random actions at the start.")
    exploration_decay: Finite = Field(default=0.9999, gt=0, le=1, description="Factor on it after every decision.")
    exploration_minimum: Rate = Field(default=0.05, description="Exploration never falls below this.")
    bins: int = Field(default=4, ge=2, le=64, description="Bins of each feature, by quantiles of the training part.")

    def of_run(self, seed: int) -> QLearningHyperparameters:
        """What one run over a table needs of them."""
        own = self.model_dump(include=set(QLearningHyperparameters.model_fields))
        return QLearningHyperparameters(**own, seed=seed)
