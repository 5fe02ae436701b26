"""Hyper-parameters of boosted trees, under LightGBM's own names. Free of lightgbm."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.learning.calibration.class_probabilities import ClassWeights
from ml_workbench_service.learning.interfaces.hyperparameters import Lookback

Columns = Literal["window_and_summary", "window", "summary"]
Direction = Literal["rising", "falling"]


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
