"""`dqn`: a network of action values, trained by stable-baselines3's DQN over many environments."""

from typing import Any, ClassVar

from pydantic import Field

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Finite
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.reinforcement.policy_family import Budget, PolicyFamily, PolicyHyperparameters


class Dqn(PolicyFamily):
    """Deep Q-learning (Mnih et al., Nature 518, 2015), by stable-baselines3 over many environments.

    Outputs are the values of the three actions, discounted sums of rewards in units of the symbol's typical bar; the
    best is taken, flat among equals. Fails where returns carry no signal, and where `discount_factor` is so near to
    one that the noise of far rewards drowns the next one. Cost per decision: one gradient step for every
    `decisions_per_update`.
    """

    name: ClassVar[str] = "dqn"
    budget: ClassVar[Budget] = Budget(rows=1500, epochs=3)

    class Hyperparameters(PolicyHyperparameters):
        """Those of the algorithm, and its network's size."""

        learning_rate: Finite = Field(default=0.0005, gt=0, le=1, description="Step of Adam.")
        batch_size: int = Field(default=64, ge=1, le=65536, description="Decisions per gradient step.")
        dqn_units: int = Field(default=64, ge=1, le=2048, description="Hidden units of each layer.")
        layers: int = Field(default=2, ge=1, le=8, description="Hidden layers.")
        lanes: int = Field(default=16, ge=1, le=4096, description="Episodes side by side.")
        episode_length: int = Field(default=256, ge=1, le=1_000_000, description="Most decisions of an episode.")
        decisions_per_update: int = Field(default=4, ge=1, le=65536, description="Decisions for each gradient step.")
        memory: int = Field(default=50_000, ge=1, le=10_000_000, description="Decisions that are remembered.")
        learning_starts: int = Field(default=500, ge=0, le=1_000_000, description="Random decisions before learning.")
        target_interval: int = Field(
            default=1000, ge=1, le=10_000_000, description="Decisions after which the target network catches up."
        )
        exploration_rate: Finite = Field(default=1.0, ge=0, le=1, description="Share of random actions at the start.")
        exploration_minimum: Finite = Field(default=0.05, ge=0, le=1, description="Share of random actions at the end.")
        exploration_share: Finite = Field(
            default=0.1, gt=0, le=1, description="Share of the training over which exploration falls to its minimum."
        )

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Replayed decisions of the part `train`, the best walk over the part `stop`."""
        from ml_workbench_service.reinforcement.dqn import VectorDqn
        from ml_workbench_service.reinforcement.policy_training import train

        return train(
            VectorDqn,
            problem,
            hyperparameters=self.hyperparameters,
            outputs=("q_short", "q_flat", "q_long"),
            accelerator=accelerator,
            report=report,
        )

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, what is remembered (32 bytes a decision), and the windows of a walk and of a batch."""
        hyper: Any = self.hyperparameters
        window = 4 * (hyper.lookback * num_features + 1)
        weights = 4 * (window // 4 * hyper.dqn_units + hyper.layers * hyper.dqn_units**2) * 2
        batches = (3 * 4096 + 4 * hyper.batch_size) * window
        return int(num_rows * (num_features + 8) * 32 + hyper.memory * 32 + batches + 4 * weights)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, and the sanity runs; 0.6 ms a gradient step, 0.4 ms a decision."""
        hyper: Any = self.hyperparameters
        work = (hyper.lookback / 24 * hyper.dqn_units / 64 * hyper.batch_size / 64) ** 0.5 * hyper.layers / 2
        decision = (0.0006 / hyper.decisions_per_update + 0.0004 / hyper.lanes) * (0.5 + 0.5 * work)
        return float(45.0 + 0.5 * hyper.epochs * num_windows * decision)
