"""What a card says about skill: figures, comparisons with baselines, the backtest, and the verdict they lead to.

Tests are one-sided: a small p-value speaks for the model. Every field but the first five is missing on cards that were
published before it existed, and where it has no meaning for the model's type.
"""

from typing import Literal

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.market import Costs, FillRule
from ml_workbench_service.contracts.sizing import PositionRule

Verdict = Literal[
    "skill", "unverified", "implausible", "leak", "no_skill", "insufficient_data", "not_applicable", "not_judged"
]
"""`not_judged` stands only on cards older than the verdicts."""
Proof = Literal["recomputed", "witnessed", "declared"]
"""Why no column can have known the future: made again from bars; seen before its label began; or its owner says so."""
Economic = Literal["profitable", "unprofitable", "unproven", "not_applicable"]
Loss = Literal["squared_error", "brier", "log_loss", "qlike", "net_return"]
Effect = Literal["r2", "loss_share", "sharpe"]
"""What must not be missed: a share of the variance, of the baseline's loss, or a Sharpe ratio of a year."""
VERDICT_RULES = 2
"""Of what is judged now. 1: one Bonferroni bound, `linear` among the baselines, no `leak`, `implausible`, `unverified`.
"""


class SignificanceTest(Contract):
    """One one-sided test of a mean over moments; symbols at one moment are one observation."""

    statistic: Finite | None = Field(description="Mean over its HAC standard error; null where nothing varies.")
    p_value: Finite | None
    num_moments: int
    lag: int = Field(description="Lags of the HAC variance, at least the horizon less one.")


class Comparison(Contract):
    """The model beside one baseline on the same rows of the test part."""

    baseline: str
    loss: Loss
    model_loss: Finite | None
    baseline_loss: Finite | None
    skill: Finite | None = Field(description="1 - model's loss ÷ baseline's; the difference for net returns.")
    diebold_mariano: SignificanceTest
    clark_west: SignificanceTest | None = Field(
        default=None, description="Null where the baseline is not nested in the model."
    )
    effect_kind: Effect = Field(default="r2", description="In what `effect` is measured.")
    effect: Finite | None = Field(default=None, description="What must not be missed, against this baseline.")
    expected_gain: Finite | None = Field(default=None, description="The decisive test's mean had the model the effect.")
    gain_error: Finite | None = Field(default=None, description="HAC standard error of that mean, as observed.")
    moments_per_year: Finite | None = None

    @property
    def decisive(self) -> SignificanceTest:
        """Clark and West's where there is one."""
        return self.clark_west or self.diebold_mariano


class Significance(Contract):
    """The comparison that decided: the baseline that was hardest to beat, and what its p-value had to bear."""

    baseline: str
    p_value: Finite | None
    looks: int = Field(
        description="Hypotheses that were tried on this return series and kind of target, this one included."
    )
    adjusted_p_value: Finite | None = Field(
        description="After all of them (Holm), in units of what its test may spend; at most `alpha` passes."
    )
    alpha: Finite
    num_moments: int
    num_independent: Finite = Field(description="Moments over the horizon: overlapping labels are one observation.")
    power: Finite = Field(description="Probability of finding the effect at this level, by the observed gains' error.")
    power_r2: Finite | None = Field(default=None, description="The effect where it is an R².")
    effect_kind: Effect = "r2"
    effect: Finite | None = None
    excluded_sharpe: Finite | None = Field(
        default=None, description="Gross Sharpe ratio a year that would have been found with a probability of 80 %."
    )
    doublings: int = Field(default=0, description="How often the sample had doubled when it was last tested.")


Adds = Literal["yes", "no", "insufficient_data", "not_applicable"]


class AddsOverLinear(Contract):
    """Whether the complexity is worth it: Diebold and Mariano's test against `linear` on the same rows."""

    answer: Adds
    p_value: Finite | None = Field(default=None, description="After evaluations.")
    gain: Finite | None = Field(default=None, description="Share of `linear`'s loss; of policies net log return a bar.")
    upper_bound: Finite | None = Field(default=None, description="97.5 %, one-sided, of that gain.")


