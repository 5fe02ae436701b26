"""`q_learning`: tabular Q-learning over quantile bins of the features."""

from common_lib.exceptions import DataValidationError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.reinforcement.hyperparameters import TabularHyperparameters
from ml_workbench_service.reinforcement.policy_family import Budget, PolicyFamily, walk_bytes

MOST_BINS = 65_536
"""Market bins of a table: 14 MB while it learns; more would never be visited."""


class QLearning(PolicyFamily[TabularHyperparameters]):
    """Tabular Q-learning (Watkins and Dayan, Machine Learning 8, 1992) over quantile bins of the newest row.

    Outputs are the values of the three actions; the best is taken, flat among equals and wherever the table has never
    been. Fails with many features, whose bins are visited too seldom, and where the signal is older than the newest
    row. Cost: some 40 ns a row and epoch.
    """

    name = "q_learning"
    budget = Budget(rows=10_000, epochs=20)
    is_default = True

    def check_features(self, num_features: int) -> None:
        """The table must stay small enough to be visited."""
        hyper = self.hyperparameters
        if hyper.bins**num_features <= MOST_BINS:
            return
        fewer = next((bins for bins in range(hyper.bins - 1, 1, -1) if bins**num_features <= MOST_BINS), None)
        hint = "train dqn or ppo, which need no table" if fewer is None else f"send bins: {fewer}, or train dqn or ppo"
        raise DataValidationError.at(
            "body.hyperparameters.bins",
            f"{num_features} features in {hyper.bins} bins each make a table of over {MOST_BINS} bins; leave features "
            f"out, {hint}",
            code="table_too_large",
        )

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Passes over the training part in the order of time, the best walk over the validation part."""
        from ml_workbench_service.reinforcement.tabular_policy import train

        self.check_features(len(problem.windows.features))
        return train(problem, self.hyperparameters, outputs=self.outputs, report=report)

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, nine rewards of each, the table, and the windows of a walk."""
        hyper = self.hyperparameters
        table = min(hyper.bins**num_features, MOST_BINS) * 9 * 24
        return int(num_rows * (num_features * 16 + 9 * 8) + table + walk_bytes(hyper.lookback, num_features))

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, the sanity runs and the compiler's seconds."""
        hyper = self.hyperparameters
        return float(10.0 + 0.5 * hyper.epochs * num_windows * 2e-6)
