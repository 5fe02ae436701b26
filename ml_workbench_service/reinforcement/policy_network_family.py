"""`PolicyNetworkFamily`: what the families share that train a policy network (PPO, DQN). Free of torch at import."""

from abc import abstractmethod
from typing import TYPE_CHECKING, TypeVar

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.reinforcement.hyperparameters import PolicyNetworkHyperparameters
from ml_workbench_service.reinforcement.policy_family import PolicyFamily

if TYPE_CHECKING:
    from ml_workbench_service.reinforcement.policy_algorithm import PolicyAlgorithm

N = TypeVar("N", bound=PolicyNetworkHyperparameters, covariant=True)


class PolicyNetworkFamily(PolicyFamily[N], abstract=True):
    """Learns a policy network by one of the algorithms over many environments."""

    @abstractmethod
    def algorithm(self) -> "type[PolicyAlgorithm[N]]":
        """What trains; loads torch."""

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Decisions of the training part, the best walk over the validation part."""
        from ml_workbench_service.reinforcement.policy_training import train

        return train(
            self.algorithm(), problem, self.hyperparameters, outputs=self.outputs, accelerator=accelerator,
            report=report,
        )  # fmt: skip