class HourCoverage(Contract):
    """How often the interval held the outcomes of forecasts that were made in one hour of the day."""

    hour_utc: int = Field(ge=0, le=23, description="In which the forecast's bar ended, and its horizon began.")
    num_rows: int
    coverage: Finite
    low: Finite = Field(description="Wilson's 99.9 % interval; symbols at one moment are one observation.")
    high: Finite
    failed: bool = Field(description="Whether all of it lies more than 5 points from the promise.")


class IntervalReport(Contract):
    """How often the interval held the outcome, overall and where the market was calm, middling and stormy."""

    level: Finite
    coverage: Finite
    coverage_by_tercile: dict[Literal["low", "middle", "high"], Finite | None] = Field(
        description="By a past-only volatility that is not the interval's own."
    )
    mean_width: Finite
    coverage_by_hour: tuple[HourCoverage, ...] = Field(default=(), description="Of intraday bars, hours with rows.")


class CarryStress(Contract):
    """What is left where every held night pays the pair's largest difference of policy rates over the range."""

    yearly_rate: dict[str, Finite | None] = Field(
        description="That difference of each symbol whose swaps are the default, a fraction; null: not known."
    )
    net_log_return: Finite | None = Field(description="Null where a difference is not known.")
    p_value: Finite | None = Field(description="As the backtest's own.")


class BacktestReport(Contract):
    """What the signal would have earned on the test part after all costs. Log returns of one account."""

    net_log_return: Finite
    gross_log_return: Finite
    sharpe: Finite | None = Field(description="Of daily net returns, per year.")
    gross_sharpe: Finite | None = None
    sortino: Finite | None = None
    calmar: Finite | None = None
    max_drawdown: Finite
    turnover: Finite = Field(description="Sum of |change of position|; with S symbols each counts 1 / S.")
    num_trades: int
    hit_rate: Finite | None = Field(default=None, description="Share of the bars in the market with a gross gain.")
    share_in_market: Finite
    mean_cost_bp: Finite = Field(description="Per decision, swap included.")
    total_cost: Finite = Field(description="Of it all: spread, commission, slippage and swap, as a fraction.")
    swap_cost: Finite = Field(description="Of it, at 17:00 New York; negative where more was received than paid.")
    break_even_cost_bp: Finite | None = Field(
        default=None, description="Cost per unit of turnover at which the net return is zero; null without a trade."
    )
    num_days: int = Field(description="FX days, 17:00 to 17:00 New York; weekdays without a decision are days flat.")
    probabilistic_sharpe: Finite | None = Field(default=None, description="Probability that the true ratio exceeds 0.")
    deflated_sharpe: Finite | None = Field(
        default=None, description="The same against the best ratio to expect of so many looks without any skill."
    )
    p_value: Finite | None = Field(default=None, description="One-sided, HAC, of the mean daily net return.")
    fill: FillRule | None = Field(default=None, description="Where decisions are filled; null: before it was said.")
    costs: dict[str, Costs] = Field(
        default_factory=dict, description="By symbol, what was charged; the spread is the mean over the decisions."
    )
    carry: Literal["modelled", "not_modelled"] | None = Field(
        default=None, description="`not_modelled`: swaps are the default, alike on both sides, in some symbol."
    )
    stressed: CarryStress | None = Field(default=None, description="With the worst carry; null where swaps are own.")


class ValidationReport(Contract):
    """What the validation part says once the trials that were made on it are counted."""

    num_trials: int = Field(description="Trials on validation parts that overlap this one, of all jobs.")
    sharpe: Finite | None = Field(default=None, description="Of daily net returns, per year.")
    deflated_sharpe: Finite | None = Field(
        default=None,
        description="Probability that the true ratio exceeds the best to expect of so many trials by luck.",
    )
    probability_of_backtest_overfitting: Finite | None = Field(
        default=None, description="By combinatorially symmetric cross-validation; null under 10 trials or 50 days."
    )


