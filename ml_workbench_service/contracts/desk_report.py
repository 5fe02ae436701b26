"""`GET /models/{id}/versions/{v}/desk-report`: what a trading desk asks of a version's test part, in numbers.

All money is the account's of the card: symbols in equal weights, log returns unless a field says otherwise. Errors are
HAC standard errors of means over moments, so that overlapping labels and symbols that move together do not make a
figure look surer than it is. What a version has no meaning for is null or empty, and `notes` says why.
"""

from typing import Literal

from pydantic import Field

from ml_workbench_service.contracts.contract import Contract, Finite, UtcDatetime
from ml_workbench_service.contracts.models import ModelCard

DESK_FILE = "desk_report.json"
"""Of a report that is kept as a file."""
SliceKind = Literal["symbol", "session", "regime", "period"]
Session = Literal["asia", "london", "overlap", "new_york"]


class DeskTask(Contract):
    """What is asked of whoever reads the rows."""

    kind: Literal["desk"] = "desk"
    card: ModelCard
    rows_path: str = Field(description="The version's evaluation.parquet.")


class Estimate(Contract):
    """A mean over rows with its error."""

    value: Finite | None
    error: Finite | None = Field(description="HAC standard error; null under 10 moments.")
    p_value: Finite | None = Field(description="One-sided, of a value above zero; null without an error.")
    num_rows: int


class DecayPoint(Contract):
    """How far into the future the forecast ranks the moves of the price."""

    bars: int = Field(description="After the forecast, by rows of a symbol: a weekend is one step.")
    of_the_bar: Estimate = Field(description="Rank correlation with the log return of that bar alone.")
    up_to_it: Estimate = Field(description="With the log return from the forecast's close to that bar's.")


class Ranking(Contract):
    """Whether larger forecasts came before larger outcomes."""

    rank_ic: Estimate | None = Field(
        description="Spearman's correlation of forecast and outcome, ranks within each symbol; null where outcomes "
        "have no order."
    )
    decay: tuple[DecayPoint, ...] = Field(description="Of volatilities with the size of the returns.")
    decay_of: Literal["return", "size_of_return"]


class QuantileReturn(Contract):
    """The rows of one fifth of the forecasts, fifths within each symbol."""

    number: int = Field(ge=1, description="1 has the lowest forecasts.")
    mean_forecast: Finite
    outcome: Estimate


class QuantileReturns(Contract):
    """What came after low and after high forecasts, in the target's unit."""

    quantiles: tuple[QuantileReturn, ...]
    spread: Estimate = Field(description="The highest fifth's mean outcome less the lowest's.")


class Turnover(Contract):
    """How much is traded, and how long a position lasts."""

    total: Finite = Field(description="Sum of |change of position|; with S symbols each counts 1 / S.")
    per_year: Finite | None
    num_trades: int
    mean_holding_bars: Finite | None = Field(description="Bars from a position's entry to its change; null without.")
    share_long: Finite
    share_short: Finite
    share_flat: Finite = Field(description="Rows that serving abstains from among them.")


class Drawdown(Contract):
    """One way down from a peak of the account, and back."""

    depth: Finite = Field(description="The loss from the peak, a fraction of it.")
    peak_at: UtcDatetime = Field(description="When the highest point was settled; the first decision where it is that.")
    trough_at: UtcDatetime
    recovered_at: UtcDatetime | None = Field(description="Null: not within the test part.")
    num_days: int = Field(description="Calendar days from the peak to the recovery, or to the end.")


class MonthlyReturn(Contract):
    """One month of FX days."""

    year: int
    month: int = Field(ge=1, le=12)
    net: Finite
    gross: Finite
    cost: Finite = Field(description="`gross` less `net`.")
    num_days: int


