"""`GET /compare`: several versions side by side, on the rows of their test parts that all of them answered."""

from typing import Literal

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.evaluation import SignificanceTest

SkillAgainst = Literal["no_change", "mean_of_rows", "frequencies_of_rows"]
"""Of price changes zero; of volatilities the mean, of classes the frequencies of the compared rows themselves."""


class ComparedFigures(Contract):
    """One version's figures on the common rows."""

    model_id: str
    version: str
    href: str
    target: str | None
    verdict: str = Field(description="Of its card, on its own whole test part.")
    num_rows: int = Field(description="Rows of its test part that it answered, common or not.")
    loss: Literal["squared_error", "brier"] | None = Field(description="Null where nothing is forecast.")
    mean_loss: Finite | None = Field(description="Over the common rows with an outcome.")
    skill: Finite | None = Field(description="1 - `mean_loss` ÷ that of `skill_against`, on the same rows.")
    skill_against: SkillAgainst | None
    coverage: Finite | None = Field(description="Share of outcomes inside the interval; null without one.")
    net_log_return: Finite | None = Field(
        description="Sum over the common rows, symbols in equal weights; each row pays the costs of its own position's "
        "changes. Null where nothing is traded."
    )
    sharpe: Finite | None = Field(description="Of daily net returns on the common rows, per year.")
    hit_rate: Finite | None = Field(description="Share of held positions whose gross return is above zero.")


class ComparedPair(Contract):
    """Two of the versions against each other."""

    a: str = Field(description="`<model_id>@<version>`.")
    b: str
    correlation: Finite | None = Field(description="Of predictions on common rows; null where one never varies.")
    diebold_mariano: SignificanceTest | None = Field(
        description="Of loss of `a` less that of `b` by moment; `p_value` is two-sided, a positive statistic speaks "
        "for `b`. Null where targets differ."
    )


class ComparisonReport(Contract):
    """The versions, their common rows, and each pair."""

    num_common_rows: int
    num_with_outcome: int = Field(description="Common rows with a label in every version that forecasts the target.")
    first: UtcDatetime
    last: UtcDatetime
    symbols: tuple[str, ...]
    versions: tuple[ComparedFigures, ...]
    pairs: tuple[ComparedPair, ...]
    notes: tuple[str, ...] = Field(description="What these figures cannot say, in sentences.")
