"""What a training asks for, and what it will need: `TrainRequest`, `TrainingEstimate`, the parsed target."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import comb
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import (
    Contract,
    Finite,
    MarketDatetime,
    ModelId,
    Semver,
    Symbol,
    Timeframe,
    UtcDatetime,
    each_once,
    normal_timeframe,
)
from ml_workbench_service.contracts.feature_names import FeatureText
from ml_workbench_service.contracts.market import Costs, FillRule
from ml_workbench_service.contracts.sizing import MOST_RULES, PositionRule

MOST_HYPERPARAMETERS = 64
"""No family has as many; each unknown one would be an error with a sentence."""
TargetName = Annotated[str, Field(min_length=1, max_length=64)]
SEED_EXAMPLE: dict[str, Any] = {
    "name": "LSTM Price Predictor",
    "model_type": "time_series",
    "features": ["sma_20", "rsi_14", "macd", "bb_width"],
    "target": "price_change_1h",
    "symbols": ["EUR/USD", "GBP/USD"],
    "start_date": "2023-01-01T00:00:00Z",
    "end_date": "2025-03-01T00:00:00Z",
    "hyperparameters": {
        "lstm_units": 64,
        "dropout": 0.2,
        "learning_rate": 0.001,
        "batch_size": 32,
        "epochs": 100,
    },
    "validation_split": 0.2,
}


class JobPriority(StrEnum):
    """Which of a client's own jobs goes first; it takes nothing from other clients."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class ModelType(StrEnum):
    """The five kinds of model."""

    TIME_SERIES = "time_series"
    CLASSIFICATION = "classification"
    REINFORCEMENT_LEARNING = "reinforcement_learning"
    ANOMALY_DETECTION = "anomaly_detection"
    FEATURE_ENGINEERING = "feature_engineering"


Measure = Literal["price_change", "log_return", "volatility", "direction", "triple_barrier", "market_regime", "follow"]
CLASSES: Mapping[str, tuple[str, ...]] = {
    "direction": ("sell", "hold", "buy"),
    "triple_barrier": ("lower", "neither", "upper"),
    "market_regime": ("trend_down", "calm", "volatile", "trend_up"),
    "follow": ("skip", "follow"),
}
"""The classes of each class target, in the order of a network's outputs."""
TRADED = ("price_change", "log_return", "direction", "triple_barrier", "follow")
"""Measures of a move of the price, which somebody who is long or short earns."""
SIDED = ("price_change", "log_return", "direction", "triple_barrier")
"""Measures of which a forecast speaks for a side by itself; `follow` says whether to take another version's."""
TARGET_EXAMPLES = (
    "price_change_<h>, log_return_<h>, volatility_<h>, direction_<h>, triple_barrier_<h> or market_regime, "
    "such as price_change_1h"
)


