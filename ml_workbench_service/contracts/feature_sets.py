"""Feature sets: the product of a feature search, an ordered list of expressions that later trainings name.

A training asks for one as `"features": ["@eurusd_features_v1"]`, or for a version of it as `@eurusd_features_v1:1.2.0`.
The expressions are text in the grammar of docs/expressions.md, never code; what reads them parses them.
"""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ml_workbench_service.contracts.contract import Contract, Finite, ModelId, Semver, Symbol, Timeframe, UtcDatetime
from ml_workbench_service.contracts.market import FeatureKind

FEATURE_NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_.]{0,63}$"
REFERENCE_PATTERN = r"^@[a-z0-9][a-z0-9_.-]{0,63}(:(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5}))?$"

Rejection = Literal["constant", "below_chance", "unstable", "near_copy", "not_needed"]
"""Why a candidate is not in the set: it hardly varies or is mostly missing; its score is no better than on shuffled
targets; resampled data do not choose it; another one says the same; the set was full."""


class FeatureExpression(Contract):
    """One column of a set; scores are in nats a row."""

    name: Annotated[str, Field(pattern=FEATURE_NAME_PATTERN, description="Of the column, in requests and cards.")]
    expression: Annotated[str, Field(min_length=1, max_length=200, description="Canonical text of the grammar.")]
    kind: FeatureKind
    score: Finite | None = Field(default=None, description="Mean held-out information with the target.")
    score_by_fold: tuple[Finite, ...] = ()
    stability: Annotated[Finite, Field(ge=0, le=1)] | None = Field(
        default=None, description="Share of block-bootstrap samples that choose it or a near copy."
    )


class RejectedCandidate(Contract):
    """A candidate that did not get in, and why."""

    expression: str
    reason: Rejection
    score: Finite | None = None
    stability: Finite | None = None
    near_copy_of: str | None = Field(default=None, description="The chosen expression that says the same.")
    shared: Finite | None = Field(default=None, description="Share of information in common with it.")


class SelectionWindow(Contract):
    """Which data chose the set: a test part that reaches into them proves nothing for models that use it."""

    start: UtcDatetime = Field(description="When the first row used was known.")
    end: UtcDatetime = Field(description="When the last label used was known.")
    num_rows: int
    num_candidates: int
    chance_level: Finite = Field(description="What the best candidate reaches on shuffled targets once in 40 times.")
    seed: int


class FeatureSet(Contract):
    """An ordered list of expressions with what they need, and the data that selected them."""

    id: ModelId
    version: Semver
    symbols: tuple[Symbol, ...] = Field(min_length=1)
    timeframe: Timeframe
    target: str
    expressions: tuple[FeatureExpression, ...] = Field(min_length=1)
    base_columns: tuple[str, ...] = Field(description="What is fetched to evaluate them.")
    history: Annotated[int, Field(ge=0, description="Bars before a row that its values depend on.")]
    selection: SelectionWindow
    rejected: tuple[RejectedCandidate, ...] = Field(default=(), description="The best of those not chosen.")
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(each.name for each in self.expressions)

    @model_validator(mode="after")
    def _no_twins(self) -> "FeatureSet":
        for field in ("name", "expression"):
            values = [getattr(each, field) for each in self.expressions]
            if len(set(values)) != len(values):
                raise ValueError(f"an expression's {field} stands twice; list each once")
        return self


def is_reference(feature: str) -> bool:
    """Whether an entry of a request's `features` names a feature set."""
    return feature.startswith("@")


def parse_reference(feature: str) -> tuple[str, str | None]:
    """`@eurusd_features_v1:1.2.0` → id and version, None for the one that is served.

    Raises:
        ValueError: not such a name.
    """
    if not re.fullmatch(REFERENCE_PATTERN, feature) or ".." in feature:
        raise ValueError("a feature set is named as @id or @id:version, such as @eurusd_features_v1 or @eurusd:1.2.0")
    model_id, _, version = feature[1:].partition(":")
    return model_id, version or None
