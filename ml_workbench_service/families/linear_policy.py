"""`linear_policy`: the sign of a linear forecast where it is worth the round trip; what other policies must beat."""

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import LearningRate, NetworkHyperparameters
from ml_workbench_service.learning.networks.linear_family import WINDOW_COPIES
from ml_workbench_service.reinforcement.hyperparameters import PolicyHyperparameters
from ml_workbench_service.reinforcement.policy_family import Budget, PolicyFamily, walk_bytes


class Hyperparameters(NetworkHyperparameters, PolicyHyperparameters):
    """Hyper-parameters of `linear`, at a larger step: a policy's sanity runs have few rows to learn from."""

    learning_rate: LearningRate = 0.003


class LinearPolicy(PolicyFamily[Hyperparameters]):
    """Least squares forecast of the move that a decision is paid by, held by its sign where it pays a round trip.

    There to be compared with: a policy that beats it has found more than a weighted sum and a threshold. Trained as
    `linear` is, by gradient descent, and stopped early by the squared error of the validation part, which has less
    noise than what a walk over it earned. Outputs are what being short, flat or long is expected to earn until the next
    bar, net of opening and closing, in units of the symbol's typical bar; so what is held makes no difference. Without
    a signal it stays flat. Fails where trades are dear and forecasts last: it closes what `dqn` would keep (Garleanu
    and Pedersen, Journal of Finance 68, 2013). Of several symbols the threshold is the mean of theirs, in these units.
    """

    name = "linear_policy"
    budget = Budget(rows=10_000, epochs=40)
    outputs = ("net_short", "net_flat", "net_long")

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """The decisions of the training part that are paid inside it, the least error on the validation part's."""
        from ml_workbench_service.reinforcement.linear_policy import train

        return train(problem, self.hyperparameters, outputs=self.outputs, accelerator=accelerator, report=report)

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, the largest batch's windows, and those of a walk."""
        hyper = self.hyperparameters
        windows = max(hyper.batch_size, hyper.scored_windows(num_rows)) * hyper.lookback * num_features * 4
        return num_rows * (num_features + 8) * 32 + WINDOW_COPIES * windows + walk_bytes(hyper.lookback, num_features)

    def seconds(self, num_windows: int) -> float:
        """Half of the epochs asked for, at some 3,000 batches a second, and the sanity runs."""
        hyper = self.hyperparameters
        return 15.0 + 0.5 * hyper.epochs * num_windows / hyper.batch_size / 3000