class PositionTrial(Contract):
    """One rule as tried on the calibration part."""

    rule: PositionRule
    net_log_return: Finite | None = Field(description="Null where no decision of the part can be paid.")
    sharpe: Finite | None = Field(description="Of daily net returns, per year; null where nothing varies.")
    turnover: Finite | None


class PositionFigures(Contract):
    """What one way to hold positions came to over the test part."""

    net_log_return: Finite
    sharpe: Finite | None = Field(description="Of daily net returns, per year; null where nothing varies.")
    max_drawdown: Finite
    turnover: Finite
    mean_size: Finite = Field(description="Mean |position| over the decisions.")


class PositionReport(Contract):
    """The rule by which the forecast became a position, and the test part with it beside what needs no forecast."""

    rule: PositionRule = Field(description="The only one that the test part has seen.")
    slope: Finite | None = Field(
        default=None, description="kelly: of what came true on the forecast, in the calibration part."
    )
    weights: dict[str, Finite] = Field(
        default_factory=dict, description="With `risk_budget`: what each symbol's sizes are multiplied with."
    )
    tried: tuple[PositionTrial, ...] = Field(default=(), description="On the calibration part; the request's rules.")
    calibration: ValidationReport | None = Field(
        default=None, description="The rule's figures on the calibration part once all trials there are counted."
    )
    own: PositionFigures
    cost_free: PositionFigures = Field(description="The same rule where trading costs nothing: decided and paid so.")
    buy_and_hold: PositionFigures = Field(description="Long 1 at every decision.")
    flat: PositionFigures = Field(description="Never in the market.")


class SeedSpread(Contract):
    """One figure of the members of an ensemble, each judged alone."""

    mean: Finite
    std: Finite
    minimum: Finite
    maximum: Finite


class Fold(Contract):
    """One step of a walk forward."""

    number: int
    test_start: UtcDatetime
    test_end: UtcDatetime
    num_train: int
    num_test: int
    test: dict[str, Finite | None]
    skill: dict[str, Finite | None]


class WalkForwardReport(Contract):
    """Trainings on ever longer pasts, each judged on what came next; all of it before the untouched test part."""

    scheme: Literal["walk_forward"] = "walk_forward"
    folds: tuple[Fold, ...]
    purged_bars: int
    embargo_bars: int
    pooled: tuple[Comparison, ...] = Field(description="Over the rows of all folds.")


class Spread(Contract):
    """How a figure is spread over the paths."""

    mean: Finite
    std: Finite
    minimum: Finite
    median: Finite
    maximum: Finite


class ValidationPath(Contract):
    """One way through the whole time: each group as one of the trainings that left it out answered it."""

    number: int
    skill: dict[str, Finite | None] = Field(description="Against each baseline, over the rows of all groups.")
    net_log_return: Finite | None = Field(default=None, description="Null where nothing is traded on the target.")
    sharpe: Finite | None = Field(default=None, description="Of daily net returns, per year.")
    max_drawdown: Finite | None = None


class ValidationGroup(Contract):
    """One stretch of time, in the mean of the trainings that left it out."""

    number: int
    start: UtcDatetime
    end: UtcDatetime
    num_test: int
    skill: dict[str, Finite | None]
    net_log_return: Finite | None = None


class CombinatorialReport(Contract):
    """Trainings on every choice of stretches of time, each judged on those left out; all of it before the test part.

    Paths share their trainings' data, so that they are no independent proofs: their spread tells how much of a figure
    is the luck of one split. No verdict is made of them.
    """

    scheme: Literal["combinatorial_purged"] = "combinatorial_purged"
    groups: tuple[ValidationGroup, ...]
    test_groups: int
    num_trainings: int
    num_train: tuple[int, int] = Field(description="Fewest and most training windows of a combination.")
    purged_bars: int
    embargo_bars: int
    paths: tuple[ValidationPath, ...]
    skill: dict[str, Spread] = Field(description="Of the paths, against each baseline.")
    sharpe: Spread | None = Field(default=None, description="Of the paths; null where a path has none.")
    share_losing: Finite | None = Field(default=None, description="Paths whose net return is not above zero.")


