"""Sizing: by which declared rule a forecast becomes a position, and what a record carries of it to whoever holds one.

    sign_after_costs    1 long or short where the forecast exceeds the round-trip cost, else flat (the default)
    proportional        forecast ÷ volatility, ÷ `full_ratio`
    volatility_target   the sign after costs · `annual_volatility` ÷ the ex-ante volatility of a year
    kelly               `fraction` · calibration slope · forecast ÷ variance

With `risk_budget` each symbol's size is multiplied so that all contribute alike to the account's risk, which is the
budget. Each is cut to ± `max_leverage`. What is wanted is not always taken: `band` and `decide` keep what is held
(`market/sizing.py` has the arithmetic).
"""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract, Finite

RuleName = Literal["sign_after_costs", "proportional", "volatility_target", "kelly"]
Deciding = Literal["each_bar", "horizon", "reversal"]
"""When a position is decided: at each bar; anew once it was held for the forecast's horizon; or kept while nothing
else is wanted than to be flat."""
DEFAULTS: Mapping[str, tuple[str, float]] = {
    "proportional": ("full_ratio", 0.1),
    "volatility_target": ("annual_volatility", 0.05),
    "kelly": ("fraction", 0.5),
}
"""The setting of each rule that has one, and its value unless it is sent. A forecast with R² 0.5 % has a standard
deviation of 0.07 volatilities; majors move 6 to 10 % a year; half of Kelly's fraction has three quarters of its growth
at half the deviation (Thorp, "The Kelly criterion", 2006)."""
MOST_LEVERAGE = 20.0
"""Retail leverage on minor pairs in the EU (ESMA 2018/796)."""
MOST_RULES = 16
"""That one training may choose from: each is a trial, which deflates the figures of the one that is chosen."""


class PositionRule(Asked):
    """A declared rule; settings of another rule are refused."""

    rule: RuleName = "sign_after_costs"
    full_ratio: Finite | None = Field(
        default=None, gt=0, le=10, description="proportional: the forecast ÷ volatility of a position of 1."
    )
    annual_volatility: Finite | None = Field(
        default=None, gt=0, le=1, description="volatility_target: standard deviation of a year's return."
    )
    fraction: Finite | None = Field(default=None, gt=0, le=1, description="kelly: share of the full bet.")
    band: Finite = Field(
        default=0.0, ge=0, lt=MOST_LEVERAGE, description="No trade where the position would change by this or less."
    )
    decide: Deciding = Field(
        default="each_bar",
        description="`horizon`: a position is held for the forecast's horizon and decided anew then; `reversal`: it is "
        "kept until another than flat is wanted.",
    )
    risk_budget: Finite | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Portfolio: standard deviation of a year's return of the account, to which every symbol "
        "contributes alike; the symbols' weights are fitted on the calibration part.",
    )
    max_leverage: Finite = Field(default=1.0, gt=0, le=MOST_LEVERAGE, description="The largest |position|.")

    @model_validator(mode="after")
    def _settings_are_its_own(self) -> Self:
        for rule, (name, _) in DEFAULTS.items():
            if rule != self.rule and getattr(self, name) is not None:
                raise ValueError(f"`{name}` belongs to the rule {rule}, not to {self.rule}; leave it out")
        if self.band >= self.max_leverage:
            raise ValueError("a `band` as wide as the largest position never trades; send less than `max_leverage`")
        if self.band and self.rule == "sign_after_costs":
            raise ValueError(
                "sign_after_costs has one size, which no `band` changes; send `decide`: `reversal` or `horizon`"
            )
        return self

    @property
    def resolved(self) -> Self:
        """The same with its setting filled in, as cards and bundles keep it."""
        name, value = DEFAULTS.get(self.rule, ("", 0.0))
        is_open = bool(name) and getattr(self, name) is None
        return self.model_copy(update={name: value}) if is_open else self

    @property
    def setting(self) -> float:
        """The value of the rule's one setting; 1 of a rule without."""
        name, value = DEFAULTS.get(self.rule, ("", 1.0))
        sent = getattr(self, name) if name else None
        return value if sent is None else float(sent)


class PositionWanted(Contract):
    """What a record says of the position to take: the rule's word, and the terms on which what is held is kept."""

    rule: RuleName
    wanted: Finite = Field(description="Signed size, before `scaling_factor`.")
    band: Finite = Field(default=0.0, description="No trade where the position would change by this or less.")
    decide: Deciding = "each_bar"
    horizon: int = Field(default=1, description="Bars that `decide: horizon` holds.")