class ReturnStatistics(Contract):
    """Figures of the daily simple net returns as quantstats and pyfolio define them, over 252 days a year.

    The card's `sharpe` is of log returns and of 261 weekdays a year; both are right, of different questions.
    """

    num_days: int
    cumulative_return: Finite
    cagr: Finite | None = Field(description="Yearly growth over `num_days` / 252 years; null under 30 days.")
    volatility: Finite | None
    sharpe: Finite | None
    sortino: Finite | None
    calmar: Finite | None
    omega: Finite | None
    max_drawdown: Finite
    skewness: Finite | None
    excess_kurtosis: Finite | None
    value_at_risk: Finite = Field(description="The 5 % quantile of a day's return.")
    conditional_value_at_risk: Finite = Field(description="Mean of the days at or below it.")
    tail_ratio: Finite | None = Field(description="|95 % quantile| over |5 % quantile|.")
    stability: Finite | None = Field(description="R² of a straight line through the running log return.")
    best_day: Finite
    worst_day: Finite
    share_of_days_up: Finite | None = Field(description="Of the days with a return.")


class Slice(Contract):
    """Some rows of the test part."""

    kind: SliceKind
    name: str
    first: UtcDatetime
    last: UtcDatetime
    num_rows: int
    rank_ic: Estimate | None
    adjusted_p_value: Finite | None = Field(
        default=None, description="Of `rank_ic`, after all slices of this report (Holm); null without an order."
    )
    share_right: Finite | None = Field(description="Of rows that state a side: those whose outcome had it.")
    net: Finite | None
    gross: Finite | None
    share_in_market: Finite | None


class Stability(Contract):
    """Whether the test part is one thing, over eight spans of equally many moments."""

    periods: tuple[Slice, ...]
    periods_with_positive_ic: int | None
    periods_with_positive_net: int | None
    change_of_ic: Estimate | None = Field(
        description="The second half's rank correlation less the first half's; its p-value is two-sided."
    )


class CapacityPoint(Contract):
    """The same decisions at another spread; what a wider spread would have kept from trading is not asked."""

    spread_multiple: Finite
    net_log_return: Finite
    sharpe: Finite | None = Field(description="Of daily net returns, per year, as the card's.")


class Capacity(Contract):
    """How much wider a spread the signal bears. Sizes that move the price need volumes, which no bar here has."""

    points: tuple[CapacityPoint, ...]
    break_even_multiple: Finite | None = Field(
        description="Of the spread charged, at which nothing is left; null: beyond 100, or below 0."
    )
    spread_pips: dict[str, Finite] = Field(description="By symbol, what one stands for.")


class ClassReliabilityBin(Contract):
    """Rows to which one class was given about the same probability."""

    stated: Finite = Field(description="Mean probability.")
    came: Finite = Field(description="Share of them in which the class came.")
    low: Finite = Field(
        description="Wilson's 95 % interval; symbols at one moment, and overlapping labels, count once."
    )
    high: Finite
    num_rows: int


class ClassFigures(Contract):
    """One class."""

    name: str
    share: Finite = Field(description="Of the outcomes.")
    precision: Finite | None = Field(description="Of the rows that state it: those where it came.")
    recall: Finite | None = Field(description="Of the rows where it came: those that stated it.")
    reliability: tuple[ClassReliabilityBin, ...]


class ClassReport(Contract):
    """What classifiers are asked for. The class stated is the most probable one."""

    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...] = Field(description="Rows: what came; columns: what was stated.")
    accuracy: Finite
    most_frequent: Finite = Field(description="Accuracy of always stating the most frequent class.")
    brier: Finite
    brier_of_frequencies: Finite
    reliability_error: Finite = Field(description="Mean |came - stated| over bins and classes, weighted by rows.")


class DeskReport(Contract):
    """The test part of one version. Reading it chooses nothing; what is changed for it is a new recipe, and counted."""

    model_id: str
    version: str
    part: Literal["test"] = "test"
    verdict: str = Field(description="Of the card, by which the figures here are to be read.")
    first: UtcDatetime
    last: UtcDatetime
    num_rows: int
    num_answered: int
    ranking: Ranking | None = None
    quantiles: QuantileReturns | None = None
    turnover: Turnover | None = None
    drawdowns: tuple[Drawdown, ...] = Field(default=(), description="The five deepest, the deepest first.")
    months: tuple[MonthlyReturn, ...] = ()
    returns: ReturnStatistics | None = None
    slices: tuple[Slice, ...] = Field(default=(), description="By symbol, session and market regime.")
    stability: Stability | None = None
    capacity: Capacity | None = None
    classes: ClassReport | None = None
    notes: tuple[str, ...] = Field(description="What these figures cannot say, in sentences.")
