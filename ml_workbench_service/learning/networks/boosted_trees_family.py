"""`BoostedTreesFamily`: what the families of gradient-boosted trees share; their files add a name and what is learnt.

Hyper-parameters have LightGBM's own names. Free of lightgbm at import; training loads it.
"""

from collections.abc import Mapping, Sequence
from math import log2
from typing import ClassVar, Literal, TypeVar

from pydantic import Field

from common_lib.exceptions import DataValidationError
from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.training import TrainRequest
from ml_workbench_service.learning.calibration.class_probabilities import ClassWeights
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.hyperparameters import MIN_WINDOW, Lookback

Columns = Literal["window_and_summary", "window", "summary"]
Direction = Literal["rising", "falling"]
CELL_S = 1.2e-8
"""Seconds of a round for each window and column at 15 leaves, one thread."""
USUAL_FEATURES = 6
BINS = 255


class BoostedTreesHyperparameters(Contract):
    """LightGBM's, what it reads of a window, and the window."""

    lookback: Lookback = 24
    columns: Columns = Field(
        default="window_and_summary",
        description="What the trees read: every row of the window, or each feature's newest value, mean and slope, or "
        "both.",
    )
    num_iterations: int = Field(default=500, ge=1, le=10_000, description="Most rounds of boosting.")
    learning_rate: Finite = Field(default=0.05, gt=0, le=1, description="What each round's trees count.")
    early_stopping_rounds: int = Field(
        default=50, ge=1, le=10_000, description="Rounds without improvement on the validation part before it ends."
    )
    num_leaves: int = Field(default=15, ge=2, le=1024, description="Leaves of a tree.")
    min_data_in_leaf: int = Field(default=50, ge=1, le=100_000, description="Fewest training windows of a leaf.")
    bagging_fraction: Finite = Field(
        default=0.8, gt=0, le=1, description="Share of the training windows that each round draws."
    )
    feature_fraction: Finite = Field(default=0.8, gt=0, le=1, description="Share of the columns that each tree draws.")
    lambda_l2: Finite = Field(default=1.0, ge=0, le=1e6, description="L2 penalty of the leaves' values.")

    @property
    def monotone_directions(self) -> Mapping[str, Direction]:
        """By feature; none unless a family has the field."""
        return {}

    @property
    def class_weighting(self) -> ClassWeights:
        """Of a classifier."""
        return "none"


B = TypeVar("B", bound=BoostedTreesHyperparameters, covariant=True)


class BoostedTreesFamily(Family[B], abstract=True):
    """Gradient-boosted trees over the flattened window and its summary."""

    min_window: ClassVar[int] = MIN_WINDOW

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
        from ml_workbench_service.learning.networks.boosted_trees import train_boosted_trees

        return train_boosted_trees(problem, self.hyperparameters, accelerator=accelerator, report=report)

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """The rows, the matrix with its bins, the leaves' histograms, and the trees as objects, text and graph."""
        hyper = self.hyperparameters
        columns = self._columns_a_feature * num_features
        histograms = hyper.num_leaves * columns * BINS * 16
        return (
            num_rows * (num_features * 16 + columns * 6 + 192)
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
