"""`BoostedTreesFamily`: what the families of gradient-boosted trees share; their files add a name and what is learnt.

Free of lightgbm at import; training loads it.
"""

from collections.abc import Sequence
from math import log2
from typing import ClassVar, TypeVar

from common_lib.exceptions import DataValidationError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.learning.interfaces.family import TORCH_BYTES, Family, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import MIN_WINDOW
from ml_workbench_service.learning.networks.boosted_trees.hyperparameters import BoostedTreesHyperparameters

CELL_S = 1.2e-8
"""Seconds of a round for each window and column at 15 leaves, one thread."""
USUAL_FEATURES = 6
BINS = 255
CELL_BYTES = 11
"""Of a window and column: four of the matrix, one of its bin, and what LightGBM holds of both while it makes bins."""
LIGHTGBM_BYTES = 30_000_000
"""Resident pages of LightGBM and scikit-learn; measured."""


B = TypeVar("B", bound=BoostedTreesHyperparameters, covariant=True)


class BoostedTreesFamily(Family[B], abstract=True):
    """Gradient-boosted trees over the flattened window and its summary."""

    min_window: ClassVar[int] = MIN_WINDOW
    weighs_samples: ClassVar[bool] = True
    explains_answers: ClassVar[bool] = True
    library_bytes = TORCH_BYTES + LIGHTGBM_BYTES

    def check_request(self, request: TrainRequest, features: Sequence[str]) -> None:
        """Monotone features must be among those read; LightGBM renews the leaves of quantiles, which breaks them."""
        path = "body.hyperparameters.monotone"
        directions = self.hyperparameters.monotone_directions
        for name in directions:
            if name not in features:
                raise DataValidationError.at(
                    path, f"the model does not read {name}; name features of the request: {', '.join(features)}"
                )
        if directions and request.quantiles:
            raise DataValidationError.at(
                path, "quantiles cannot be monotone in LightGBM; leave out `monotone`, or `quantiles`"
            )

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """Boosting with early stopping on the validation part, on the processor whatever the accelerator."""
        from ml_workbench_service.learning.networks.boosted_trees.training import train_boosted_trees

        return train_boosted_trees(problem, self.hyperparameters, accelerator=accelerator, report=report)

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, the matrix, the leaves' histograms, and the trees as objects, text and graph."""
        hyper = self.hyperparameters
        columns = self._columns_a_feature * num_features
        histograms = hyper.num_leaves * columns * BINS * 16
        return (
            num_rows * (num_features * 16 + columns * CELL_BYTES + 192)
            + histograms
            + hyper.num_iterations * hyper.num_leaves * 600
        )

    def seconds(self, num_windows: int) -> float:
        """The libraries' seconds, and half of the rounds asked for."""
        hyper = self.hyperparameters
        cells = num_windows * self._columns_a_feature * USUAL_FEATURES
        return float(8.0 + 0.5 * hyper.num_iterations * (0.001 + cells * CELL_S * log2(hyper.num_leaves) / 4))

    @property
    def _columns_a_feature(self) -> int:
        return (0 if self.hyperparameters.columns == "summary" else self.hyperparameters.lookback) + 3
