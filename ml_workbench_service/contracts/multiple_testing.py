"""Multiple-testing log: two append-only counters that nobody can type in, of trials on validation parts and of test-set
evaluations.

A part is named by what it is, an interval of time, symbols and a subject, never by a model's name: training again under
another id, or over a slightly different range, reads the same data again, and counts. Lopez de Prado, "The deflated
Sharpe ratio", Journal of Portfolio Management 40 (2014): a figure means little without the number of tries behind it.

An evaluation also names its recipe and the fingerprints of the series that it bets on. All recipes on one series and
subject are one family of hypotheses, over which p-values are adjusted (Holm) whenever they are read; a recipe that is
trained again stays one hypothesis, and what each of its versions lost is kept here, so that purging loses nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field, field_validator

from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.contracts.training import Target

Subject = Literal["price", "volatility", "regime", "simulated"]
"""What is bet on, at all horizons and in all wordings: who tries twenty horizons has tried twenty times. Whatever is
found in simulated prices tells nothing of real ones, and is counted apart."""

AGENT_TRIAL = "/agent/"
"""Between the job's id and the setting's number, in the id of a trial of an agent's grid."""


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


class Fingerprint(Protocol):
    """By which a series of prices is known again: `market.return_fingerprint.ReturnFingerprint`."""

    @property
    def symbol(self) -> str:
        """As it is called."""
        ...

    @property
    def digest(self) -> str:
        """Of all that it holds."""
        ...

    @property
    def step_ms(self) -> int:
        """Of time."""
        ...

    @property
    def steps_B(self) -> Ints:
        """Numbers of the steps that have a close."""
        ...

    @property
    def log_close_B(self) -> Floats:
        """Their log closes."""
        ...


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation told, and the rows that it was the first to judge.

    Attributes:
        p_value: the recipe's after this evaluation, in units of what its test may spend; None: nothing could be tested.
        from_ms: the first moment that it judged; `until_ms` the last one.
        own_columns: digest of the user's own columns on those moments.
        differentials: loss differentials of those moments, as `learning.interfaces.differentials` packs them.
    """

    p_value: float | None
    from_ms: int
    until_ms: int
    own_columns: str
    differentials: bytes


class MultipleTestingLog(Protocol):
    """Both counters. Writing returns only when it is on disk."""

    def record_evaluation(self, read: PartRead, *, recipe: str = "", series: Sequence["Fingerprint"] = ()) -> int:
        """Notes an evaluation before it happens; how many there are on parts that share time, a symbol and subject.

        Args:
            recipe: what is evaluated, whenever it was trained; without one it belongs to no family of hypotheses.
            series: that it bets on.
        """
        ...

    def record_result(self, evaluation: str, result: EvaluationResult) -> None:
        """Notes what the evaluation of this id told; a second one replaces nothing."""
        ...

    def results(self, recipe: str) -> Sequence[EvaluationResult]:
        """What all evaluations of a recipe told, in the order of their evaluations."""
        ...

    def other_p_values(self, evaluation: str) -> Sequence[float | None]:
        """Today's p-values of all other hypotheses in this evaluation's family; None where one was never told.

        The family: every recipe on the same series and subject, however old, and whatever else overlaps in time, trials
        of other jobs among it: a search whose validation part lies in a test part has chosen by it. The settings of an
        agent's grid all tell of one model, and the grid has noted that one.
        """
        ...

    def other_p_values_of(self, evaluations: Sequence[str]) -> Mapping[str, Sequence[float | None]]:
        """The same of many evaluations, in one reading of the log."""
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
