"""Hyper-parameters of gradient descent with early stopping, typed once for every family that has them. Free of torch.

A field is its type and its default: `batch_size: BatchSize = 32`. Bounds and the sentence that `GET /model-types` shows
belong to the type.
"""

from typing import Annotated

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.learning.data.windows import SCORING_ROWS

MIN_WINDOW = 3
"""Networks train on windows from this length up, so that a short request is no foreign input."""

LearningRate = Annotated[Finite, Field(gt=0, le=1, description="Step of Adam.")]
BatchSize = Annotated[int, Field(ge=1, le=65536, description="Windows per gradient step.")]
Epochs = Annotated[int, Field(ge=1, le=10_000, description="Most passes over the training part.")]
Lookback = Annotated[int, Field(ge=MIN_WINDOW, le=1024, description="Rows of a window, oldest first.")]
Patience = Annotated[
    int, Field(ge=1, le=10_000, description="Epochs without improvement on the validation part before training ends.")
]
Units = Annotated[int, Field(ge=1, le=2048, description="Hidden units of each layer.")]
AlarmRate = Annotated[
    Finite, Field(gt=0, le=0.5, description="Share of ordinary windows that may alarm; sets the threshold.")
]


SCORED_SHARE = 0.15
"""Of all rows: the test part, of the usual and of the larger splits."""


def scored_windows(num_rows: int, lookback: int) -> int:
    """Windows that a network is asked about at once: a batch of them, or the whole test part where that is smaller."""
    return max(1, min(SCORING_ROWS // lookback, int(num_rows * SCORED_SHARE)))


class NetworkHyperparameters(Contract):
    """Hyper-parameters of every torch network over windows; a family adds its sizes and changes defaults."""

    learning_rate: LearningRate = 0.001
    batch_size: BatchSize = 256
    epochs: Epochs = 100
    lookback: Lookback = 24
    patience: Patience = 10

    def scored_windows(self, num_rows: int) -> int:
        """Windows of the largest batch that is scored."""
        return scored_windows(num_rows, self.lookback)
