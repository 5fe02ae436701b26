"""Multiple-testing log: two append-only counters that nobody can type in, of trials on validation parts and of test-set
evaluations.

A part is named by what it is, an interval of time, symbols and a subject, never by a model's name: training again under
another id, or over a slightly different range, reads the same data again, and counts. Lopez de Prado, "The deflated
Sharpe ratio", Journal of Portfolio Management 40 (2014): a figure means little without the number of tries behind it.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from pydantic import Field, field_validator

from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.training import Target

Subject = Literal["price", "volatility", "regime", "simulated"]
"""What is bet on, at all horizons and in all wordings: who tries twenty horizons has tried twenty times. Whatever is
found in simulated prices tells nothing of real ones, and is counted apart."""


def subject_of(targets: Sequence[Target], *, is_simulated: bool = False) -> Subject:
    """By the headline target; policies, which have none, bet on the price."""
    if is_simulated:
        return "simulated"
    if not targets:
        return "price"
    measure = targets[0].measure
    return "volatility" if measure == "volatility" else "regime" if measure == "market_regime" else "price"


class PartRead(Contract):
    """One reading of one part, by one job or trial."""

    id: str = Field(
        description="The job's, `job/trial` or `job/agent/setting`; the same id counts once, whatever is killed and "
        "resumed."
    )
    subject: Subject
    symbols: tuple[str, ...]
    start_ms: int
    end_ms: int
    at: UtcDatetime
    model_id: str = ""

    @field_validator("symbols")
    @classmethod
    def _one_name_a_pair(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        """USD/EUR are the prices of EUR/USD: each pair under its currencies in alphabetic order."""
        return tuple(sorted({"/".join(sorted(each.split("/"))) for each in symbols}))


class Trial(Contract):
    """A trial: the reading of a validation part, and what its signal earned there."""

    read: PartRead
    sharpe: Finite | None = Field(default=None, description="Of daily net returns, per day (not annualised).")
    daily_returns: dict[str, Finite] = Field(
        default_factory=dict,
        description="Net log return of each FX day, by the date of its end, as 2024-03-01; empty without a signal.",
    )


class MultipleTestingLog(Protocol):
    """Both counters. Writing returns only when it is on disk."""

    def record_evaluation(self, read: PartRead) -> int:
        """Notes an evaluation before it happens; how many there are on parts that share time, a symbol and subject."""
        ...

    def num_evaluations(self, read: PartRead) -> int:
        """The same without noting anything; `read` itself is counted only if it was noted."""
        ...

    def record_trial(self, trial: Trial) -> None:
        """Notes a trial; a second one of the same id replaces nothing and counts once."""
        ...

    def trials(self, read: PartRead) -> Sequence[Trial]:
        """Trials on parts that share time, a symbol and the subject, oldest first.

        All of them, with their Sharpe ratios; daily returns of the oldest may be left out.
        """
        ...
