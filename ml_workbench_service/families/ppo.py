"""`ppo`: a stochastic policy and a critic, trained by stable-baselines3's PPO over many environments."""

from typing import Any, ClassVar

from pydantic import Field

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Finite
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.reinforcement.policy_family import Budget, PolicyFamily, PolicyHyperparameters


class Ppo(PolicyFamily):
    """Proximal policy optimisation (Schulman et al., 2017, arXiv:1707.06347), by stable-baselines3 over many
    environments.

    Outputs are the probabilities of the three actions; the most probable one is taken. Fails where returns carry no
    signal: then it earns its costs, negative, or learns to stay flat. Cost per decision: `passes` gradient passes over
    two networks of `layers` x `ppo_units`.
    """

    name: ClassVar[str] = "ppo"
    budget: ClassVar[Budget] = Budget(rows=1500, epochs=4)

    class Hyperparameters(PolicyHyperparameters):
        """Those of the algorithm, and its network's size."""

        learning_rate: Finite = Field(default=0.0003, gt=0, le=1, description="Step of Adam.")
        batch_size: int = Field(default=256, ge=2, le=65536, description="Decisions per gradient step.")
        ppo_units: int = Field(
            default=64, ge=1, le=2048, description="Hidden units of each layer of policy and critic."
        )
        layers: int = Field(default=2, ge=1, le=8, description="Hidden layers of policy and critic.")
        lanes: int = Field(default=32, ge=1, le=4096, description="Episodes side by side.")
        episode_length: int = Field(default=256, ge=1, le=1_000_000, description="Most decisions of an episode.")
        rollout_steps: int = Field(
            default=64, ge=2, le=65536, description="Decisions of each environment between two updates."
        )
        passes: int = Field(default=10, ge=1, le=100, description="Passes over each rollout.")
        clip_range: Finite = Field(default=0.2, gt=0, le=1, description="How far a probability may move in an update.")
        gae_lambda: Finite = Field(default=0.95, ge=0, le=1, description="Weight of later steps in an advantage.")
        entropy_coefficient: Finite = Field(default=0.01, ge=0, le=1, description="Weight of the policy's entropy.")
        value_coefficient: Finite = Field(default=0.5, ge=0, le=10, description="Weight of the critic's error.")

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Rollouts over the part `train`, the best walk over the part `stop`."""
        from ml_workbench_service.reinforcement.policy_training import train
        from ml_workbench_service.reinforcement.ppo import VectorPpo

        return train(
            VectorPpo,
            problem,
            hyperparameters=self.hyperparameters,
            outputs=("p_short", "p_flat", "p_long"),
            accelerator=accelerator,
            report=report,
        )

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, a rollout's windows three times, and the windows of a walk."""
        hyper: Any = self.hyperparameters
        window = 4 * (hyper.lookback * num_features + 1)
        rollout = hyper.lanes * hyper.rollout_steps * window
        weights = 4 * (window // 4 * hyper.ppo_units + hyper.layers * hyper.ppo_units**2) * 2
        return int(num_rows * (num_features + 8) * 32 + 3 * rollout + 3 * 4096 * window + 4 * weights)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, and the sanity runs; 0.5 ms a gradient step, 0.7 ms a decision."""
        hyper: Any = self.hyperparameters
        work = (hyper.lookback / 24 * hyper.ppo_units / 64) ** 0.5 * hyper.layers / 2
        decision = (hyper.passes / hyper.batch_size * 0.0005 + 0.0007 / hyper.lanes) * (0.5 + 0.5 * work)
        return float(35.0 + 0.5 * hyper.epochs * num_windows * decision)
