"""`ppo`: proximal policy optimisation, by stable-baselines3's PPO over many environments."""

from typing import TYPE_CHECKING

from ml_workbench_service.reinforcement.hyperparameters import PpoHyperparameters
from ml_workbench_service.reinforcement.policy_family import Budget, walk_bytes
from ml_workbench_service.reinforcement.policy_network_family import PolicyNetworkFamily

if TYPE_CHECKING:
    from ml_workbench_service.reinforcement.ppo import VectorPpo


ROLLOUT_COPIES = 8
"""As collected, as the network reads it, shuffled for a pass and for the one before, and what is made on the way."""


class Ppo(PolicyNetworkFamily[PpoHyperparameters]):
    """Proximal policy optimisation (Schulman et al., 2017, arXiv:1707.06347), by stable-baselines3 over many
    environments.

    Outputs are the probabilities of the three actions; the most probable one is taken. Fails where returns carry no
    signal: then it earns its costs, negative, or learns to stay flat. Cost per decision: `passes` gradient passes over
    two networks of `layers` x `ppo_units`.
    """

    name = "ppo"
    budget = Budget(rows=1500, epochs=4)
    outputs = ("p_short", "p_flat", "p_long")

    def algorithm(self) -> "type[VectorPpo]":
        """`VectorPpo`."""
        from ml_workbench_service.reinforcement.ppo import VectorPpo

        return VectorPpo

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, a rollout's windows, and the windows of a walk."""
        hyper = self.hyperparameters
        window = 4 * (hyper.lookback * num_features + 1)
        rollout = hyper.lanes * hyper.rollout_steps * window
        weights = 4 * (window // 4 * hyper.units + hyper.layers * hyper.units**2) * 2
        walk = walk_bytes(hyper.lookback, num_features)
        return int(num_rows * (num_features + 8) * 32 + ROLLOUT_COPIES * rollout + walk + 4 * weights)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, and the sanity runs; 0.5 ms a gradient step, 0.7 ms a decision."""
        hyper = self.hyperparameters
        work = (hyper.lookback / 24 * hyper.units / 64) ** 0.5 * hyper.layers / 2
        decision = (hyper.passes / hyper.batch_size * 0.0005 + 0.0007 / hyper.lanes) * (0.5 + 0.5 * work)
        return float(35.0 + 0.5 * hyper.epochs * num_windows * decision)
