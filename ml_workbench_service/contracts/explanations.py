"""Explanations of single answers: what each feature added to what a model's trees said."""

from typing import Any, Literal

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite
from ml_workbench_service.contracts.prediction import PredictionRecord


class OutputExplanation(Contract):
    """One output taken apart: `base` and all `contributions` add up to `raw`."""

    output: str = Field(description="Its name: a target, a target's quantile, or a class.")
    base: Finite = Field(description="What the trees say in the mean over their training windows.")
    contributions: dict[str, Finite] = Field(
        description="What each feature adds, over all rows of the window, mean and slope included; largest first."
    )
    raw: Finite = Field(description="What the trees say here, before calibration and before quantiles are sorted.")


class Explanation(Contract):
    """Why the trees said what they said: SHAP values (Lundberg et al., Nature Machine Intelligence 2, 2020), exact."""

    method: Literal["tree_shap"] = "tree_shap"
    unit: Literal["target", "logit"] = Field(
        description="`target`: of the target, as the record's outputs are; `logit`: of a class, before temperature and "
        "softmax make it a probability."
    )
    outputs: tuple[OutputExplanation, ...] = Field(description="In the model's order.")


class ExplainedRecord(PredictionRecord):
    """The answer of `/predict?explain=true`: the record, as it enters the queue, and beside it the reasons."""

    explanation: Explanation | None = Field(
        default=None, description="With `explain=true` alone; null of an abstention, which states nothing."
    )


class BatchAnswer(Contract):
    """Records and, where an item failed, error bodies, in the order of the items; records explained on request."""

    predictions: tuple[ExplainedRecord | dict[str, Any], ...]


class ExplanationTask(Contract):
    """Scaled windows (N, T, F) of one version to be explained; they come behind the order, as `<f4`.

    The answer is (N, K, F + 1) as `<f8`, bases last, in the network's own units.
    """

    kind: Literal["explanation"] = "explanation"
    folder: str = Field(description="The bundle's.")
    digest: str = Field(description="What the bundle must be.")
    num_windows: int
    num_rows: int
    num_features: int
