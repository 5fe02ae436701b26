"""Market data on the wire: `/features` and `/labels`, as a Feature Store Service answers them, point in time.

A bar's timestamp is its opening; start is inclusive, end exclusive; what is missing is null and stays missing.
"""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract, Finite, MarketDatetime, Symbol, Timeframe, each_once
from ml_workbench_service.contracts.feature_names import FeatureText
from ml_workbench_service.contracts.market import FeatureDescription, FillRule

BAR_COLUMNS = ("open", "high", "low", "close")
"""What is answered where no feature is named; a spread of the bars' own comes along."""


class FunctionDescription(Contract):
    """A function of the expression grammar."""

    name: str
    usage: str = Field(description="How it is written, such as `zscore(x, bars)`.")
    fewest_bars: int = Field(description="The least number of bars; 0: it takes none.")
    description: str


class NamedSetDescription(Contract):
    """A set of expressions that ships by name."""

    name: str = Field(description="As a request names it, such as `@alpha158`.")
    description: str
    num_features: int
    columns: tuple[str, ...] = Field(description="Of the bars, that it reads.")


class FeatureList(Contract):
    """`GET /features`: the store's columns, and what expressions over them are written with."""

    features: tuple[FeatureDescription, ...]
    functions: tuple[FunctionDescription, ...] = ()
    sets: tuple[NamedSetDescription, ...] = ()


class FeatureRequest(Asked):
    """`POST /features/batch`: the same columns of several symbols."""

    symbols: Annotated[list[Symbol], Field(min_length=1, max_length=64)]
    timeframe: Timeframe
    features: Annotated[
        list[FeatureText],
        Field(
            min_length=1,
            max_length=256,
            description="Of GET /api/v1/features, the bars' own columns, expressions, sets that ship and sets of a "
            "search (`@my_set`, `@my_set:1.0.0`).",
        ),
    ] = list(BAR_COLUMNS)  # noqa: RUF012
    start_date: MarketDatetime | None = Field(default=None, description="First bar opening; default: the first bar's.")
    end_date: MarketDatetime | None = Field(default=None, description="Bar openings before this; default: all known.")
    as_of: MarketDatetime | None = Field(default=None, description="Only bars known at this moment; default: now.")

    _no_twins = field_validator("symbols", "features")(each_once)

    @model_validator(mode="after")
    def _time_runs_forward(self) -> "FeatureRequest":
        if self.start_date is not None and self.end_date is not None and self.end_date <= self.start_date:
            raise ValueError("`end_date` must be later than `start_date`")
        return self


class FeatureSeries(Contract):
    """One symbol's bars and features by column, oldest first; every list is as long as `timestamps`."""

    symbol: Symbol
    timeframe: Timeframe
    timestamps: tuple[MarketDatetime, ...] = Field(description="Openings.")
    available_at: tuple[MarketDatetime, ...] = Field(description="When each row was known.")
    features: dict[str, tuple[Finite | None, ...]]
    data_source: str = Field(description="`ecb_daily`, `simulated`, `file` or `feature_store`.")
    calendar: str = Field(description="Which closures are no gap: `fx` or `fixings`.")
    fill: FillRule = Field(description="When a signal from a bar's close is filled.")
    warnings: tuple[str, ...] = ()


class FeatureBatch(Contract):
    """`POST /features/batch`, in the order asked."""

    results: tuple[FeatureSeries, ...]


class LabelRequest(Asked):
    """Which labels of a symbol are asked for."""

    symbol: Symbol
    target: Annotated[str, Field(min_length=1, max_length=64)]
    timeframe: Timeframe | None = Field(default=None, description="Default: the target's own unit, else 1h.")
    start_date: MarketDatetime = Field(description="First bar opening.")
    end_date: MarketDatetime = Field(description="Bar openings before this; later bars make no label.")
    as_of: MarketDatetime | None = None
    k: Finite = Field(default=1.0, gt=0, le=20, description="Barriers of triple_barrier: `label.k` of a training.")

    @model_validator(mode="after")
    def _time_runs_forward(self) -> "LabelRequest":
        if self.end_date <= self.start_date:
            raise ValueError("`end_date` must be later than `start_date`")
        return self


class LabelSeries(Contract):
    """What a training over this range would see as its target at each bar; classes are numbers, as outcomes are."""

    symbol: Symbol
    timeframe: Timeframe
    target: str
    timestamps: tuple[MarketDatetime, ...] = Field(description="Openings of the rows that the labels belong to.")
    labels: tuple[Finite | None, ...] = Field(description="Null where the range, a closure or a missing bar ends it.")
    available_at: tuple[MarketDatetime | None, ...] = Field(description="When each label is known.")
    classes: dict[str, Finite] = Field(default_factory=dict, description="The number of each class, where it has any.")
    num_dropped: dict[str, int] = Field(default_factory=dict, description="Rows without a label, by reason.")
    data_source: str
