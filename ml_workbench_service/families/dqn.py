"""`dqn`: deep Q-learning, by stable-baselines3's DQN over many environments."""

from typing import TYPE_CHECKING

from ml_workbench_service.reinforcement.hyperparameters import DqnHyperparameters
from ml_workbench_service.reinforcement.policy_family import Budget, walk_bytes
from ml_workbench_service.reinforcement.policy_network_family import PolicyNetworkFamily

if TYPE_CHECKING:
    from ml_workbench_service.reinforcement.dqn import VectorDqn


DECISION_BYTES = 32
MEMORY_COPIES = 2
"""The replay buffer, and its copy for a checkpoint."""


class Dqn(PolicyNetworkFamily[DqnHyperparameters]):
    """Deep Q-learning (Mnih et al., Nature 518, 2015), by stable-baselines3 over many environments.

    Outputs are the values of the three actions, discounted sums of rewards in units of the symbol's typical bar; the
    best is taken, flat among equals. Fails where returns carry no signal, and where `discount_factor` is so near to
    one that the noise of far rewards drowns the next one. Cost per decision: one gradient step for every
    `decisions_per_update`.
    """

    name = "dqn"
    budget = Budget(rows=1500, epochs=3)

    def algorithm(self) -> "type[VectorDqn]":
        """`VectorDqn`."""
        from ml_workbench_service.reinforcement.dqn import VectorDqn

        return VectorDqn

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, what is remembered, with its checkpoint, and the windows of a walk and of a batch."""
        hyper = self.hyperparameters
        window = 4 * (hyper.lookback * num_features + 1)
        weights = 4 * (window // 4 * hyper.units + hyper.layers * hyper.units**2) * 2
        batches = walk_bytes(hyper.lookback, num_features) + 4 * hyper.batch_size * window
        remembered = hyper.memory * DECISION_BYTES * MEMORY_COPIES
        return int(num_rows * (num_features + 8) * 32 + remembered + batches + 4 * weights)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, and the sanity runs; 0.6 ms a gradient step, 0.4 ms a decision."""
        hyper = self.hyperparameters
        work = (hyper.lookback / 24 * hyper.units / 64 * hyper.batch_size / 64) ** 0.5 * hyper.layers / 2
        decision = (0.0006 / hyper.decisions_per_update + 0.0004 / hyper.lanes) * (0.5 + 0.5 * work)
        return float(45.0 + 0.5 * hyper.epochs * num_windows * decision)