class Target(Contract):
    """A parsed target: what is measured, over how many bars, and the timeframe its unit fixes (if it names one).

    `delay` is the bars from a row to where its label begins: 1 for price moves where decisions are filled at the next
    close (fixings), for the move until then is over before a position opens.
    """

    name: str
    measure: Measure
    horizon: int
    timeframe: Timeframe | None
    delay: Literal[0, 1] = 0

    @property
    def reach(self) -> int:
        """Bars from a row to the end of its label."""
        return self.delay + self.horizon

    def filled(self, fill: FillRule, options: "LabelOptions | None" = None) -> "Target":
        """The same target where decisions are filled so: its label begins there, unless the options say `close`."""
        begins_later = fill == "next_close" and self.measure in TRADED and (options is None or options.start == "fill")
        return self.model_copy(update={"delay": int(begins_later)})

    def is_traded(self, fill: FillRule) -> bool:
        """Whether its label is the move that a position earns: what a signal is worth can be said of no other."""
        return self.measure in TRADED and (fill != "next_close" or self.delay == 1)

    @property
    def needs_price(self) -> bool:
        """Whether the value is a price move, against which the random walk says zero."""
        return self.measure in ("price_change", "log_return")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; empty where the target is a number."""
        return CLASSES.get(self.measure, ())


_TARGET = re.compile(
    r"(price_change|log_return|volatility|direction|triple_barrier|market_regime|follow)_(\d{1,4})([mhd]?)"
)


def parse_target(name: str, timeframe: str | None = None) -> Target:
    """`price_change_4h` is 4 bars of `1h`; `log_return_3` is 3 bars of whatever timeframe the request has.

    `_Nh` and `_Nd` fix the timeframe, hours and days (docs/finance.md); a number alone counts bars of any length.
    `market_regime` alone is the next bar's.

    Raises:
        ValueError: unknown measure, horizon zero, or a unit that is not the request's timeframe.
    """
    match = _TARGET.fullmatch(name + "_1" if name == "market_regime" else name)
    if match is None:
        raise ValueError(f"a target is {TARGET_EXAMPLES}")
    measure, count, unit = match[1], int(match[2]), match[3]
    if count == 0:
        raise ValueError("a target looks at least one bar ahead, such as price_change_1h")
    if unit == "m":
        raise ValueError("a target's unit is h or d, or none to count bars, such as price_change_4h or log_return_12")
    own = f"1{unit}" if unit else None
    if own is not None and timeframe is not None and normal_timeframe(timeframe) != own:
        raise ValueError(
            f"the target {measure}_{count}{unit} fixes the timeframe {own}; leave `timeframe` out, "
            f"or count bars of {normal_timeframe(timeframe)}, as {measure}_1 does"
        )
    return Target.model_validate({"name": name, "measure": measure, "horizon": count, "timeframe": own})


class LabelOptions(Asked):
    """How targets are labelled."""

    start: Literal["fill", "close"] = Field(
        default="fill",
        description="Where the label of a price move begins: where the decision is filled, which of daily fixings is "
        "the next one, or at the row's own close. Where both differ nothing is traded by a label of `close`.",
    )
    k: Finite = Field(
        default=1.0, gt=0, le=20, description="Barriers of triple_barrier, in ex-ante volatilities of the horizon."
    )


class MetaLabelling(Asked):
    """Whether to act on another version's side: the primary says buy or sell, the trained classifier follows or skips.

    López de Prado, "Advances in financial machine learning", 2018, section 3.6; docs/api.md, "Train".
    """

    primary: Annotated[
        str,
        Field(
            max_length=128,
            pattern=r"^[a-z0-9][a-z0-9_.-]*@[0-9]+\.[0-9]+\.[0-9]+$",
            description="The version that gives the side, such as my_model@1.2.0.",
        ),
    ]

    @property
    def parts(self) -> tuple[str, str]:
        """The primary's model id and version."""
        model_id, _, version = self.primary.partition("@")
        return model_id, version


class PrimaryReference(Contract):
    """The version whose side a meta-labelling version follows or skips, pinned: its network is part of the bundle."""

    model_id: str
    version: str
    digest: str = Field(description="Of the primary's bundle, as its card had it.")
    target: str = Field(description="What the primary forecasts; the horizon of both.")
    timeframe: str
    fitted_until: UtcDatetime = Field(
        description="The primary was fitted and calibrated on rows known until then; every row here came later."
    )
    reads: tuple[str, ...] = Field(description="Features that the classifier reads beside the primary's outputs.")
    is_clipped: bool = Field(description="Whether earlier rows were asked for, and left out.")

    @property
    def follow_target(self) -> str:
        """The target of whoever follows: the same horizon."""
        return f"follow_{self.target.rpartition('_')[2]}"


MOST_COMBINATIONS = 100
"""Trainings of one combinatorial validation."""