CheckStatus = Literal["passed", "failed", "unprovable"]


class CertificateCheck(Contract):
    """One search for a leak."""

    name: str
    status: CheckStatus
    detail: str = Field(description="One sentence: what was compared, or what moved that must not.")


class Certificate(Contract):
    """Whether anything that the model learnt or was judged on knew the future.

    `unprovable`: nothing failed, but ready-made columns could not be recomputed from bars, were not seen before their
    labels began, and nobody says when they were known; or a file was read in a way that stays doubtful.
    """

    status: CheckStatus
    checks: tuple[CertificateCheck, ...]
    proof: Proof | None = Field(default=None, description="The weakest proof over all columns; null: not proven.")
    declared_columns: tuple[str, ...] = Field(
        default=(), description="With `declared`: those that nothing but their owner's word proves."
    )

    @classmethod
    def of(
        cls,
        checks: "tuple[CertificateCheck, ...]",
        *,
        proof: Proof | None = "recomputed",
        declared_columns: tuple[str, ...] = (),
    ) -> "Certificate":
        """The worst of the checks; a proof stands only where every check passed."""
        found = {each.status for each in checks}
        status: CheckStatus = "failed" if "failed" in found else "unprovable" if "unprovable" in found else "passed"
        if status != "passed":
            proof, declared_columns = None, ()
        return cls(status=status, checks=checks, proof=proof, declared_columns=declared_columns)


class Evaluation(Contract):
    """Figures of the untouched test part, the baselines' on the same rows, and the verdict with its reason."""

    test: dict[str, Finite | None]
    baselines: dict[str, dict[str, Finite | None]]
    skill: dict[str, Finite | None]
    verdict: Verdict
    reason: str
    verdict_rules: int = Field(default=1, description="Version of the rules that were applied; 1 where it is missing.")
    proof: Proof | None = Field(default=None, description="With `skill`: why no column can have known the future.")
    adds_over_linear: AddsOverLinear | None = None
    lower_bounds: dict[str, Finite] = Field(
        default_factory=dict, description="One-sided 97.5 % bounds of figures that may be too good to be true."
    )
    num_answered: int | None = Field(default=None, description="Rows of the test part that serving answers.")
    answered_share: Finite | None = Field(
        default=None, description="Of the test part's rows: those that serving answers, which everything else is about."
    )
    oracle_passed: bool | None = Field(default=None, description="Policies: whether the family finds a known future.")

    economic: Economic | None = None
    economic_reason: str = ""
    comparisons: tuple[Comparison, ...] = ()
    significance: Significance | None = None
    interval: IntervalReport | None = None
    backtest: BacktestReport | None = None
    position: PositionReport | None = Field(default=None, description="Of a forecast that is traded.")
    validation: ValidationReport | None = None
    seeds: dict[str, SeedSpread] | None = Field(default=None, description="Each member alone; the ensemble is judged.")
    walk_forward: WalkForwardReport | None = None
    combinatorial: CombinatorialReport | None = None


class TodaysVerdict(Contract):
    """How a published evaluation reads today: after every hypothesis on its return series and kind of target that the
    multiple-testing log knows by now. The gate `skill` reads it; the card keeps what was published.
    """

    verdict: Verdict | None = Field(description="Null where the log cannot be read just now; `reason` says why.")
    reason: str
    proof: Proof | None = None
    looks: int | None = Field(default=None, description="Hypotheses that are known today, this one included.")
    adjusted_p_value: Finite | None = Field(default=None, description="After all of them (Holm); 0.025 at most passes.")
    adds_over_linear: Adds | None = None
    economic: Economic | None = None
