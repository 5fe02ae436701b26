"""Permutation importance: what a version's forecasts lose where one of its columns tells nothing any more."""

from typing import Literal

from pydantic import Field

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract, Finite, ModelId, Semver
from ml_workbench_service.contracts.desk_report import Estimate
from ml_workbench_service.contracts.training import JobPriority

ImportancePart = Literal["calibration", "test"]


class ImportanceRequest(Asked):
    """`POST /models/{id}/versions/{v}/importance`."""

    part: ImportancePart = Field(
        default="calibration",
        description="On the `test` part each column is a hypothesis, which counts in every verdict there from then on.",
    )
    num_repeats: int = Field(default=10, ge=1, le=100, description="Permutations of each column.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    priority: JobPriority = Field(default=JobPriority.NORMAL, description="Among the waiting jobs of the same key.")


class ImportanceOrder(ImportanceRequest):
    """The request, as the job keeps it."""

    model_id: ModelId
    version: Semver


class ColumnImportance(Contract):
    """One column, permuted over the whole lookback."""

    name: str
    loss_added: Estimate = Field(
        description="Loss with the column permuted less the loss as it is, and its HAC error; around 0: the forecasts "
        "do without it. One column of two that say the same is done without."
    )
    share_of_loss: Finite | None = Field(description="`loss_added` over the loss as it is.")
    adjusted_p_value: Finite | None = Field(description="One-sided, of adding loss, after all columns (Holm).")


class ImportanceReport(Contract):
    """The `result` of an importance job."""

    model_id: str
    version: str
    part: ImportancePart
    loss: Literal["squared_error", "brier"]
    mean_loss: Finite
    num_rows: int
    num_repeats: int
    block_bars: int = Field(description="Windows that keep their order: lookback and the label's reach together.")
    columns: tuple[ColumnImportance, ...] = Field(description="The one that adds most first.")
    num_counted: int = Field(description="Hypotheses on the test part that were noted for it, before it was looked at.")