class CrossValidation(Asked):
    """More than one split of the data before the test part, all of it read by nobody's verdict.

    `walk_forward` trains on ever longer pasts, each judged on what came next; `combinatorial_purged` on every choice of
    `groups` - `test_groups` stretches, each judged on those left out, which makes many paths over the same time.
    The purge is always as long as the label's horizon; `embargo` keeps further bars away: of a walk forward at each
    border, of combinations after each test.
    """

    scheme: Literal["none", "walk_forward", "combinatorial_purged"] = "walk_forward"
    folds: Annotated[int, Field(ge=2, le=20, description="Of a walk forward.")] = 5
    groups: Annotated[int, Field(ge=4, le=16, description="Equal stretches of time that are combined.")] = 6
    test_groups: Annotated[
        int, Field(ge=2, le=4, description="Stretches that each combination leaves out and is judged on.")
    ] = 2
    purge: Literal["auto"] = "auto"
    embargo: Annotated[int, Field(ge=0, le=1000, description="Bars.")] = 0

    @model_validator(mode="after")
    def _speaks_of_one_scheme(self) -> "CrossValidation":
        combined = self.scheme == "combinatorial_purged"
        own = {"walk_forward": ("folds",), "combinatorial_purged": ("groups", "test_groups")}.get(self.scheme, ())
        fields = type(self).model_fields
        for name in ("folds", "groups", "test_groups"):
            if name not in own and getattr(self, name) != fields[name].default:
                has = " and ".join(f"`{each}`" for each in own) or "none of its own"
                raise ValueError(f"`{name}` is not of the scheme {self.scheme}, which has {has}; leave it out")
        if combined and self.groups - self.test_groups < 2:
            raise ValueError("two groups at least must be left to learn from; send fewer `test_groups`")
        if combined and self.num_trainings > MOST_COMBINATIONS:
            raise ValueError(
                f"{self.test_groups} of {self.groups} groups are {self.num_trainings} trainings, and "
                f"{MOST_COMBINATIONS} is the most; send fewer of either"
            )
        return self

    @property
    def num_trainings(self) -> int:
        """How many this adds; 0 of no scheme."""
        if self.scheme == "combinatorial_purged":
            return comb(self.groups, self.test_groups)
        return self.folds if self.scheme == "walk_forward" else 0

    @property
    def num_paths(self) -> int:
        """Of a combinatorial validation: how often each group is tested."""
        return comb(self.groups - 1, self.test_groups - 1)


class TrainRequest(Asked):
    """A training request; the original specification's keys, then the optional ones."""

    model_config = ConfigDict(**Contract.model_config, json_schema_extra={"examples": [SEED_EXAMPLE]})

    name: Annotated[str, Field(min_length=1, max_length=128, description="Title for people.")]
    model_type: ModelType
    features: Annotated[
        list[FeatureText],
        Field(
            max_length=256,
            description='Columns (`rsi_14`), expressions (`zscore(close, 50)`, `ret("GBP/USD", 1)`, '
            '`at("1d", rsi_14)`), or `@` and the id of a set: a trained one (`@my_set`, `@my_set:1.0.0`) or one '
            "that ships (`@alpha158`). Feature engineering may leave them out: then it searches all indicators.",
        ),
    ] = []  # noqa: RUF012
    target: TargetName | Annotated[list[TargetName], Field(min_length=1, max_length=16)] | None = Field(
        default=None,
        description="What is forecast; a list trains one named output each. Anomaly detection and reinforcement "
        "learning have none.",
    )
    symbols: Annotated[list[Symbol], Field(min_length=1, max_length=64)]
    start_date: MarketDatetime = Field(description="First bar opening, inclusive.")
    end_date: MarketDatetime = Field(description="Bar openings before this.")
    hyperparameters: dict[str, Any] = Field(
        default_factory=dict, max_length=MOST_HYPERPARAMETERS, description="See GET /api/v1/model-types."
    )
    validation_split: Annotated[Finite, Field(ge=0.05, le=0.6)] = 0.2

    family: str | None = Field(default=None, description="Default: the model type's first family.")
    model_id: ModelId | None = Field(default=None, description="Default: the slug of `name`.")
    version: Semver | None = Field(default=None, description="Default: 1.0.0, then the next minor version.")
    timeframe: Timeframe | None = Field(default=None, description="Default: the target's own unit, else 1h.")
    seeds: Annotated[
        list[Annotated[int, Field(ge=0, le=2**31 - 1)]],
        Field(min_length=1, max_length=20, description="One training each; their mean answers, and is judged."),
    ] = [0]  # noqa: RUF012
    cv: CrossValidation | None = Field(
        default=None, description="Validate on more than one split too; not run unless asked for."
    )
    sample_weights: Literal["none", "uniqueness"] = Field(
        default="none",
        description="What a row counts in the loss: each as much, or the less the more other labels span its label's "
        "bars (average uniqueness). Not every family can weigh rows.",
    )
    costs: Costs | None = Field(default=None, description="Overrides of the pair's default trading costs.")
    quantiles: Annotated[list[Annotated[Finite, Field(gt=0, lt=1)]], Field(min_length=1, max_length=9)] | None = Field(
        default=None, description="Quantile outputs of a time series, 0.5 among them, such as [0.05, 0.5, 0.95]."
    )
    label: LabelOptions | None = Field(default=None, description="How targets are labelled.")
    position: PositionRule | Annotated[list[PositionRule], Field(min_length=1, max_length=MOST_RULES)] | None = Field(
        default=None,
        description="How a time series' forecast of the price becomes a position; of a list the rule with the best "
        "Sharpe ratio on the calibration part, each a trial. Unless sent: sign_after_costs.",
    )
    meta: MetaLabelling | None = Field(
        default=None,
        description="Classification alone: learn when to follow the side that another version gives. Leave `target` "
        "out; `features` are the primary's unless sent.",
    )
    as_of: MarketDatetime | None = Field(default=None, description="Use only bars known at this moment.")
    notes: Annotated[str, Field(max_length=4000)] = ""
    force: bool = Field(default=False, description="Train again although the newest version saw the same bars.")
    priority: JobPriority = Field(default=JobPriority.NORMAL, description="Among the waiting jobs of the same key.")

    _no_twins = field_validator("features", "symbols", "quantiles", "seeds")(each_once)

    @model_validator(mode="after")
    def _time_runs_forward(self) -> "TrainRequest":
        if self.end_date <= self.start_date:
            raise ValueError("`end_date` must be later than `start_date`")
        return self

    @property
    def target_names(self) -> tuple[str, ...]:
        """The targets as they were written; none, one or several."""
        if self.target is None:
            return ()
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)

    @property
    def position_rules(self) -> tuple[PositionRule, ...]:
        """The rules to choose from, resolved, each once; none where the request says nothing."""
        if self.position is None:
            return ()
        asked = [self.position] if isinstance(self.position, PositionRule) else self.position
        return tuple({rule.resolved.model_dump_json(): rule.resolved for rule in asked}.values())

    def parsed_targets(self) -> tuple[Target, ...]:
        """The targets, which agree on one timeframe.

        Raises:
            ValueError: a target is not one, stands twice, or two fix different timeframes.
        """
        targets = tuple(parse_target(name, self.timeframe) for name in self.target_names)
        units = sorted({each.timeframe for each in targets if each.timeframe})
        if len(units) > 1:
            raise ValueError(f"the targets fix different timeframes ({', '.join(units)}); train a model for each")
        if len({(each.measure, each.horizon) for each in targets}) < len(targets):
            raise ValueError("a target stands twice; list each once")
        return targets

    def timeframe_for(self, targets: Sequence[Target]) -> str:
        """The targets' own unit, else the request's, else an hour."""
        own = next((each.timeframe for each in targets if each.timeframe), None)
        return own or self.timeframe or "1h"


class TrainingEstimate(Contract):
    """What a training will need, estimated before any data is fetched."""

    memory_gb: Finite
    duration_s: Finite
    num_windows: int
    power: Finite | None = Field(
        default=None,
        description="Probability that the test part would show what must not be missed (R² 0.5 %, 2 % of a "
        "volatility's loss, a policy's Sharpe ratio of 1.5); under 0.8 the answer may be `insufficient_data`.",
    )
